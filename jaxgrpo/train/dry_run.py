"""`jaxgrpo train CONFIG --dry-run`: the resolved config, the mesh and the bytes per device, on any machine, without weights."""

import jax
from rich.console import Console
from rich.table import Table

from jaxgrpo.config import Config, to_yaml
from jaxgrpo.model.parameters import count_parameters
from jaxgrpo.model.source import resolve_model
from jaxgrpo.train.sizes import GIB, device_memory, memory_table, resolve_sizes


def print_dry_run(config: Config) -> None:
    """Print what a run would use. Where the mesh is automatic, the devices of this machine form it."""
    source = resolve_model(config.model, need_weights=False)
    devices = jax.devices()
    asked = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    count = asked or len(devices)
    memory = device_memory(devices[0]) if count == len(devices) else None
    config = resolve_sizes(config, source.config, count, memory)
    console = Console(highlight=False, soft_wrap=True)
    console.print(to_yaml(config), markup=False)
    counts = count_parameters(source.config)
    console.print(f"model    {config.model}: {counts['total']:,} parameters, {counts['non_embedding']:,} without embeddings")
    sequences = config.data.prompts_per_step * config.rollout.samples
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    console.print(
        f"mesh     data {config.mesh.data} x fsdp {config.mesh.fsdp} x tensor {config.mesh.tensor} = {count} devices, "
        f"rollouts on {count // config.rollout.tensor} replicas x tensor {config.rollout.tensor}"
    )
    console.print(
        f"step     {sequences:,} sequences of up to {longest:,} tokens, "
        f"{config.data.prompts_per_step // config.train.minibatch_prompts} updates, {config.rollout.slots:,} slots, "
        f"{config.mesh.data * config.mesh.fsdp} rows of {config.train.row_tokens:,} tokens per forward and backward pass"
    )
    table = Table(title="bytes per device", title_justify="left")
    for heading in ("kind", "GiB", "held during"):
        table.add_column(heading, justify="right" if heading == "GiB" else "left")
    phases = {"gradients": "update", "rollout weights": "rollout", "KV cache": "rollout", "host memory": "always, on the host"}
    sizes = memory_table(config, source.config)
    for kind, size in sizes.items():
        table.add_row(kind, f"{size / GIB:.3f}", phases.get(kind, "always"))
    always = sum(size for kind, size in sizes.items() if kind not in phases)
    table.add_section()
    for phase in ("update", "rollout"):
        total = always + sum(size for kind, size in sizes.items() if phases.get(kind) == phase)
        table.add_row(f"{phase}, without activations", f"{total / GIB:.3f}", phase)
    console.print(table)
