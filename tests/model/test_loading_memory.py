"""No host holds the model twice: memory of a process that loads and saves some 200 MB; two hosts with a half each."""

import json
import os
import socket
import subprocess
import sys

import jax.numpy as jnp
import pytest
from tiny_hf_model import write_tiny_model

MEASURE = """
import json, sys, threading, time
import jax
from jaxgrpo.model.hf import load_params, resolve_model, save_params
from jaxgrpo.parallel.mesh import trainer_mesh

def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096

class Peak(threading.Thread):
    def __enter__(self):
        self.running, self.base, self.peak = True, resident(), 0
        self.start()
        return self
    def run(self):
        while self.running:
            self.peak = max(self.peak, resident())
            time.sleep(0.0005)
    def __exit__(self, *_):
        self.running = False
        self.join()
        self.growth = max(self.peak, resident()) - self.base

directory, small, out = sys.argv[1:]
meshes = {"one device": None, "mesh": trainer_mesh((1, 4, 2))}
small = resolve_model(small)
for name, mesh in meshes.items():  # brings the compiler into memory, which is not what is measured
    save_params(load_params(small, dtype="float32", mesh=mesh), small.config, f"{out}-{name}")
source = resolve_model(directory)
measured = {}
for name, mesh in meshes.items():
    with Peak() as loading:
        params = load_params(source, dtype="float32", mesh=mesh)
    with Peak() as saving:
        save_params(params, source.config, f"{out}/{name}")
    size = sum(value.nbytes for value in params.values())
    measured[name] = {"size": size, "loading": loading.growth / size, "saving": saving.growth / size}
    params.clear()
print(json.dumps(measured))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_no_host_holds_the_whole_model_twice(tmp_path):
    sizes = {"vocab": 8192, "layers": 12, "heads": 8, "kv_heads": 4, "head_dim": 64, "embed": 512, "mlp": 2048}
    write_tiny_model(tmp_path / "in", **sizes)
    write_tiny_model(tmp_path / "small", heads=4, head_dim=16)
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in ("in", "small", "out"))]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    # The C library gives freed memory back at once, so that resident memory is memory in use.
    flags |= {"MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000"}
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["mesh"]["size"] > 180e6
    # The copy in flight is one device's share of a parameter; the largest parameter is a quarter of this model.
    assert 0.95 < measured["one device"]["loading"] < 1.35, measured
    assert 0.95 < measured["mesh"]["loading"] < 1.1, measured
    # A tensor is fetched from the devices and turned into the stored layout: two copies of a quarter of this model.
    assert max(measured[name]["saving"] for name in measured) < 0.5, measured


HOST = """
import sys
import jax
import numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
directory, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process, initialization_timeout=120)
from jaxgrpo.model.hf import ModelSource, load_params, resolve_model, save_params
from jaxgrpo.model import ModelError
from jaxgrpo.parallel.mesh import trainer_mesh

source = resolve_model(directory)
alone = load_params(source, dtype="float32")
shared = load_params(source, dtype="float32", mesh=trainer_mesh((1, 4, 2)))
held = 0
for name, value in shared.items():
    assert not value.is_fully_addressable
    for shard in value.addressable_shards:
        assert np.array_equal(np.asarray(shard.data), np.asarray(alone[name])[shard.index]), name
        held += shard.data.nbytes if shard.replica_id == 0 else 0
try:
    save_params(shared, source.config, directory + "-out")
except ModelError as error:
    assert "spread over several hosts" in str(error)
else:
    raise SystemExit("saving parameters of two hosts went through")
print(held / sum(value.nbytes for value in alone.values()))
jax.distributed.shutdown()
"""


def test_two_hosts_load_their_own_half_each(tmp_path):
    directory = write_tiny_model(tmp_path / "in", dtype=jnp.bfloat16, heads=4, kv_heads=2, head_dim=16, shards=2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(directory), port, str(process)],
            env=os.environ | flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [host.communicate(timeout=180) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], outputs
    fractions = [float(output.split()[-1]) for output, _ in outputs]
    assert sum(fractions) == pytest.approx(1) and max(fractions) < 0.6
