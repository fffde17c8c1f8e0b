"""Rollouts: the engine over the Flax model and its KV cache, sampling, and the continuous-batching scheduler."""
