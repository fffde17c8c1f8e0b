"""Compute the committed reference logits with transformers: `python tests/model/make_reference.py` (needs torch).

The weights are not stored; numpy draws them again from the seed, and a checksum tells whether they are the same.
"""

import tempfile
from pathlib import Path

import numpy as np
from tiny_hf_model import checksum, tiny_config, tiny_weights, write_tiny_model

REFERENCE = Path(__file__).parent / "reference"
CASES = {
    "tied_14_2": {"tied": True, "heads": 14, "kv_heads": 2, "head_dim": 64},
    "untied_28_4": {"tied": False, "heads": 28, "kv_heads": 4, "head_dim": 16},
}


def tokens_of(vocab: int, rows: int = 2, length: int = 20, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, (rows, length))


def transformers_logits(directory, tokens_BT: np.ndarray, **inputs) -> np.ndarray:
    """Logits [B, T, V] in float32 by transformers on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens_BT), **inputs).logits.numpy()


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for name, sizes in CASES.items():
        config = tiny_config(**sizes)
        tokens_BT = tokens_of(config["vocab_size"])
        with tempfile.TemporaryDirectory() as directory:
            logits_BTV = transformers_logits(write_tiny_model(directory, **sizes), tokens_BT)
        weights = checksum(tiny_weights(config))
        np.savez_compressed(REFERENCE / f"{name}.npz", tokens=tokens_BT, logits=logits_BTV, weights=weights)
