"""Devices and meshes: virtual CPU devices, the trainer's mesh and the rollout mesh over the same devices."""

import math
import os

from jaxgrpo.errors import UserError
from jaxgrpo.machine import usable_cores

AXES = ("data", "fsdp", "tensor")


class MeshError(UserError):
    """A mesh that the devices at hand cannot form; the message says what would."""

    exit_code = 2


def prepare_cpu_devices(count: int) -> None:
    """Ask XLA for `count` virtual CPU devices (0: one per core). Only before jax is imported; a GPU or TPU is unaffected.

    XLA runs small matrix products on one thread, so one device per core with the batch sharded over them uses the machine.
    A count that the user already put into XLA_FLAGS is kept.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        count = count or len(usable_cores())
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()


def mesh_shape(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
    """Fill in `fsdp` = 0 with the devices that `data` and `tensor` leave. MeshError if the product is not `devices`."""
    if fsdp == 0:
        fsdp = max(1, devices // (data * tensor))
    if data * fsdp * tensor != devices:
        raise MeshError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} needs {data * fsdp * tensor} devices, there are {devices}: "
            f"set mesh.data, mesh.fsdp, mesh.tensor to a product of {devices} (mesh.fsdp=0 takes what is left)."
        )
    return data, fsdp, tensor


def rollout_tensor_size(heads: int, devices: int, weight_bytes: int, free_bytes: int | None) -> int:
    """The smallest divisor of the query heads and of the devices at which the weights take at most half of
    what is free on a device."""
    if free_bytes is None:
        return 1
    for size in range(1, devices + 1):
        if heads % size == 0 and devices % size == 0 and weight_bytes / size <= 0.5 * free_bytes:
            return size
    return max(size for size in range(1, devices + 1) if heads % size == 0 and devices % size == 0)


def trainer_mesh(shape: tuple[int, int, int], devices=None):
    """Mesh (data, fsdp, tensor) over all devices, slice by slice and host by host."""
    import jax
    import numpy as np

    devices = host_major(jax.devices() if devices is None else devices)
    if math.prod(shape) != len(devices):
        raise MeshError(f"mesh {shape} needs {math.prod(shape)} devices, there are {len(devices)}.")
    return jax.sharding.Mesh(np.asarray(devices).reshape(shape), AXES)


def host_major(devices) -> list:
    """Devices by slice (of several slices joined over the data centre's network) and host, else as they were."""
    return sorted(devices, key=lambda device: (getattr(device, "slice_index", 0) or 0, device.process_index))


def rollout_mesh(trainer, tensor: int):
    """Mesh (replica, tensor) over this host's devices, in the trainer's order: hosts generate independently."""
    import jax
    import numpy as np

    own = [device for device in trainer.devices.flat if device.process_index == jax.process_index()]
    return jax.sharding.Mesh(np.asarray(own).reshape(-1, tensor), ("replica", "tensor"))


def hosts_mesh(trainer, tensor: int):
    """Mesh (host, replica, tensor) over all devices in the trainer's order, the parts along `host` being the rollout meshes.

    The hand-over is compiled for it: jit refuses an output on another order of the devices than its inputs'.
    """
    import jax

    hosts = len({device.process_index for device in trainer.devices.flat})
    return jax.sharding.Mesh(trainer.devices.reshape(hosts, -1, tensor), ("host", "replica", "tensor"))
