"""Compute the committed greedy tokens with transformers: `python -m tests.rollout.make_greedy_reference` (needs torch).

The weights are not stored; numpy draws them again from the seed, and a checksum tells whether they are the same.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.model.tiny_hf_model import checksum, tiny_config, tiny_weights, write_tiny_model, write_weights

REFERENCE = Path(__file__).parent / "reference" / "greedy.json"
CASES = {
    "tied_14_2": {"tied": True, "layers": 4, "heads": 14, "kv_heads": 2, "head_dim": 64, "embed": 64},
    "untied_28_4": {"tied": False, "layers": 2, "heads": 28, "kv_heads": 4, "head_dim": 16, "embed": 112},
}
NEW_TOKENS = 64
SMALL_EMBEDDING = 1 / 8
LENGTHS = (1, 5, 16, 17, 33, 48, 2)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(11)
    return [rng.integers(3, 256, length).tolist() for length in LENGTHS]


def weights_of(case: str) -> dict[str, np.ndarray]:
    """Random weights; small tied embeddings, because a token's own large one would make the model repeat it for ever."""
    weights = tiny_weights(tiny_config(**CASES[case]))
    if CASES[case]["tied"]:
        weights["model.embed_tokens.weight"] *= np.float32(SMALL_EMBEDDING)
        weights["model.norm.weight"] /= np.float32(SMALL_EMBEDDING)
    return weights


def write_case(directory, case: str) -> Path:
    directory = write_tiny_model(directory, **CASES[case])
    write_weights(directory, weights_of(case))
    return directory


def transformers_greedy(directory) -> list[list[int]]:
    """NEW_TOKENS greedy tokens after each prompt, in float32 by transformers' `generate` on the CPU, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts():
        tokens = torch.tensor([prompt])
        mask = torch.ones_like(tokens)
        out = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
        answers.append(out[0, len(prompt) :].tolist())
    return answers


if __name__ == "__main__":
    reference = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            tokens = transformers_greedy(write_case(directory, case))
        reference[case] = {"weights": checksum(weights_of(case)), "tokens": tokens}
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(json.dumps(reference) + "\n")
