"""The generation engine: prefill, insert, generate over the Flax model and a slotted KV cache.

It has the methods of JetStream 0.2.2's Engine interface with their meanings (load_params, prefill, insert, generate,
init_decode_state, max_concurrent_decodes, ...), and what that interface has no word for: `prefill_batch` of many prompts,
`insert_group` of prompts into the slots of their samples, `decode_chunk` of many tokens per dispatch, `resize` of the cache to
the longest sequence, a key and sampling numbers per sample, log-probabilities, and stop tokens decided on the device.

Shapes: B slots, R prompts of a prefill, T prompt bucket.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import abstract_parameters, parameter_table
from jaxgrpo.parallel.sharding import named_sharding, replicated
from jaxgrpo.rollout import cache as kv
from jaxgrpo.rollout import programs
from jaxgrpo.rollout.layout import make_handover, own_part, rollout_shardings
from jaxgrpo.rollout.sampling import Sampling
from jaxgrpo.rollout.settings import EngineError, EngineSettings, NonFiniteError
from jaxgrpo.rollout.slots import (
    SLOT_FIELDS,
    Chunk,
    DecodeState,
    FirstTokens,
    Placement,
    Prefix,
    ResultTokens,
    placement_arrays,
)

__all__ = ["DecodeState", "Engine", "EngineError", "EngineSettings", "NonFiniteError", "Placement", "Prefix", "ResultTokens"]

# Products that share an input are not merged: XLA would lay their weights side by side anew for every token.
_GPU_OPTIONS = {"xla_gpu_dot_merger_threshold_mb": 0}


class Engine:
    """Generation with one model on one (replica, tensor) mesh. Slots are sharded over `replica`; all programs are jitted
    with explicit shardings, so that any thread may call them.

    In a job of several hosts each has an engine on its own devices. `hosts_mesh` (host, replica, tensor) is then the mesh
    over all of them that the trainer's parameters are handed over on; only `load_params` needs the others.
    """

    def __init__(self, config: ModelConfig, settings: EngineSettings, mesh, *, tokenizer=None, hosts_mesh=None):
        platform = mesh.devices.flat[0].platform
        settings = settings.on(platform, config.head_dim)
        settings.check(config.vocab, mesh.shape["replica"])
        self.config, self.settings, self._mesh, self._tokenizer = config, settings, mesh, tokenizer
        self._handover = make_handover(config, hosts_mesh or mesh, settings.dtype, settings.weights)
        self._hosts_mesh = hosts_mesh
        state, prefix = self._state_shardings(), self._prefix_shardings()
        compiled = partial(jax.jit, compiler_options=_GPU_OPTIONS if platform in ("gpu", "cuda") else None)
        self._init = jax.jit(partial(programs.empty_state, config, settings), static_argnames="blocks", out_shardings=state)
        self._prefill = compiled(partial(programs.prefill, config, settings, mesh), out_shardings=prefix)
        slots = replace(jax.tree.map(lambda sharding: sharding.spec, state), cache=P(None, "replica"))
        # Results stay with their replica: gathering them would make replicas wait for each other after every chunk.
        chunk, per_slot = Chunk(*(P("replica"),) * 4), NamedSharding(mesh, P("replica"))
        per_replica = partial(jax.shard_map, mesh=mesh, axis_names={"replica"}, check_vma=False)
        self._insert = jax.jit(
            per_replica(
                partial(programs.insert, settings),
                in_specs=(P(), slots, *(P("replica"),) * 4),
                out_specs=(slots, P("replica")),
            ),
            donate_argnums=1,
            out_shardings=(state, per_slot),
        )
        self._decode = compiled(
            per_replica(
                partial(programs.decode, config, settings, steps=settings.chunk),
                in_specs=(P(), slots),
                out_specs=(slots, chunk),
            ),
            donate_argnums=1,
            out_shardings=(state, per_slot),
        )
        self._generate = compiled(
            per_replica(
                partial(programs.show_and_decode, config, settings), in_specs=(P(), slots), out_specs=(slots, P("replica"))
            ),
            donate_argnums=1,
            out_shardings=(state, per_slot),
        )
        self._resize = jax.jit(kv.resize, static_argnums=1, out_shardings=state.cache[0])

    # JetStream's interface -------------------------------------------------------------------------------------------

    @property
    def max_concurrent_decodes(self) -> int:
        return self.settings.slots

    @property
    def samples_per_slot(self) -> int:
        return 1

    @property
    def max_prefill_length(self) -> int:
        return self.settings.max_prompt

    @property
    def mesh(self):
        return self._mesh

    @property
    def colocated_cpus(self):
        return None

    def get_tokenizer(self):
        return self._tokenizer

    def get_prefix_destination_sharding(self):
        return replicated(self._mesh)

    def load_params(self, params: dict) -> dict:
        """The trainer's parameters, cast and moved to the rollout layout in one program. Parameters that lie on other devices
        than the engine's are first spread over these. With several hosts all of them call this together."""
        if self._hosts_mesh is not None:
            own = rollout_shardings(self.config, self._mesh, self.settings.weights)
            return own_part(self._handover(params), own)
        devices = {device for value in params.values() if isinstance(value, jax.Array) for device in value.devices()}
        if devices != set(self._mesh.devices.flat):
            specs = parameter_table(self.config)
            params = jax.device_put(params, {s.name: named_sharding(self._mesh, s.axes, s.shape) for s in specs})
        return self._handover(params)

    def init_decode_state(self, length: int | None = None) -> DecodeState:
        """Empty slots, all of them done, with room for sequences of `length` tokens (default: the longest)."""
        return self._init(blocks=self._blocks(length))

    def prefill(self, *, params, existing_prefix=None, padded_tokens, true_length: int) -> Prefix:
        """Prefill one prompt, int tokens [T] of which the first `true_length` count. existing_prefix is not supported."""
        if existing_prefix is not None:
            raise EngineError("existing_prefix is not supported: prefill the whole prompt.")
        if not 1 <= true_length <= len(padded_tokens):
            raise EngineError(f"a prompt of true length {true_length} in {len(padded_tokens)} padded tokens.")
        return self.prefill_batch(params, [np.asarray(padded_tokens)[:true_length]])

    def insert(self, prefix: Prefix, decode_state: DecodeState, slot: int) -> DecodeState:
        """Put a prefix of one prompt into `slot`, to be decoded greedily up to the engine's limit."""
        placement = Placement(slot, 0, np.zeros(2, np.uint32), Sampling(temperature=0.0), self.settings.max_new)
        return self.insert_group(prefix, decode_state, [placement])[0]

    def generate(self, params, decode_state: DecodeState) -> tuple[DecodeState, ResultTokens]:
        """Hand out the token that each slot holds and compute the next; a token is valid once; a done slot's is not again."""
        state, data_B5 = self._generate(params, decode_state)
        return state, ResultTokens(data_B5)

    # Additions -------------------------------------------------------------------------------------------------------

    def compile(self, params, *, stepwise: bool = False) -> None:
        """Run every program once on dummy data, the largest shapes first, so that no request compiles one later and memory that
        does not suffice shows now.

        Leaves nothing behind but the compiled programs. stepwise: also `generate`, which only JetStream's drivers use; they
        keep the cache at its largest.
        """
        pad = self.settings.pad_id
        prefixes = [self.prefill_batch(params, [np.full(bucket, pad, np.int32)]) for bucket in reversed(self.settings.buckets)]
        state = self.init_decode_state()
        for blocks in reversed(self.settings.cache_blocks[:1] if stepwise else self.settings.cache_blocks):
            state = self.resize(state, blocks * self.settings.block)
            for prefix in prefixes:
                state, _ = jax.block_until_ready(self.insert_group(prefix, state, []))
            state, _ = self.generate(params, state) if stepwise else self.decode_chunk(params, state)
        del prefixes
        jax.block_until_ready(self.resize(state, self.settings.cache_blocks[-1] * self.settings.block))

    def programs(self) -> Iterator[tuple[str, Callable, tuple]]:
        """(name, jitted function, arguments) of everything that generation runs, the largest shapes of each kind first.

        The arguments are shapes with shardings, to `.lower(*arguments)` and compile ahead of time: the mesh may be that of a
        topology description, without devices.
        """
        everywhere, per_slot = replicated(self._mesh), NamedSharding(self._mesh, P("replica"))
        sizes = self.settings.cache_blocks
        params = self._handover.eval_shape(abstract_parameters(self.config))

        def abstract(shape, dtype=np.int32, sharding=everywhere):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        prefixes = {}
        for bucket in reversed(self.settings.buckets):
            rows = self.prefill_rows(bucket)
            arguments = params, abstract((rows, bucket)), abstract((rows,))
            yield f"prefill {rows} x {bucket}", self._prefill, arguments
            prefixes[bucket] = self._prefill.eval_shape(*arguments)
        placed = jax.tree.map(lambda a: abstract(a.shape, a.dtype, per_slot), placement_arrays([], self.settings.slots))
        for i in reversed(range(len(sizes))):
            state, length = self._init.eval_shape(blocks=sizes[i]), sizes[i] * self.settings.block
            yield f"decode {length}", self._decode, (params, state)
            for bucket, prefix in prefixes.items():
                yield f"insert {bucket} into {length}", self._insert, (prefix, state, *placed)
            for other in sizes[max(0, i - 1) : i] + sizes[i + 1 : i + 2]:
                yield f"resize {length} to {other * self.settings.block}", self._resize, (state.cache[0], other)

    def prefill_rows(self, bucket: int) -> int:
        """Prompts that one `prefill_batch` of this bucket takes."""
        return self.settings.prefill_rows(bucket, self._mesh.shape["replica"])

    def check_prompt(self, prompt: np.ndarray, name: str = "the prompt") -> None:
        """EngineError unless the prompt has 1 to max_prompt tokens, all of them in the vocabulary."""
        if not 1 <= len(prompt) <= self.settings.max_prompt:
            raise EngineError(
                f"{name} has {len(prompt)} tokens; prompts need 1 to {self.settings.max_prompt} (data.max_prompt_tokens)."
            )
        low, high = int(np.min(prompt)), int(np.max(prompt))
        if low < 0 or high >= self.config.vocab:
            raise EngineError(
                f"{name} has token {low if low < 0 else high}, outside the vocabulary of {self.config.vocab}: "
                "the tokenizer is not the model's."
            )

    def check_sampling(self, sampling: Sampling, max_new: int, name: str = "the request") -> None:
        """EngineError for sampling numbers out of range or not compiled in, and for a limit outside 1 to max_new."""
        if complaint := sampling.complaint():
            raise EngineError(f"{name} has {complaint}.")
        if sampling.truncates() and not self.settings.truncate:
            raise EngineError(f"{name} truncates the distribution ({sampling}), for which this engine was not compiled.")
        if not 1 <= max_new <= self.settings.max_new:
            raise EngineError(
                f"{name} asks for {max_new} new tokens; the engine gives 1 to {self.settings.max_new} (rollout.max_new_tokens)."
            )

    def prefill_batch(self, params, prompts: list[np.ndarray]) -> Prefix:
        """Prefill up to `prefill_rows(bucket)` prompts (int tokens, any lengths) in one dispatch, all in the bucket of the
        longest. EngineError for no prompt, too many, or one that `check_prompt` refuses."""
        for prompt in prompts:
            self.check_prompt(prompt)
        bucket = self.settings.bucket(max((len(p) for p in prompts), default=1))
        rows = self.prefill_rows(bucket)
        if not 1 <= len(prompts) <= rows:
            raise EngineError(f"{len(prompts)} prompts in one prefill of {rows} rows.")
        tokens_RT = np.full((rows, bucket), self.settings.pad_id, np.int32)
        lengths_R = np.ones(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens_RT[row, : len(prompt)] = prompt
            lengths_R[row] = len(prompt)
        return self._prefill(params, tokens_RT, lengths_R)

    def insert_group(self, prefix: Prefix, state: DecodeState, placements: list[Placement]) -> tuple[DecodeState, FirstTokens]:
        """Put rows of a prefix into the slots of their samples and sample each one's first token."""
        return self._insert(prefix, state, *placement_arrays(placements, self.settings.slots))

    def decode_chunk(self, params, state: DecodeState) -> tuple[DecodeState, Chunk]:
        """Decode up to `settings.chunk` tokens in every slot that is not done. The caller sees to it that the state has room
        for them (`resize`)."""
        return self._decode(params, state)

    def resize(self, state: DecodeState, length: int) -> DecodeState:
        """The state with the smallest cache that holds sequences of `length` tokens: as it is, grown, or, where that gives back
        at least half of it, cut. Layer by layer, so that never more than one layer's cache exists twice."""
        sizes, block = self.settings.cache_blocks, self.settings.block
        have, want = state.capacity // block, self._blocks(length)
        if want < have and want > have / 2:
            return state
        while have != want:
            have = sizes[sizes.index(have) + (1 if want > have else -1)]
            state = replace(state, cache=tuple(self._resize(layer, have) for layer in state.cache))
        return state

    def _blocks(self, length: int | None) -> int:
        sizes = self.settings.cache_blocks
        return sizes[-1] if length is None else next(n for n in sizes if n >= self.settings.blocks(length))

    # Shardings -------------------------------------------------------------------------------------------------------

    def _cache_shardings(self, slot_axis: str | None) -> tuple[kv.LayerCache, ...]:
        c, s = self.config, self.settings
        shapes = jax.eval_shape(lambda: kv.empty(1, s.slots, c.kv_heads, c.head_dim, s.block, s.cache_dtype))
        axes = {name: (None, slot_axis, *rest) for name, rest in kv.LOGICAL_AXES.items()}
        arrays = {name: getattr(shapes, name) for name in axes}
        layer = {n: None if a is None else named_sharding(self._mesh, axes[n], a.shape) for n, a in arrays.items()}
        return (kv.LayerCache(**layer),) * c.layers

    def _state_shardings(self) -> DecodeState:
        per_slot = named_sharding(self._mesh, ("batch",), (self.settings.slots,))
        fields = {name: per_slot for name in SLOT_FIELDS if name != "sampling"}
        return DecodeState(cache=self._cache_shardings("batch"), sampling=Sampling(*(per_slot,) * 4), **fields)

    def _prefix_shardings(self) -> Prefix:
        everywhere = replicated(self._mesh)
        return Prefix(self._cache_shardings(None), everywhere, everywhere)
