"""Weight-only int8: a matrix as int8 values and one float32 scale per output channel, and products with it.

Symmetric: w ~ values * scale with scale = max |w| / 127 over the inputs of each output channel. The scale multiplies the
product, so that a decoded token reads one byte a weight. Activations stay as they are. Written here because the libraries do
something else: qwix 0.1.8 multiplies the whole matrix by its scales in float32 before a product with floating-point
activations, and aqtp rounds the activations too.

Shapes: D embed, V vocab; a matrix is [*inputs, *outputs].
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[])
@dataclass(frozen=True)
class Quantised:
    """values int8 in the shape of the matrix, scale float32 in the shape of its outputs."""

    values: jax.Array
    scale: jax.Array


def quantise(x: jax.Array, axes: int | tuple[int, ...]) -> Quantised:
    """x in int8 with one scale for all entries along `axes`, which the scale does not have.

    NaN and infinity make a scale that is not finite, so that they are not lost."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=axes, keepdims=True) / 127.0, 1e-30)
    return Quantised(jnp.round(x / scale).astype(jnp.int8), jnp.squeeze(scale, axes))


def product(equation: str, x: jax.Array, w: jax.Array | Quantised, *, dtype=None) -> jax.Array:
    """einsum(equation, x, w) in `dtype` (default: that of x); w is a plain matrix, or a quantised one whose output axes come
    last in the result."""
    if not isinstance(w, Quantised):
        return jnp.einsum(equation, x, w, preferred_element_type=dtype)
    # Tied to x, the conversion stays in the decoding loop: XLA would move it out and keep a floating-point copy of all weights.
    x, values = jax.lax.optimization_barrier((x, w.values))
    out = jnp.einsum(equation, x, values.astype(x.dtype), preferred_element_type=jnp.float32)
    return (out * w.scale).astype(dtype or x.dtype)


def look_up(table_VD: jax.Array | Quantised, tokens: jax.Array, dtype) -> jax.Array:
    """Rows [..., D] of a table in `dtype`; a token outside it reads the nearest row. A quantised table has a scale per row."""
    take = partial(jnp.take, indices=tokens, axis=0, mode="clip")
    if not isinstance(table_VD, Quantised):
        return take(table_VD).astype(dtype)
    return (take(table_VD.values) * take(table_VD.scale)[..., None]).astype(dtype)
