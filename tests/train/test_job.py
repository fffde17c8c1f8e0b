import pytest

from jaxgrpo.config import Config, differences, replace
from jaxgrpo.train.job import nominal_size
from jaxgrpo.train.run import RunDirectory
from jaxgrpo.train.sizes import adopt


@pytest.mark.parametrize(
    ("name", "count", "nominal"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768, 500_000_000),
        ("Qwen/Qwen2.5-72B-Instruct", 72_706_203_648, 72_000_000_000),
        ("/mnt/run1b/Qwen2.5-7B", 7_615_616_512, 7_000_000_000),
        ("cache/models--org--mini/snapshots/ab12b0c", 102_976, 102_976),
        ("Qwen/Qwen2.5-7B@d149729", 7_615_616_512, 7_000_000_000),
        ("random:miniature", 102_976, 102_976),
        ("my-70b-distilled-into-tiny", 102_976, 102_976),
    ],
)
def test_the_nominal_size_is_the_one_in_the_models_own_name_if_it_can_be(name, count, nominal):
    assert nominal_size(name, count) == nominal


def test_a_run_goes_on_under_the_family_that_its_lines_carry(tmp_path):
    run = RunDirectory(str(tmp_path))
    assert run.recorded_family() == ""
    for step in range(2):
        run.metrics.append({"model_family": "qwen2.5-base", "step": step})
    assert run.recorded_family() == "qwen2.5-base"


def test_the_key_names_the_family_and_a_resumed_run_takes_the_stored_one():
    stored, asked = replace(Config(), {"family": "my-line"}), Config()
    assert adopt(asked, stored, 1).family == "my-line"
    assert adopt(replace(asked, {"family": "other"}), stored, 1).family == "other"
    assert any("family: other here, my-line" in line for line in differences(replace(asked, {"family": "other"}), stored))
