"""Log-probabilities of given next tokens without ever holding [tokens, vocab] logits: token chunks, recomputed backwards.

Shapes: B rows, T positions, D embed, V vocab, C tokens of a chunk.
"""

import jax
import jax.numpy as jnp


def next_token_logprobs(
    x_BTD: jax.Array, output_DV: jax.Array, tokens_BT: jax.Array, temperature: float, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """(logp_BT, entropy_BT) in float32, aligned with the tokens: position t holds log p(token t | tokens before it).

    x_BTD are the final hidden states; x[:, t-1] predicts token t, so column 0 (which nothing predicts) is 0. Probabilities are
    softmax(logits / temperature). At most `chunk` tokens' logits per call exist at a time, forwards and backwards.
    """
    B, T, D = x_BTD.shape
    chunk_T = max(1, min(T - 1, chunk // B))
    pad = -(T - 1) % chunk_T
    states_BTD = jnp.pad(x_BTD[:, :-1], ((0, 0), (0, pad), (0, 0)))
    targets_BT = jnp.pad(tokens_BT[:, 1:], ((0, 0), (0, pad)))
    n = (T - 1 + pad) // chunk_T
    states_nBCD = jnp.moveaxis(states_BTD.reshape(B, n, chunk_T, D), 1, 0)
    targets_nBC = jnp.moveaxis(targets_BT.reshape(B, n, chunk_T), 1, 0)

    @jax.checkpoint
    def one_chunk(states_BCD, targets_BC):
        logits_BCV = jnp.einsum("BCD,DV->BCV", states_BCD, output_DV, preferred_element_type=jnp.float32) / temperature
        logz_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        chosen_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1, mode="clip")[..., 0]
        log_probs_BCV = jax.lax.stop_gradient(logits_BCV - logz_BC[..., None])
        entropy_BC = -jnp.sum(jnp.exp(log_probs_BCV) * log_probs_BCV, axis=-1)
        return chosen_BC - logz_BC, entropy_BC

    if n == 1:
        logp_nBC, entropy_nBC = jax.tree.map(lambda a: a[None], one_chunk(states_nBCD[0], targets_nBC[0]))
    else:
        _, (logp_nBC, entropy_nBC) = jax.lax.scan(lambda _, xs: (None, one_chunk(*xs)), None, (states_nBCD, targets_nBC))

    def aligned(value_nBC):
        value_BT = jnp.moveaxis(value_nBC, 0, 1).reshape(B, -1)[:, : T - 1]
        return jnp.pad(value_BT, ((0, 0), (1, 0)))

    return aligned(logp_nBC), aligned(entropy_nBC)
