"""Digests of what a run reads: weights, problems, demonstrations, tokenizer. Equal content has equal digests, wherever it lies.

Weights are digested on the devices that hold them: every value's bits are hashed together with its place (MurmurHash3's
finaliser, which maps the 32 bits of a value to others one to one, so that no change of a single value can go unseen) and the
hashes are added up modulo 2^32. Sums of integers are the same in every order: on every mesh and host, from every kind of file.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import cache

import jax
import jax.numpy as jnp

from jaxgrpo.data import Problem
from jaxgrpo.parallel.sharding import replicated

_AXES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)  # a step along each axis, so that places count


def digest(*parts: str | bytes) -> str:
    """A short name of texts, in their order."""
    known = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", errors="surrogatepass") if isinstance(part, str) else part
        known.update(len(data).to_bytes(8, "little") + data)
    return known.hexdigest()[:32]


def weights_digest(params) -> str:
    """Of a tree of arrays of any sharding. In a job of several hosts all of them call it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    sums = jax.device_get([_program(_replicated(value.sharding))(value) for _, value in leaves])
    named = {jax.tree_util.keystr(path): (value.shape, int(of)) for (path, value), of in zip(leaves, sums, strict=True)}
    return digest(*(f"{name} {named[name]}" for name in sorted(named)))


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding | None:
    return replicated(sharding.mesh) if isinstance(sharding, jax.sharding.NamedSharding) else None


@cache
def _program(out: jax.sharding.Sharding | None):
    return jax.jit(_sum, out_shardings=out)


def _sum(value: jax.Array) -> jax.Array:
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[value.dtype.itemsize]
    h = jax.lax.bitcast_convert_type(value, width).astype(jnp.uint32)
    for axis, factor in enumerate(_AXES[: value.ndim]):
        h += jax.lax.broadcasted_iota(jnp.uint32, value.shape, axis) * jnp.uint32(factor)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


def problems_digest(problems: Iterable[Problem]) -> str:
    """Of problems in their order, with all that a grader looks at."""
    rows = ([p.messages, p.data_source, p.ground_truth, p.extra_info] for p in problems)
    return digest(*(json.dumps(row, default=str, sort_keys=True) for row in rows))


def demonstrations_digest(pairs: Iterable[tuple]) -> str:
    """Of pairs (messages, response) in their order."""
    return digest(*(json.dumps(pair, default=str) for pair in pairs))


def tokenizer_digest(tokenizer) -> str:
    """Of what turns text into ids and back, of the special tokens and of the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)  # a tokenizer written in Python has none
    rules = json.loads(backend.to_str()) if backend else {"vocabulary": tokenizer.get_vocab()}
    rules.pop("truncation", None)  # of a call, not of the tokenizer
    rules.pop("padding", None)
    special = {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id, "bos": tokenizer.bos_token_id}
    return digest(json.dumps(rules, sort_keys=True), json.dumps(special), str(tokenizer.chat_template))
