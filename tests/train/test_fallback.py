"""A damaged newest checkpoint: whoever named the run gets the one before and is told; whoever named the step gets an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxgrpo.config import CheckpointConfig, Config, replace, to_yaml
from jaxgrpo.model import load_hf
from jaxgrpo.train.checkpoint import CheckpointError, Checkpoints
from jaxgrpo.train.conversion import export
from jaxgrpo.train.inference import find, load_newest, make_engine
from jaxgrpo.train.state import TrainState
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model

NUMBERS = ["rollout.dtype=float32", "data.max_prompt_tokens=16", "rollout.max_new_tokens=8", "rollout.slots=8"]


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hf")
    tokenizer = write_tiny_tokenizer(directory)
    return write_tiny_model(directory, stop_ids=(tokenizer.eos_token_id,), vocab=512, layers=1, heads=2, head_dim=16, mlp=32)


@pytest.fixture
def run(hf, tmp_path):
    """A run of steps 2, 4 and 6, whose weights are 2, 4 and 6 times those of the model."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    for file in hf.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / "run" / "model" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(replace(Config(), {"rollout.dtype": "float32"})))
    params = load_hf(hf, dtype=jnp.float32).params
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", CheckpointConfig(every=1, keep=3))
    for step in (2, 4, 6):
        weights = {name: step * value for name, value in params.items()}
        checkpoints.save(step, TrainState(weights, {"count": jnp.zeros(())}), {"step": step}, {})
        checkpoints.wait()
    checkpoints.close()
    return tmp_path / "run"


def damage(run, step: int, part: str = "params") -> None:
    """Flip one bit: in the middle of the stored arrays, or in the last digit of the meta's checksum."""
    folder = run / "checkpoints" / str(step) / part
    file = folder / "metadata" if part == "meta" else max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[-3 if part == "meta" else len(data) // 2] ^= 1
    file.write_bytes(data)


def exported_scale(hf, place, out, capsys) -> tuple[float, str]:
    """How large the exported weights are, and what was said."""
    export(str(place), str(out))
    name = "model.norm.weight"
    theirs, ours = (load_file(folder / "model.safetensors")[name].astype(np.float32) for folder in (hf, out))
    return float((ours / theirs).mean()), capsys.readouterr().out


@pytest.mark.parametrize("part", ["params", "meta"])
def test_an_export_of_a_run_takes_the_newest_checkpoint_that_can_be_read(part, hf, run, tmp_path, capsys):
    damage(run, 6, part)
    for number, place in enumerate((run, run / "checkpoints")):
        scale, said = exported_scale(hf, place, tmp_path / f"out{number}", capsys)
        assert scale == 4
        assert f"checkpoints/6{'/params' if part == 'params' else ''} cannot be read" in said
        assert "checkpoint 4 is used instead" in said


def test_a_server_or_an_evaluation_of_a_run_takes_the_newest_checkpoint_that_can_be_read(hf, run):
    damage(run, 6)
    damage(run, 4, "meta")
    said = []
    served = find(str(run), NUMBERS)
    assert served.step_number == 6
    served, weights = load_newest(served, make_engine(served), said.append)
    assert served.step_number == 2 and served.name.endswith("checkpoints/2")
    embed = np.asarray(load_hf(hf, dtype=jnp.float32).params["embed"])
    np.testing.assert_array_equal(jax.device_get(weights["embed"]), 2 * embed)
    assert ["checkpoint 4 is used instead" in said[0], "checkpoint 2 is used instead" in said[1]] == [True, True]


def test_a_damaged_step_that_was_named_is_an_error(run, tmp_path):
    damage(run, 6)
    step = run / "checkpoints" / "6"
    with pytest.raises(CheckpointError, match="6/params cannot be read, it may be damaged .*: give another step"):
        export(str(step), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    served = find(str(step), NUMBERS)
    with pytest.raises(CheckpointError, match="give another step"):
        load_newest(served, make_engine(served))


def test_a_run_without_a_sound_checkpoint_is_an_error(run, tmp_path):
    for step in (2, 4, 6):
        damage(run, step)
    with pytest.raises(CheckpointError, match="2/params cannot be read.*none of the checkpoints there can"):
        export(str(run), str(tmp_path / "out"))
