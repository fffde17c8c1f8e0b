"""Looking up tokens in an embedding that is spread over the mesh, with neither the whole table nor its gradient anywhere.

Every device looks up its own part of the table for the tokens of its fsdp group, and the parts change places.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxgrpo.parallel.sharding import partition_spec

BATCH = ("data", "fsdp")


def look_up_sharded(table_VD: jax.Array, tokens_BT: jax.Array, dtype, mesh) -> jax.Array:
    """[B, T, D] in `dtype`, rows spread over data x fsdp as the tokens are. The table is sharded by the rule table; its
    gradient adds up in its own dtype."""
    vocab_axis, embed_axis = partition_spec(("vocab", "embed"), table_VD.shape, mesh)

    def local(table_VD, tokens_BT):
        if embed_axis:
            tokens_BT = jax.lax.all_gather(tokens_BT, "fsdp", axis=0, tiled=True)
        if vocab_axis:
            index = tokens_BT - jax.lax.axis_index("tensor") * len(table_VD)
            inside = (index >= 0) & (index < len(table_VD))
            x_BTD = jnp.where(inside[..., None], jnp.take(table_VD, index, axis=0, mode="clip"), 0).astype(dtype)
            x_BTD = jax.lax.psum(x_BTD, "tensor")
        else:
            x_BTD = jnp.take(table_VD, tokens_BT, axis=0, mode="clip").astype(dtype)
        return jax.lax.all_to_all(x_BTD, "fsdp", 0, 2, tiled=True) if embed_axis else x_BTD

    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(vocab_axis, embed_axis), P(BATCH, None)),
        out_specs=P(BATCH, None, None),
        check_vma=False,
    )
    return run(table_VD, tokens_BT)
