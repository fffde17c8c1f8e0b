"""What CHECKPOINT and the options of `jaxgrpo serve` come to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.cli import main
from jaxgrpo.config import SERVING_KEYS, Config, ConfigError, replace, to_yaml
from jaxgrpo.model import load_hf
from jaxgrpo.train.checkpoint import CheckpointError, save_params
from jaxgrpo.train.conversion import convert
from jaxgrpo.train.inference import find, load_weights, make_engine, serving_sizes
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model

POSITIONS = 512  # of the tiny model


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hf")
    tokenizer = write_tiny_tokenizer(directory)
    sizes = {"vocab": 512, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 96}
    return write_tiny_model(directory, stop_ids=(tokenizer.eos_token_id, 0), **sizes)


@pytest.fixture(scope="module")
def run(hf, tmp_path_factory):
    """A run directory with two steps, the second with weights of twice the size."""
    run = tmp_path_factory.mktemp("run")
    (run / "model").mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (run / "model" / name).write_bytes((hf / name).read_bytes())
    sizes = {
        "data.tokenizer": "/gone",
        "data.max_prompt_tokens": 40,
        "rollout.max_new_tokens": 24,
        "rollout.dtype": "float32",
        "rollout.slots": 512,
    }
    (run / "config.yaml").write_text(to_yaml(replace(Config(), sizes)))
    params = load_hf(hf, dtype=jnp.float32).params
    save_params(run / "checkpoints" / "9" / "params", params)
    save_params(run / "checkpoints" / "10" / "params", {name: 2 * value for name, value in params.items()})
    return run


def test_every_kind_of_checkpoint_is_found_with_its_weights(hf, run, tmp_path):
    converted = convert(str(hf), str(tmp_path / "converted"))
    embed = np.asarray(load_hf(hf, dtype=jnp.float32).params["embed"])
    for path, scale in ((hf, 1), (converted, 1), (run, 2), (run / "checkpoints" / "9", 1)):
        served = find(str(path), ["rollout.dtype=float32", "data.max_prompt_tokens=16", "rollout.slots=8"])
        engine = make_engine(served)
        weights = load_weights(served, engine)
        np.testing.assert_array_equal(jax.device_get(weights["embed"]), scale * embed)
        assert engine.settings.stop_ids == served.source.stop_ids and 0 in engine.settings.stop_ids
        assert engine.settings.slots == 8 and engine.get_tokenizer().eos_token_id in engine.settings.stop_ids


def test_a_run_is_served_greedily_with_its_own_lengths_and_slots_that_fit(run):
    served = find(str(run), [])
    assert served.name == find(str(run / "checkpoints"), []).name == str(run / "checkpoints" / "10")
    config = served.config
    assert (config.data.max_prompt_tokens, config.rollout.max_new_tokens, config.rollout.temperature) == (40, 24, 0.0)
    assert serving_sizes(config, served.source.config, 8, None).rollout.slots == 64
    assert find(str(run), ["rollout.temperature=0.5", "rollout.max_new_tokens=7"]).config.rollout.max_new_tokens == 7


def test_a_model_without_a_run_is_served_with_lengths_that_it_knows(hf):
    config = find(str(hf), []).config
    assert config.data.max_prompt_tokens + config.rollout.max_new_tokens == POSITIONS
    config = find(str(hf), ["data.max_prompt_tokens=500"]).config
    assert (config.data.max_prompt_tokens, config.rollout.max_new_tokens) == (500, 12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lr=1"], "optim.lr means nothing to a server"),
        (["rollout.slts=1"], "rollout.slts means nothing to a server"),
        (["rollout.slots=many"], "rollout.slots"),
        (["data.max_prompt_tokens=500", "rollout.max_new_tokens=13"], "the model knows 512 positions: lower --max-prompt"),
        (["rollout.tensor=3"], "rollout.tensor=3 does not divide the 8 devices"),
        (["rollout.slots=64", "rollout.cache_gib=0.0001"], "Lower --slots"),
    ],
)
def test_what_cannot_be_served_is_refused_with_value_and_remedy(hf, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_engine(find(str(hf), overrides))


def test_the_help_of_the_command_names_the_keys(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    assert all(key in text for key in SERVING_KEYS)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find(str(tmp_path), [])


def test_slots_are_what_the_memory_of_an_accelerator_holds(hf):
    served = find(str(hf), ["rollout.dtype=float32"])
    one = 2 * 2 * 2 * 16 * POSITIONS * 4  # K and V, layers, heads, head size, positions, bytes
    weights = 4 * sum(value.size for value in load_hf(hf, dtype=jnp.float32).params.values())
    config = serving_sizes(served.config, served.source.config, 1, int(weights + 10 * one / 0.8) + 1)
    assert config.rollout.tensor == 1 and config.rollout.slots == 10
