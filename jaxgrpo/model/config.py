"""The architecture numbers of a Qwen2.5 model, read from a Hugging Face `config.json`."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo.errors import UserError


class ModelError(UserError):
    """A model directory or file that cannot be used; the message says which, why, and how to mend it."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one Qwen2 model. Names follow the field; the comment gives the key of `config.json`."""

    vocab: int  # vocab_size
    embed: int  # hidden_size
    layers: int  # num_hidden_layers
    heads: int  # num_attention_heads
    kv_heads: int  # num_key_value_heads
    head_dim: int  # head_dim, or hidden_size / num_attention_heads
    mlp: int  # intermediate_size
    tied: bool  # tie_word_embeddings
    rope_theta: float
    rms_eps: float  # rms_norm_eps
    max_positions: int  # max_position_embeddings
    init_std: float = 0.02  # initializer_range


_KEYS = {
    "vocab": "vocab_size",
    "embed": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp": "intermediate_size",
    "rms_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
}

_ROPE_PLACES = ("rope_parameters", "rope_scaling")
_ROPE_PREFIXES = ("rope", "rotary", "partial_rotary")
_ROPE_SWITCHES = ("use_mrope", "use_dynamic_ntk", "use_logn_attn")  # of relatives; published files hold them as false
_PLAIN_VALUES = (("rope_type", "default"), ("type", "default"), ("partial_rotary_factor", 1))
_PLAIN_ROPE = "Only plain rotary embeddings are supported; give a model without rope scaling."


def model_config(hf: dict, *, origin: str = "config.json") -> ModelConfig:
    """Read a ModelConfig from the parsed `config.json` of a Qwen2 model.

    Both forms are understood: the published one with a top-level `rope_theta`, and that of transformers 5 with
    `rope_parameters`. Raises ModelError for another architecture, a missing key, or a feature the forward lacks.
    """
    if hf.get("model_type") != "qwen2":
        raise ModelError(f"{origin}: model_type is {hf.get('model_type')!r}; only 'qwen2' (Qwen2.5) is supported.")
    missing = [key for key in _KEYS.values() if key not in hf]
    if missing:
        raise ModelError(f"{origin}: missing {', '.join(missing)}; give the config.json that belongs to the weights.")
    theta = rope_theta(hf, origin)
    if hf.get("use_sliding_window"):
        raise ModelError(f"{origin}: use_sliding_window is true; the published Qwen2.5 models attend to everything.")
    if hf.get("hidden_act", "silu") != "silu":
        raise ModelError(f"{origin}: hidden_act is {hf['hidden_act']!r}; Qwen2.5 uses 'silu'.")
    sizes = {name: hf[key] for name, key in _KEYS.items()}
    config = ModelConfig(
        **sizes,
        head_dim=hf.get("head_dim") or sizes["embed"] // sizes["heads"],
        tied=bool(hf.get("tie_word_embeddings", False)),
        rope_theta=theta,
        init_std=float(hf.get("initializer_range", 0.02)),
    )
    if config.heads % config.kv_heads:
        raise ModelError(f"{origin}: {config.heads} query heads do not divide by {config.kv_heads} key/value heads.")
    return config


def rope_theta(hf: dict, origin: str) -> float:
    """The base of plain rotary embeddings. ModelError for anything else that the config.json says about positions.

    Angles are told in up to three places: `rope_parameters`, `rope_scaling`, and keys of their own at the top. What any of
    them says beyond the type "default" and one base would change the logits, so that it is refused wherever it stands.
    """
    told = {"": {key: value for key, value in hf.items() if key.startswith(_ROPE_PREFIXES) and key not in _ROPE_PLACES}}
    told[""] |= {key: True for key in _ROPE_SWITCHES if hf.get(key)}
    for place in _ROPE_PLACES:
        if not isinstance(hf.get(place) or {}, dict):
            raise ModelError(f"{origin}: {place} is {hf[place]!r}, not an object. {_PLAIN_ROPE}")
        told[f"{place}."] = hf.get(place) or {}
    bases = {}
    for place, values in told.items():
        for key, value in sorted(values.items(), key=lambda item: "type" not in item[0]):  # what it is before its numbers
            if value is None or (key, value) in _PLAIN_VALUES:
                continue
            if key != "rope_theta":
                raise ModelError(f"{origin}: {place}{key} is {value!r}, which is not supported. {_PLAIN_ROPE}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ModelError(f"{origin}: {place}rope_theta is {value!r}, not a number above 0. {_PLAIN_ROPE}")
            bases[f"{place}rope_theta"] = float(value)
    if not bases:
        raise ModelError(f"{origin}: neither rope_theta nor rope_parameters.rope_theta is given.")
    if len(set(bases.values())) > 1:
        different = " and ".join(f"{key} {value:g}" for key, value in bases.items())
        raise ModelError(f"{origin}: {different} contradict each other; leave the one that belongs to the weights.")
    return next(iter(bases.values()))


def hf_config_dict(config: ModelConfig, base: dict | None = None) -> dict:
    """The `config.json` of a model: `base` (what the weights came with) kept where given, sizes from `config`."""
    if base is not None:
        return dict(base)
    written = {key: getattr(config, name) for name, key in _KEYS.items()}
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **written,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tied,
        "rope_theta": config.rope_theta,
        "initializer_range": config.init_std,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "torch_dtype": "float32",
    }


def read_json(path: Path) -> dict:
    """Parse a JSON object from `path`; ModelError when it is missing or is not JSON."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; a model directory needs it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); the file may be truncated, fetch it again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}, not an object.")
    return value
