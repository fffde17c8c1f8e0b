"""The machine a figure was taken on: versions, load, memory, and its measured peaks.

The peaks are measured in the same process and with all devices busy at once: a large matrix product for operations, and the sum
of an array too large for any cache for bytes read. A share of them says how much of what the machine can do was reached.
"""

import importlib.metadata
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgrpo.machine import usable_cores

PACKAGES = ("jaxgrpo", "jax", "jaxlib", "flax", "numpy")


class Stopwatch:
    """Wall seconds and processor seconds of this process (all threads) since it was made."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def spread(values: list[float]) -> dict:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": [round(value, 4) for value in values],
    }


def describe() -> dict:
    """Versions, devices and load: what a reader needs to judge a figure."""
    devices = jax.devices()
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": {
            "devices": len(devices),
            "device_kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "processor": _processor(),
            "cores": len(usable_cores()),
        },
        "command": " ".join(["jaxgrpo", *sys.argv[1:]]),
        "loadavg": list(os.getloadavg()),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except FileNotFoundError:  # not Linux
        names = []
    return names[0] if names else platform.processor()


def peak_memory_mb() -> dict[str, float]:
    """Highest resident memory of this process and, on accelerators, of one device, in 10^6 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kibibytes elsewhere
    memory = {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        memory["peak_device_mb"] = stats["peak_bytes_in_use"] / 1e6
    return memory


def measured_peaks(dtype) -> dict[str, float]:
    """`flops_per_s` of a matrix product in `dtype` and `bytes_per_s` of reading memory, of all devices together."""
    devices = jax.devices()
    on_cpu = devices[0].platform == "cpu"
    each = NamedSharding(jax.sharding.Mesh(np.array(devices), ("devices",)), P("devices"))
    size, words = (1536, 2**25) if on_cpu else (8192, 2**29)
    D = len(devices)
    square = jax.jit(lambda: jnp.ones((D, size, size), dtype), out_shardings=each)()
    vector = jax.jit(lambda: jnp.ones((D, words), jnp.float32), out_shardings=each)()
    product = jax.jit(lambda a: jnp.einsum("dij,djk->dik", a, a), out_shardings=each)
    total = jax.jit(lambda a: jnp.sum(a, axis=1), out_shardings=each)
    return {
        "flops_per_s": D * 2 * size**3 / _fastest(lambda: product(square)),
        "bytes_per_s": D * 4 * words / _fastest(lambda: total(vector)),
    }


def _fastest(call: Callable, repeats: int = 7) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds)
