"""Eight prompts through JetStream's own Driver, in a process of its own because the Driver kills its process on any error.

Prints one JSON line: the tokens that the Driver returned and those of our scheduler. Four slots, so that slots are reused.
"""

import asyncio
import json
import logging
import os
import sys
import tempfile

import numpy as np
from engines import SMALL, load, mesh_of, prompts_of, requests_of, settings_of

from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.jetstream import JetStreamEngine
from jaxgrpo.rollout.jetstream_import import jetstream_module
from jaxgrpo.rollout.scheduler import generate
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model

NEW_TOKENS = 12
orchestrator = jetstream_module("core.orchestrator")
multifuture = jetstream_module("core.utils.async_multifuture")


async def ask(driver, prompt: np.ndarray) -> list[int]:
    """One request of client-side tokens; a non-empty history path is how the package is told not to add a BOS."""
    request = orchestrator.ActiveRequest(
        max_tokens=NEW_TOKENS,
        history_path="none",
        prefill_content=prompt,
        is_client_side_tokenization=True,
        return_channel=multifuture.AsyncMultifuture(),
    )
    driver.place_request_on_prefill_queue(request)
    return [token async for samples in request.return_channel for token in samples[0].token_ids]


async def ask_all(driver, prompts) -> list[list[int]]:
    answers = await asyncio.gather(*(ask(driver, prompt) for prompt in prompts))
    await asyncio.sleep(0.5)  # the Driver's threads still post to this loop after the last token
    return answers


def main() -> None:
    logging.getLogger().addHandler(logging.NullHandler())  # or the package's logging calls install one on stderr
    with tempfile.TemporaryDirectory() as directory:
        model, tokenizer = load(write_tiny_model(directory, **SMALL)), write_tiny_tokenizer(directory)
    prompts = prompts_of([5, 16, 32, 1, 20, 9, 3, 28], seed=2)

    def engine_with(stop_ids) -> Engine:
        settings = settings_of(slots=4, max_new=NEW_TOKENS, prefill_tokens=32, stop_ids=stop_ids)
        return Engine(model.config, settings, mesh_of(), tokenizer=tokenizer)

    free = engine_with(())
    params = free.load_params(model.params)
    stop = generate(free, params, requests_of(prompts[:1], max_new=NEW_TOKENS))[0][0].tokens[6]
    engine = engine_with((stop,))
    engine.compile(params, stepwise=True)
    expected = [r.tokens for (r,) in generate(engine, params, requests_of(prompts, max_new=NEW_TOKENS))]
    ours = JetStreamEngine(engine)
    driver = orchestrator.Driver(
        prefill_engines=[ours],
        generate_engines=[ours],
        prefill_params=[params],
        generate_params=[params],
        interleaved_mode=True,
        jax_padding=False,
    )
    answers = asyncio.run(ask_all(driver, prompts))
    driver.stop()
    print(json.dumps({"driver": answers, "scheduler": expected}), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
