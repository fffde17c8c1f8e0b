"""GPUs that the CUDA compiler is told of instead of finding them: neither a GPU nor a driver is needed (the `cuda` extra is).

Two corrections of jax are made by `keep_memory_kinds`, in a process that only compiles: a described GPU cannot say which memory
is its default, and jax then forgets that an array was to lie in host memory, which `train.offload` is about.
"""

from importlib.util import find_spec

from jaxgrpo.plan.topology import Topology

# Multiprocessors, GHz, MB of second-level cache, compute capability, bytes of shared memory: of a multiprocessor, of a block.
_TARGETS = {
    "a100": (108, 1.41, 40, (8, 0), 167_936, 166_912),
    "h100": (132, 1.98, 50, (9, 0), 233_472, 232_448),
    "h200": (132, 1.98, 60, (9, 0), 233_472, 232_448),
    "b200": (148, 1.965, 126, (10, 0), 233_472, 232_448),
}
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: {core_memory} shared_memory_per_block_optin: {block_memory}
  core_count: {cores} clock_rate_ghz: {clock} l2_cache_size: {cache} memory_bandwidth: {bandwidth}
  device_memory_size: {memory} cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 10 }}
platform_name: "CUDA"
device_description_str: "{kind}"
"""
# Neither autotuning nor the kernels that need it: both run on the GPU itself.
OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def is_compiler_installed() -> bool:
    return any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def described_gpus(topology: Topology) -> list:
    """The devices of all machines. What they are only decides which kernels are chosen, not how large arrays are."""
    from jax.experimental import topologies

    keep_memory_kinds()
    chip = topology.chip
    cores, clock, cache, (major, minor), core_memory, block_memory = _TARGETS[chip.name]
    target = _TARGET.format(
        cores=cores,
        clock=clock,
        cache=cache << 20,
        major=major,
        minor=minor,
        core_memory=core_memory,
        block_memory=block_memory,
        bandwidth=int(chip.memory_bytes_per_s),
        memory=topology.memory,
        kind=chip.kind,
    )
    shape = f"1x{topology.hosts}x{topology.chips // topology.hosts}"
    return topologies.get_topology_desc(topology.name, "cuda", target_config=target, topology=shape).devices


def keep_memory_kinds() -> None:
    """From now on shardings remember the kind of memory that `with_memory_kind` names, whatever their devices say."""
    from jax._src.interpreters import pxla
    from jax.sharding import Mesh, NamedSharding

    if hasattr(NamedSharding, "_named_kind"):
        return
    update, equal, digest = NamedSharding.update, NamedSharding.__eq__, NamedSharding.__hash__

    def with_kind(self, **changes):
        kind = changes.pop("memory_kind", self.memory_kind)
        new = update(self, memory_kind=None, **changes)
        new._named_kind = kind
        return new

    NamedSharding._named_kind = None
    NamedSharding.update = with_kind
    NamedSharding.memory_kind = property(lambda self: self._named_kind or ("device" if isinstance(self.mesh, Mesh) else None))
    NamedSharding.__eq__ = lambda self, other: equal(self, other) is True and self.memory_kind == other.memory_kind
    NamedSharding.__hash__ = lambda self: hash((digest(self), self.memory_kind))
    # The executable's own shardings know no kinds either, so that comparing them with those asked for would always fail.
    pxla._maybe_get_and_check_out_shardings = lambda executable, shardings, *rest: list(shardings)
