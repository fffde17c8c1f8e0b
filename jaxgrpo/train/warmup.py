"""A supervised start: next-token loss on responses of demonstrations, with the same rows and forward as GRPO.

For the built-in task the start is weak on purpose: steps on right demonstrations until held-out Pass@1 reaches
`warmup.stop_pass1`, then `warmup.corrupt_steps` on demonstrations of which a part is wrong.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgrpo.config import Config, OptimConfig, TrainConfig, WarmupConfig
from jaxgrpo.data import EncodedPrompt, Problem, encode_prompts, load_demonstrations, warmup_examples
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.parallel import hosts
from jaxgrpo.parallel.sharding import replicated
from jaxgrpo.train.activity import Activity
from jaxgrpo.train.optimizer import make_optimizer
from jaxgrpo.train.rows import Rows, Sequence, pack
from jaxgrpo.train.sizes import row_shapes
from jaxgrpo.train.state import TrainState, init_state, state_shardings
from jaxgrpo.train.step import Forward, micro_batch, rows_sharding

Example = tuple[np.ndarray, np.ndarray]  # prompt and response tokens, the response ended by a stop token


def make_supervised_update(model: ModelConfig, train: TrainConfig, optimizer: optax.GradientTransformation, mesh) -> Callable:
    """`update(state, rows, used) -> (state, loss)`: mean negative log-probability of the response tokens; state donated."""

    forward = Forward(model, train, 1.0, mesh)

    def token_loss(logp, entropy, weights):
        return -jnp.sum(logp * weights), {}

    def update(state: TrainState, rows: Rows, used):
        total = jnp.maximum(rows.mask.sum(), 1.0)

        def loss(params, index):
            micro = micro_batch(rows, index)
            return forward.loss(params, micro, token_loss, micro.mask / total)[0]

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
            add = lambda i, sums: jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(state.params, i))  # noqa: E731
            value, gradients = jax.lax.fori_loop(0, used, add, zero)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            return TrainState(optax.apply_updates(state.params, updates), opt_state), value

    return jax.jit(
        update,
        donate_argnames="state",
        out_shardings=(state_shardings(model, optimizer, mesh, offloaded=False), replicated(mesh)),
    )


def builtin_examples(seed: int, batch: int, corruption: float, start: int, encode: Callable) -> Iterator[list[Example]]:
    """Endless batches of the built-in task's demonstrations."""
    while True:
        yield encode(warmup_examples(seed, start, batch, corruption))
        start += batch


def file_examples(path: str, seed: int, batch: int, encode: Callable) -> Iterator[list[Example]]:
    """Endless batches of a file's demonstrations, reshuffled every epoch."""
    rows = [
        (Problem(i, messages, "demonstration", "", {}), response)
        for i, (messages, response) in enumerate(load_demonstrations(path))
    ]
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while True:
        while len(order) < batch:
            order += rng.permutation(len(rows)).tolist()
        chosen, order = order[:batch], order[batch:]
        yield encode([rows[i] for i in chosen])


def make_encoder(tokenizer, stop_id: int, max_prompt: int, max_new: int, overlong: str = "error") -> Callable:
    """`encode(pairs) -> examples`: chat template around the prompt, the stop token after the response, cut to max_new.

    overlong: what becomes of a prompt of more than max_prompt tokens, as in `data.encode_prompts`.
    """

    def encode(pairs: list[tuple[Problem, str]]) -> list[Example]:
        prompts: list[EncodedPrompt] = encode_prompts(
            [problem for problem, _ in pairs], tokenizer, max_tokens=max_prompt, overlong=overlong
        )[0]
        kept = {id(prompt.problem) for prompt in prompts}
        texts = [text for problem, text in pairs if id(problem) in kept]
        responses = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            (prompt.tokens, np.array([*ids, stop_id][:max_new], np.int32))
            for prompt, ids in zip(prompts, responses, strict=True)
        ]

    return encode


def warm_up(
    params: dict,
    model: ModelConfig,
    config: Config,
    mesh,
    *,
    encode: Callable,
    pad_id: int,
    pass1: Callable[[dict, int], float],
    progress: Activity,
) -> dict:
    """Parameters after the supervised start. `pass1(params, step)` measures held-out Pass@1."""
    warmup = config.warmup

    def run(params: dict, batches: Iterator[list[Example]], lr: float, first: int, steps: int, stop: float, name: str):
        optimizer = make_optimizer(OptimConfig(lr=lr, weight_decay=0.0))
        state = init_state(params, model, optimizer, mesh)
        update = make_supervised_update(model, config.train, optimizer, mesh)
        loss = None
        for step in range(first + 1, first + steps + 1):
            jax.block_until_ready(loss)  # programs with collectives must not queue up: XLA's CPU client locks up at 32
            rows, used = _rows(next(batches), config, mesh, pad_id)
            progress.count(step - first - 1, steps, "steps")
            state, loss = update(state, hosts.spread(rows, rows_sharding(mesh)), np.int32(used))
            if (step - first) % warmup.check_every == 0 or step == first + steps:
                score = pass1(state.params, step)
                progress.say(f"warm-up ({name}) step {step}: loss {float(loss):.3f}, held-out Pass@1 {score:.3f}")
                if stop and score >= stop:
                    return state.params, step
        return state.params, first + steps

    def phase(name: str, *given) -> tuple[dict, int]:
        with progress.doing(f"warm-up ({name})"):
            return run(*given, name)

    clean = _batches(warmup, config, encode, corruption=0.0, start=0)
    params, done = phase("right demonstrations", params, clean, warmup.lr, 0, warmup.steps, warmup.stop_pass1)
    if warmup.corrupt_steps:
        wrong = _batches(warmup, config, encode, corruption=warmup.corruption, start=warmup.steps * warmup.batch)
        params, _ = phase("part of them wrong", params, wrong, warmup.corrupt_lr, done, warmup.corrupt_steps, 0.0)
    return params


def _batches(warmup: WarmupConfig, config: Config, encode, *, corruption: float, start: int) -> Iterator[list[Example]]:
    if warmup.demonstrations:
        return file_examples(warmup.demonstrations, config.seed, warmup.batch, encode)
    return builtin_examples(config.seed, warmup.batch, corruption, start, encode)


def _rows(examples: list[Example], config: Config, mesh, pad_id: int) -> tuple[Rows, int]:
    sequences = [Sequence(prompt, response, np.zeros(len(response), np.float32), 0.0) for prompt, response in examples]
    shape = row_shapes(config, config.warmup.batch, mesh.devices.flat[0].platform)[0]
    return pack(sequences, shape, pad_id)
