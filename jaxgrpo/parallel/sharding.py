"""The rule table from logical axis names to mesh axes, and the shardings that follow from it.

Trainer mesh: `data` (slices, replicas of the state), `fsdp` (state sharded over it), `tensor`. Rollout mesh: `replica`
(slots are spread over it), `tensor`. A logical axis is sharded over those of its mesh axes that the mesh has.
"""

import math

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "replica"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "layers": (),
    "head_dim": (),
    "embed_norm": (),
}


def partition_spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh) -> P:
    """The PartitionSpec of an array with these logical axes on `mesh` (a Mesh or AbstractMesh).

    A dimension that does not divide by the mesh axes is replicated: K/V heads fewer than `tensor` are held by every chip.
    """
    entries = []
    for name, size in zip(axes, shape, strict=True):
        mesh_axes = (
            () if name is None else tuple(a for a in RULES[name] if mesh.shape.get(a, 1) > 1 and a not in mesh.manual_axes)
        )
        if size % math.prod(mesh.shape[a] for a in mesh_axes):
            mesh_axes = ()
        entries.append(mesh_axes if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None))
    return P(*entries)


def named_sharding(mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """NamedSharding of an array with these logical axes."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh))


def replicated(mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def on_host(x) -> bool:
    """Whether an array lies in host memory (`with_memory_kind`); inside jit a traced one too."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def to_device(tree):
    """Inside jit: the arrays that lie in host memory brought to the device, the others as they are."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if on_host(x) else x, tree)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin an activation's layout inside jit by logical axes; does nothing where no mesh is set (`jax.set_mesh`).

    Inside `shard_map` the mesh axes that it maps over are left out: x is one device's part along them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or all(mesh.shape[a] == 1 for a in mesh.axis_names if a not in mesh.manual_axes):
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))
