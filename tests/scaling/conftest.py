"""The published curves, read once."""

import pytest


@pytest.fixture(scope="session")
def published():
    from scaling import published

    return published.curves()
