import pytest

from jaxgrpo.train.job import model_family, nominal_size


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


def test_the_family_is_that_of_the_models_own_name():
    assert model_family("Qwen/Qwen2.5-7B-Instruct") == "qwen2.5-instruct"
    assert model_family("/data/instruct-study/Qwen2.5-7B") == "qwen2.5-base"
    assert model_family("random:miniature") == "qwen2.5-miniature"
