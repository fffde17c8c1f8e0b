import pytest
from engines import SMALL, load

from tests.model.tiny_hf_model import write_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random model of two layers whose logits differ by several units."""
    return load(write_tiny_model(tmp_path_factory.mktemp("small"), **SMALL))
