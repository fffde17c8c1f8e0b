"""Sizes that nobody should have to choose: worked out once from the model, the mesh and the memory, then written down.

What they come to is stored in the run directory's config.yaml and reused when the run is resumed, so that a machine with other
memory does not change the compiled shapes.
"""

import jax
import numpy as np

from jaxgrpo.config import Config, ConfigError, flatten, replace
from jaxgrpo.machine import usable_cores
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import parameter_table
from jaxgrpo.parallel.mesh import mesh_shape, rollout_tensor_size
from jaxgrpo.parallel.sharding import partition_spec
from jaxgrpo.rollout.layout import input_axes
from jaxgrpo.rollout.sampling import Sampling
from jaxgrpo.rollout.settings import EngineSettings, block_length
from jaxgrpo.train.rows import RowShape

GIB = 2**30
CPU_CACHE_GIB = 2.0
MIN_CHUNK, MAX_CHUNK = 4, 32  # a slot that ends waits one and a half chunks for its next sample
MIN_SLOTS = 64  # of a replica: fewer rows waste the hardware
ROW_TOKENS, CPU_ROW_TOKENS = 8192, 2048  # of one device's row, unless one sequence is longer
ROW_MULTIPLE = 128  # what attention kernels divide a row into
LOGIT_CHUNK, CPU_LOGIT_CHUNK = 1024, 256
CPU_QUERIES = 512  # whose attention scores exist at once
MANY_SEQUENCES = 128  # per device: then the rows of a minibatch that stay empty do not count
ROW_LENGTHS = 5  # else each minibatch takes the best of so many

AUTO_KEYS = (
    "family",
    "data.tokenizer",
    "train.steps",
    "train.row_tokens",
    "train.logit_chunk",
    "rollout.slots",
    "rollout.cache_gib",
    "rollout.chunk",
    "rollout.prefill_tokens",
    "rollout.tensor",
    "reward.workers",
    "mesh.fsdp",
)
_MESH_DEPENDENT = ("mesh.fsdp", "train.row_tokens", "train.logit_chunk", "rollout.slots", "rollout.tensor", "rollout.cache_gib")


def adopt(config: Config, stored: Config, devices: int, with_tokenizer: bool = True) -> Config:
    """`config` with its automatic values taken from the run directory's, those that hang on another mesh aside.

    with_tokenizer: also the path or id of an automatic tokenizer, which else is the model's own, wherever that lies now.
    """
    same_devices = stored.mesh.data * stored.mesh.fsdp * stored.mesh.tensor == devices
    same_mesh = same_devices and replace(config, {"mesh.fsdp": config.mesh.fsdp or stored.mesh.fsdp}).mesh == stored.mesh
    mine, theirs = flatten(config), flatten(stored)
    taken = [key for key in AUTO_KEYS if not mine[key] and (same_mesh or key not in _MESH_DEPENDENT)]
    taken = [key for key in taken if with_tokenizer or key != "data.tokenizer"]
    return replace(config, {key: theirs[key] for key in taken})


