"""Qwen2.5 in Flax: the forward pass, its parameter table, and Hugging Face weights in and out."""

from jaxgrpo.model.config import ModelConfig, ModelError
from jaxgrpo.model.hf import load_hf, save_hf
from jaxgrpo.model.qwen2 import Qwen2

__all__ = ["ModelConfig", "ModelError", "Qwen2", "load_hf", "save_hf"]
