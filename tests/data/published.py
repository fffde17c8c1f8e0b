"""The published problem files, where they lie beside the repository."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def path(name: str) -> Path:
    """Where one of the files is; skips the test where it is absent."""
    if not (DATA / name).exists():
        pytest.skip(f"the published data is not here: {DATA / name}")
    return DATA / name


def published(name: str) -> list[dict]:
    """The rows of one parquet file; skips the test where it is absent."""
    from pyarrow import parquet

    return parquet.read_table(path(name)).to_pylist()