def resolve_sizes(config: Config, model: ModelConfig, devices: int, device_bytes: int | None, hosts: int = 1) -> Config:
    """Fill in every automatic size except train.steps, for `devices` in all, spread evenly over `hosts`.

    device_bytes: memory of one device, None where it is unknown (CPU). ConfigError when sizes do not fit each other or a
    single sequence does not fit the cache budget.
    """
    data, fsdp, tensor = mesh_shape(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if longest > model.max_positions:
        raise ConfigError(
            f"data.max_prompt_tokens + rollout.max_new_tokens = {longest}, but the model knows {model.max_positions} positions "
            f"(max_position_embeddings): lower one of them."
        )
    on_cpu = device_bytes is None
    changes = {
        "mesh.fsdp": fsdp,
        "train.row_tokens": config.train.row_tokens or _row_tokens(config, data * fsdp, on_cpu),
        "train.logit_chunk": config.train.logit_chunk or (CPU_LOGIT_CHUNK if on_cpu else LOGIT_CHUNK),
    }
    if not config.rollout.tensor:
        whole = jax.sharding.AbstractMesh((1, 1), ("replica", "tensor"))
        weights = _rollout_weight_bytes(config, model, whole)
        free = None if device_bytes is None else device_bytes - _held(replace(config, changes | {"rollout.tensor": 1}), model)
        changes["rollout.tensor"] = rollout_tensor_size(model.heads, devices // hosts, weights, free)
    elif devices // hosts % config.rollout.tensor:
        where = f"the {devices // hosts} devices" + (" of a host" if hosts > 1 else "")
        raise ConfigError(f"rollout.tensor={config.rollout.tensor} does not divide {where}.")
    changes["rollout.chunk"] = config.rollout.chunk or default_chunk(config.rollout.max_new_tokens)
    changes["rollout.prefill_tokens"] = config.rollout.prefill_tokens or max(
        config.data.max_prompt_tokens, min(8192, config.data.prompts_per_step * config.data.max_prompt_tokens)
    )
    changes["reward.workers"] = config.reward.workers or len(usable_cores())
    config = replace(config, changes)
    if not config.rollout.cache_gib:
        budget = CPU_CACHE_GIB if on_cpu else _cache_budget(config, model, device_bytes) / GIB
        config = replace(config, {"rollout.cache_gib": budget})
    return replace(config, {"rollout.slots": _slots(config, model, devices)})


def default_chunk(max_new: int) -> int:
    """Tokens decoded per dispatch for answers of up to `max_new`."""
    return max(1, min(max_new - 1, max(MIN_CHUNK, min(MAX_CHUNK, max_new // 128))))


def config_sampling(config: Config) -> Sampling:
    """How the configured rollouts sample."""
    c = config.rollout
    return Sampling(c.temperature, c.top_k, c.top_p, c.min_p)


def engine_settings(config: Config, stop_ids: tuple[int, ...], pad_id: int, unknown=()) -> EngineSettings:
    """What the sampler's engine is made with. unknown: the ids that the tokenizer lacks, see `data.unknown_ids`."""
    c = config.rollout
    return EngineSettings(
        slots=c.slots,
        max_prompt=config.data.max_prompt_tokens,
        max_new=c.max_new_tokens,
        chunk=c.chunk,
        prefill_tokens=c.prefill_tokens,
        stop_ids=stop_ids,
        pad_id=pad_id,
        unknown=unknown,
        dtype=c.dtype,
        weights=c.weights,
        cache_dtype=c.cache_dtype,
        attention=c.attention,
        truncate=config_sampling(config).truncates(),
    )


def _cache_budget(config: Config, model: ModelConfig, device_bytes: int) -> float:
    """Four fifths of what state, reference and rollout weights leave; the rest is for the activations of prefill."""
    resident = _held(config, model) + memory_table(config, model)["rollout weights"]
    if resident >= device_bytes:
        raise ConfigError(
            f"state, reference and rollout weights take {resident / GIB:.3g} GiB of a device that has "
            f"{device_bytes / GIB:.3g}: use more devices, or raise mesh.tensor or rollout.tensor."
        )
    return 0.8 * (device_bytes - resident)


def _held(config: Config, model: ModelConfig) -> int:
    """Bytes of a device that state and reference take at all times."""
    table = memory_table(config, model)
    return table["parameters"] + table["optimiser"] + table["reference"]


def _slots(config: Config, model: ModelConfig, devices: int) -> int:
    replicas = devices // config.rollout.tensor
    wanted = _wanted_slots(config, replicas)
    per_slot = cache_bytes_per_slot(config, model)
    fit = int(config.rollout.cache_gib * GIB // per_slot) * replicas
    if config.rollout.slots:
        if config.rollout.slots % replicas:
            raise ConfigError(f"rollout.slots={config.rollout.slots} does not divide over {replicas} rollout replicas.")
        if config.rollout.slots > fit:
            raise ConfigError(
                f"rollout.slots={config.rollout.slots} sequences need "
                f"{config.rollout.slots / replicas * per_slot / GIB:.3g} GiB of cache per device, "
                f"rollout.cache_gib={config.rollout.cache_gib:.3g}: at most rollout.slots={fit} fit."
            )
        return config.rollout.slots
    if fit == 0:
        raise ConfigError(
            f"the KV cache of one sequence of {config.data.max_prompt_tokens + config.rollout.max_new_tokens} tokens takes "
            f"{per_slot / GIB:.3g} GiB, rollout.cache_gib is {config.rollout.cache_gib:.3g}: raise it, or lower "
            f"data.max_prompt_tokens or rollout.max_new_tokens, or spread a replica over more devices (rollout.tensor)."
        )
    return min(-(-wanted // replicas) * replicas, fit)


def _wanted_slots(config: Config, replicas: int) -> int:
    """A quarter of a step's sequences, so that a slot whose sequence ends takes the next instead of waiting for the longest,
    but no fewer than use the hardware well; all of them where responses are so short that they end together."""
    sequences = config.data.prompts_per_step * config.rollout.samples
    if config.rollout.max_new_tokens <= 2 * MIN_CHUNK:
        return sequences
    return max(-(-sequences // 4), min(sequences, MIN_SLOTS * replicas))


def cache_bytes_per_slot(config: Config, model: ModelConfig) -> int:
    """KV cache of one sequence on each device of its replica. K/V heads that do not divide by `tensor` are on all of them."""
    tensor = config.rollout.tensor
    heads = model.kv_heads // tensor if model.kv_heads % tensor == 0 else model.kv_heads
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    block = block_length(longest)
    vector = model.head_dim * _itemsize(config.rollout.cache_dtype or config.rollout.dtype)
    if config.rollout.cache_dtype == "int8":
        vector += 4  # its float32 scale
    return 2 * model.layers * heads * -(-longest // block) * block * vector


def _row_tokens(config: Config, batch_devices: int, on_cpu: bool) -> int:
    """Rows no longer than a minibatch of the longest sequences would fill."""
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    sequences = max(config.train.minibatch_prompts * config.rollout.samples, config.warmup.batch * (config.warmup.steps > 0))
    most = -(-sequences // batch_devices) * longest
    tokens = max(longest, min(most, CPU_ROW_TOKENS if on_cpu else ROW_TOKENS))
    return tokens if on_cpu else -(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE


def shares_prompts(platform: str) -> bool:
    """Whether the devices' attention can read a prompt that lies once in a row for a whole group."""
    return platform != "tpu"


def row_shapes(config: Config, sequences: int, platform: str) -> list[RowShape]:
    """The shapes, falling, that a minibatch of up to `sequences` may be packed into on devices of `platform`: one, or on an
    accelerator a few, where devices have so few sequences each that the choice decides how much padding there is."""
    batch_devices = config.mesh.data * config.mesh.fsdp
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    whole = config.train.row_tokens
    lengths = [whole]
    if platform != "cpu" and sequences < MANY_SEQUENCES * batch_devices:
        least = max(longest, whole // 2)
        steps = [least + i * (whole - least) // (ROW_LENGTHS - 1) for i in range(ROW_LENGTHS)]
        lengths = sorted({-(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE for tokens in steps} | {whole}, reverse=True)
    limits = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    queries = CPU_QUERIES if platform == "cpu" else longest  # the accelerators' kernels hold no scores
    return [RowShape(tokens, batch_devices, sequences, *limits, shares_prompts(platform), queries) for tokens in lengths]


def _itemsize(dtype: str) -> int:
    return jax.numpy.dtype(dtype).itemsize


def memory_table(config: Config, model: ModelConfig) -> dict[str, int]:
    """Bytes per device by kind, from shapes and the sharding rules alone: nothing is compiled and no device is touched.

    parameters and optimiser are the master state; gradients exist during an update; the reference and the rollout weights are
    in their own dtypes (int8 with its scales); the cache is that of all slots of a replica. "host memory" is what
    `train.offload` moves off the device, counted for each device.
    """
    mesh = jax.sharding.AbstractMesh((config.mesh.data, config.mesh.fsdp, config.mesh.tensor), ("data", "fsdp", "tensor"))
    devices = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    replicas = devices // config.rollout.tensor
    rollout = jax.sharding.AbstractMesh((replicas, config.rollout.tensor), ("replica", "tensor"))
    trained = sum(_share(spec.axes, spec.shape, mesh) for spec in parameter_table(model))
    moments = {"adamw": 2 * _itemsize(config.optim.moments_dtype), "sgd": 0}[config.optim.optimizer] * trained
    reference = trained * _itemsize(config.train.dtype) if config.algo.kl_coef else 0
    offload = config.train.offload
    away = moments * (offload != "none") + reference * (offload == "all")
    return {
        "parameters": 4 * trained,
        "optimiser": moments * (offload == "none"),
        "gradients": 4 * trained,
        "reference": reference * (offload != "all"),
        "host memory": away,
        "rollout weights": _rollout_weight_bytes(config, model, rollout),
        "KV cache": config.rollout.slots // replicas * cache_bytes_per_slot(config, model),
    }


def _rollout_weight_bytes(config: Config, model: ModelConfig, mesh) -> int:
    """Bytes on one device of the rollout mesh, all in rollout.dtype, or the matrices in int8 with float32 scales."""
    total = 0
    for spec in parameter_table(model):
        share = _share(spec.axes, spec.shape, mesh)
        inputs = input_axes(spec, model.tied)
        if config.rollout.weights == "int8" and inputs:
            kept = [axis for axis in range(len(spec.shape)) if axis not in inputs]
            total += share + 4 * _share(tuple(spec.axes[a] for a in kept), tuple(spec.shape[a] for a in kept), mesh)
        else:
            total += share * _itemsize(config.rollout.dtype)
    return total


def _share(axes: tuple[str, ...], shape: tuple[int, ...], mesh) -> int:
    """Elements on one device of an array with these logical axes."""
    split = 1
    for entry in partition_spec(axes, shape, mesh):
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            split *= mesh.shape[axis]
    return int(np.prod(shape)) // split


def device_memory(device) -> int | None:
    """Bytes of memory of one accelerator; None on CPU, where the machine's memory is shared."""
    if device.platform == "cpu":
        return None
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")
