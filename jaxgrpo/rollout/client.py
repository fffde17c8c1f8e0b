"""A client of `jaxgrpo serve`: one request, its answer as it comes. Any client of JetStream's proto will do as well."""

from collections.abc import Iterator

import grpc

from jaxgrpo.rollout.jetstream_import import jetstream_module

pb = jetstream_module("core.proto.jetstream_pb2")
pb_grpc = jetstream_module("core.proto.jetstream_pb2_grpc")


def decode_request(prompt: str | list[int], max_tokens: int) -> "pb.DecodeRequest":
    """Text, or token ids, to be continued by up to `max_tokens` tokens."""
    if isinstance(prompt, str):
        return pb.DecodeRequest(max_tokens=max_tokens, text_content=pb.DecodeRequest.TextContent(text=prompt))
    return pb.DecodeRequest(max_tokens=max_tokens, token_content=pb.DecodeRequest.TokenContent(token_ids=prompt))


def complete(address: str, prompt: str, max_tokens: int) -> Iterator[str]:
    """Pieces of the text that the server at `address` (host:port) continues the prompt with. Raises grpc.RpcError."""
    with grpc.insecure_channel(address) as channel:
        for response in pb_grpc.OrchestratorStub(channel).Decode(decode_request(prompt, max_tokens)):
            yield response.stream_content.samples[0].text
