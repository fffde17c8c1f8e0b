"""jaxgrpo: GRPO post-training of the Qwen2.5 family in JAX, and the scaling law of its curves."""

__version__ = "0.1.0"
