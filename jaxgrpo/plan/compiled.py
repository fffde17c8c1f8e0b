"""What the compiler of an accelerator says of a run's programs, without the accelerator: libtpu (the `tpu` extra) compiles them
for a described slice, XLA's CUDA plugin (the `cuda` extra) for described GPUs.

`prepare_environment` must run before jax is imported. For a TPU a program takes one to several minutes of a core, for GPUs
seconds.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

from jaxgrpo.plan import gpus
from jaxgrpo.plan.topology import Chip, Topology

CHEAP = {"exec_time_optimization_effort": -1.0}  # less search for fast instructions: several times quicker to compile


def is_available(chip: Chip) -> bool:
    return find_spec("libtpu") is not None if chip.is_tpu else gpus.is_compiler_installed()


def prepare_environment() -> None:
    """No accelerator and no driver is looked for, and several processes may compile at a time."""
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.update(TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-4")  # or libtpu asks, and complains
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"


def described_devices(topology: Topology) -> list:
    """Devices to compile for, none of which is there."""
    from jax.experimental import topologies

    if topology.chip.is_tpu:
        return topologies.get_topology_desc(topology.name, platform="tpu").devices
    return gpus.described_gpus(topology)


def _trainer_mesh(config, topology: Topology):
    from jaxgrpo.parallel.mesh import trainer_mesh

    return trainer_mesh((config.mesh.data, config.mesh.fsdp, config.mesh.tensor), described_devices(topology))


def training_programs(config, model, topology: Topology) -> Iterator[tuple]:
    """(name, function, abstract arguments) of the update and of the reference's pass of a resolved config on all devices."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxgrpo.train.optimizer import make_optimizer
    from jaxgrpo.train.rows import pack
    from jaxgrpo.train.sizes import row_shapes
    from jaxgrpo.train.state import abstract_params, abstract_state, host_shardings, parameter_shardings
    from jaxgrpo.train.step import make_score, make_update, rows_sharding

    mesh = _trainer_mesh(config, topology)
    optimizer, temperature = make_optimizer(config.optim), config.rollout.temperature
    shape = row_shapes(config, config.train.minibatch_prompts * config.rollout.samples, topology.chip.platform)[0]
    rows = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows_sharding(mesh)), pack([], shape, pad_id=0)[0]
    )
    logp, used = rows.behaviour_logp, jax.ShapeDtypeStruct((), np.int32)
    offload = config.train.offload
    state = abstract_state(model, optimizer, mesh, offload != "none")
    shardings = parameter_shardings(model, mesh)
    reference = abstract_params(model, host_shardings(shardings) if offload == "all" else shardings, jnp.bfloat16)
    update = make_update(model, config.train, config.algo, temperature, config.optim.clip_norm, optimizer, mesh)
    yield "update", update, (state, rows, logp, logp if config.algo.kl_coef else None, used)
    yield "score", make_score(model, config.train, temperature, mesh), (reference, rows, used)


def handover_program(config, model, topology: Topology) -> tuple:
    """(function, abstract arguments) of the weights' way from the trainer's mesh to a copy on every host, over all devices in
    host-major order: jit would refuse an output on another order."""
    from jaxgrpo.parallel.mesh import hosts_mesh
    from jaxgrpo.rollout.layout import make_handover
    from jaxgrpo.train.state import abstract_params, parameter_shardings

    mesh = _trainer_mesh(config, topology)
    params = abstract_params(model, parameter_shardings(model, mesh))
    across = hosts_mesh(mesh, config.rollout.tensor)
    return make_handover(model, across, config.rollout.dtype, config.rollout.weights or config.rollout.dtype), (params,)


def rollout_engine(config, model, host: Topology):
    """The engine that one host runs, or the hosts that share a replica: `host` are their chips alone."""
    import jax
    import numpy as np

    from jaxgrpo.rollout.engine import Engine
    from jaxgrpo.train.sizes import engine_settings

    whole = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    mesh = jax.sharding.Mesh(np.array(described_devices(host)).reshape(-1, config.rollout.tensor), ("replica", "tensor"))
    settings = engine_settings(config, stop_ids=(151643, 151645), pad_id=151643)
    return Engine(model, replace(settings, slots=settings.slots * host.chips // whole), mesh)


def bytes_of(function, arguments, chip: Chip) -> dict[str, int]:
    """The compiler's memory analysis of one program, bytes per chip of the chip's own memory."""
    m = function.lower(*arguments).compile(CHEAP if chip.is_tpu else gpus.OPTIONS).memory_analysis()
    return {
        "arguments": m.argument_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "aliased": m.alias_size_in_bytes,
    }


def program_bytes(program: dict) -> int:
    """What one program needs by itself."""
    return program["arguments"] + program["temporaries"] + program["outputs"] - program["aliased"]


def training_peaks(programs: dict[str, dict], held: dict[str, int]) -> dict[str, int]:
    """The most that a chip holds in each phase: the update beside the reference, the reference's pass beside the state."""
    return {
        "update": program_bytes(programs["update"]) + held["reference"],
        "score": program_bytes(programs["score"]) + held["parameters"] + held["optimiser"],
    }


def largest_rollout_programs(engine, chip: Chip) -> dict[str, dict]:
    """The memory of the largest program of each kind: prefill, insert, decode, resize."""
    programs = {}
    for name, function, arguments in engine.programs():
        kind = name.split()[0]
        if kind not in programs:
            programs[kind] = bytes_of(function, arguments, chip) | {"name": name}
    return programs


def rollout_residents(programs: dict[str, dict]) -> dict[str, int]:
    """What lives through a rollout: the sampler's weights, the slots with their cache, and one prefix."""
    weights = programs["prefill"]["arguments"]
    return {"weights": weights, "slots": programs["decode"]["arguments"] - weights, "prefix": programs["prefill"]["outputs"]}


def rollout_temporaries(programs: dict[str, dict]) -> int:
    """What a rollout holds besides weights and slots: one prefix, and what the hungriest program needs."""
    own = [p["temporaries"] + p["outputs"] - p["aliased"] for kind, p in programs.items() if kind != "prefill"]
    return programs["prefill"]["outputs"] + max(*own, programs["prefill"]["temporaries"])


def rollout_peak(programs: dict[str, dict], held: dict[str, int]) -> int:
    """The most that a chip holds in a rollout: training's state, the sampler's weights, the slots, and the temporaries."""
    residents = rollout_residents(programs)
    state = sum(held[kind] for kind in ("parameters", "optimiser", "reference"))
    return state + residents["weights"] + residents["slots"] + rollout_temporaries(programs)
