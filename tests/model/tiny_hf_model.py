"""Small Qwen2.5 directories in the Hugging Face format, written with numpy and safetensors alone."""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def tiny_config(
    *,
    tied=True,
    vocab=256,
    layers=3,
    heads=14,
    kv_heads=2,
    head_dim=64,
    embed=None,
    mlp=192,
    old_style=True,
    max_positions=512,
    rope_theta=1e6,
    rms_eps=1e-6,
    dtype="float32",
) -> dict:
    """A config.json: `old_style` as the published Qwen2.5 files have it, otherwise as transformers 5 writes it.

    `embed` defaults to heads * head_dim; `head_dim` is written only where the two differ.
    """
    embed = embed or heads * head_dim
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": embed,
        "initializer_range": 0.02,
        "intermediate_size": mlp,
        "max_position_embeddings": max_positions,
        "max_window_layers": layers,
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": rms_eps,
        "tie_word_embeddings": tied,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab,
    }
    if embed != heads * head_dim:
        config["head_dim"] = head_dim
    if old_style:
        return config | {"rope_theta": rope_theta, "sliding_window": max_positions, "torch_dtype": dtype}
    return config | {
        "dtype": dtype,
        "layer_types": ["full_attention"] * layers,
        "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},
        "sliding_window": None,
    }


def tiny_weights(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors by their HF names, scaled so that logits are of order one; no trivial norm or bias."""
    rng = np.random.default_rng(seed)
    embed, mlp, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or embed // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim

    def matrix(outputs, inputs):
        return rng.standard_normal((outputs, inputs), np.float32) / np.float32(inputs**0.5)

    def norm():
        return 1 + 0.2 * rng.standard_normal(embed, np.float32)

    weights = {"model.embed_tokens.weight": 2 * matrix(vocab, embed)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for letter, size in (("q", queries), ("k", keys), ("v", keys)):
            weights[f"{prefix}self_attn.{letter}_proj.weight"] = matrix(size, embed)
            weights[f"{prefix}self_attn.{letter}_proj.bias"] = 0.3 * rng.standard_normal(size, np.float32)
        weights[f"{prefix}self_attn.o_proj.weight"] = matrix(embed, queries)
        weights[f"{prefix}mlp.gate_proj.weight"] = matrix(mlp, embed)
        weights[f"{prefix}mlp.up_proj.weight"] = matrix(mlp, embed)
        weights[f"{prefix}mlp.down_proj.weight"] = matrix(embed, mlp)
        weights[f"{prefix}input_layernorm.weight"] = norm()
        weights[f"{prefix}post_attention_layernorm.weight"] = norm()
    weights["model.norm.weight"] = norm()
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = 2 * matrix(vocab, embed)
    return {name: np.asarray(value, np.float32) for name, value in weights.items()}


def write_tiny_model(directory, *, seed=0, shards=1, dtype=np.float32, stop_ids=(1, 2), **sizes) -> Path:
    """Write config.json, generation_config.json and the weights (`shards` > 1: several files with an index).

    `dtype` is that of the file; `sizes` are the arguments of `tiny_config`. Returns the directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(dtype=np.dtype(dtype).name, **sizes)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {"bos_token_id": 0, "eos_token_id": list(stop_ids)})
    weights = {name: value.astype(dtype) for name, value in tiny_weights(config, seed).items()}
    write_weights(directory, weights, shards)
    return directory


def write_weights(directory: Path, weights: dict[str, np.ndarray], shards: int = 1) -> None:
    """Write tensors into one safetensors file, or dealt out over several with an index."""
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        part = dict(list(weights.items())[shard::shards])
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= {name: file for name in part}
    total = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)


def write_json(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


def checksum(weights: dict[str, np.ndarray]) -> str:
    """Identifies weights, so that a reference is never compared with those of another generator."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].tobytes())
    return digest.hexdigest()
