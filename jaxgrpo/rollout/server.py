"""JetStream's gRPC service over our engine: the package's servicer and Driver, on a grpc server of our own.

The service is `jetstream_proto.Orchestrator` of google-jetstream 0.2.2. A request gives text, which the model's tokenizer
encodes as it stands (no chat template, no BOS), or token ids; the answer streams `token_ids` and, to text, `text`. A request
that the engine cannot serve is refused with INVALID_ARGUMENT before it is queued, for the Driver would die of it.

The package's own server binds every interface and shares its port with whoever asks; this one binds the host it is given and
has the port to itself.
"""

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator
from itertools import count

import grpc
import numpy as np

from jaxgrpo.rollout.driver import NO_BOS, RequestDriver, RequestEngine, Weights, orchestrator, with_header
from jaxgrpo.rollout.engine import Engine, EngineError
from jaxgrpo.rollout.jetstream_import import jetstream_module
from jaxgrpo.rollout.sampling import Sampling, sample_keys
from jaxgrpo.rollout.text_stream import TextStream

pb = jetstream_module("core.proto.jetstream_pb2")
pb_grpc = jetstream_module("core.proto.jetstream_pb2_grpc")

DRAIN_S = 5.0  # seconds that running requests have to end when the server stops


class ServerError(EngineError):
    """The server could not start; the message says why."""

    exit_code = 1


class Servicer(orchestrator.LLMOrchestrator):
    """The package's servicer with requests checked first. The n-th request since the start samples with a key of (seed, n)."""

    def __init__(self, driver: RequestDriver, engine: Engine, sampling: Sampling, seed: int):
        super().__init__(driver)
        self.engine, self.sampling, self.seed, self.numbers = engine, sampling, seed, count()

    async def Decode(self, request, context=None) -> AsyncIterator:  # noqa: N802 (the service's name)
        """Stream the answer to one DecodeRequest; INVALID_ARGUMENT with value and remedy if it cannot be served."""
        try:
            prompt = self.prompt_of(request)
            self.engine.check_sampling(self.sampling, request.max_tokens)
        except EngineError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        text = TextStream(self.engine.get_tokenizer()) if request.WhichOneof("content") == "text_content" else None
        try:
            async for response in super().Decode(self.for_driver(prompt, request.max_tokens), context):
                if answer := _answer(list(response.stream_content.samples[0].token_ids), text):
                    yield answer
        except concurrent.futures.CancelledError:
            return  # the client has gone; the Driver frees the slot
        if text is not None and (rest := text.rest()):
            yield _response(text=rest)

    def prompt_of(self, request) -> np.ndarray:
        """Token ids int32 [T] of a request; EngineError unless the engine can prefill them."""
        content = request.WhichOneof("content")
        if content is None:
            raise EngineError("the request has no content; give text_content or token_content.")
        if content == "text_content":
            ids = self.engine.get_tokenizer()(request.text_content.text, add_special_tokens=False)["input_ids"]
        else:
            ids = request.token_content.token_ids
        prompt = np.array(ids, np.int32)
        self.engine.check_prompt(prompt)
        return prompt

    def for_driver(self, prompt: np.ndarray, limit: int):
        """The DecodeRequest that the Driver gets: tokens with a header, and no BOS."""
        key = sample_keys(self.seed, "serve", 0, [next(self.numbers)], [0])[0]
        tokens = with_header(prompt, key, self.sampling, limit)
        content = pb.DecodeRequest.TokenContent(token_ids=tokens.tolist())
        return pb.DecodeRequest(session_cache=NO_BOS, max_tokens=limit, token_content=content)

    def _get_prefill_content(self, request) -> tuple[np.ndarray, bool]:
        """The package hands the Driver a list here, which it cannot pad when there is no BOS."""
        return np.array(request.token_content.token_ids, np.int32), True

    async def HealthCheck(self, request, context=None):  # noqa: N802 (the service's name)
        """Whether the Driver lives; trailing metadata: how many requests it holds, queued or in a slot, and its slots."""
        held, slots = len(self._driver.held), self.engine.max_concurrent_decodes
        context.set_trailing_metadata((("requests-held", str(held)), ("slots", str(slots))))
        return await super().HealthCheck(request, context)


def _answer(tokens: list[int], text: TextStream | None):
    """What the client gets for one step's tokens; None for the empty step that ends a request."""
    if not tokens:
        return None
    return _response(token_ids=tokens) if text is None else _response(token_ids=tokens, text=text.push(tokens))


def _response(**sample):
    samples = [pb.DecodeResponse.StreamContent.Sample(**sample)]
    return pb.DecodeResponse(stream_content=pb.DecodeResponse.StreamContent(samples=samples))


def address(host: str, port: int) -> str:
    """host:port, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Server:
    """One engine behind one port. `run` serves until `stop` is called from any thread, then lets running requests end."""

    def __init__(self, engine: Engine, params, *, host: str, port: int, sampling: Sampling, seed: int):
        engine.check_sampling(sampling, 1, "the server")
        engine.compile(params, stepwise=True)
        self.engine, self.host, self.port, self.sampling, self.seed = engine, host, port, sampling, seed
        self.driver = RequestDriver(RequestEngine(engine, logps=False), Weights(params))
        self.loop = asyncio.new_event_loop()  # never closed: the Driver's threads post to it until the process ends
        self._stopping = asyncio.Event()

    def run(self, on_ready) -> None:
        """Serve until stopped; `on_ready` is called once requests are taken. The caller ends the process with os._exit: the
        Driver's threads would keep the interpreter alive."""
        self.loop.run_until_complete(self._serve(on_ready))

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(self, on_ready) -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_OrchestratorServicer_to_server(Servicer(self.driver, self.engine, self.sampling, self.seed), server)
        try:
            server.add_insecure_port(address(self.host, self.port))
        except RuntimeError as error:
            raise ServerError(f"cannot listen on {address(self.host, self.port)} ({error}): give another --port.") from error
        await server.start()
        on_ready()
        await self._stopping.wait()
        await server.stop(DRAIN_S)
