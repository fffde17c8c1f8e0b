"""Subsets for data-reuse runs: a part of the training file, to be seen tau times, at the same number of samples.

As in the paper: of the first 51,200 rows, rows // tau are drawn, easy and hard ones in their own shares, with numpy's
RandomState(seed) and RandomState(seed + 1), and stay in curriculum order. One seed for all makes the subsets nested, each
in the larger ones, contrary to what the paper says of them; `independent` draws each with a seed of its own.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxgrpo.aside import replacing
from jaxgrpo.data.files import write_parquet
from jaxgrpo.data.prepare import EASY, draw, pass_rate, rated_rows
from jaxgrpo.data.problem import DataError
from jaxgrpo.data.repair import Repairs

ROWS = 51_200  # 100 steps of 512 prompts


def subset_positions(easy: np.ndarray, size: int, seed: int | list[int]) -> np.ndarray:
    """Positions of a subset of `size` rows in rising order. easy: bool for each row of the whole."""
    count = int(size * (easy.sum() / len(easy)))
    first, second = (seed, seed + 1) if isinstance(seed, int) else ([*seed, 0], [*seed, 1])
    chosen = [draw(np.flatnonzero(easy), count, first), draw(np.flatnonzero(~easy), size - count, second)]
    return np.sort(np.concatenate(chosen))


def write_subsets(
    train_file: str,
    out: Path,
    taus: Sequence[int],
    *,
    seed: int = 42,
    rows: int = 0,
    independent: bool = False,
    shuffle: bool = False,
) -> dict[int, Path]:
    """One file `sampled_1_TAU_SIZE.parquet` for each tau; returns the paths by tau.

    rows: of the training file to draw from, 0 for the first 51,200 or all there are. shuffle: rows in random order, the same
    in every epoch, instead of the curriculum's: a control. Raises DataError for taus and rows that do not fit the file.
    """
    repairs = Repairs()
    table = rated_rows(train_file, repairs)
    rows = rows or min(ROWS, len(table))
    if not 0 < rows <= len(table):
        raise DataError(f"--rows {rows}: {train_file} has {len(table)} rows; give 1 to {len(table)}")
    easy = np.array([pass_rate(row) >= EASY for row in table[:rows]])
    for tau in taus:
        if not 1 <= tau <= rows:
            raise DataError(f"--tau {tau}: the subset would have {rows // tau if tau > 0 else 'no'} rows; give 1 to {rows}")
    drawn = {}
    for tau in taus:
        positions = subset_positions(easy, rows // tau, [seed, tau] if independent else seed)
        if shuffle:
            positions = np.random.RandomState([seed, tau, 2]).permutation(positions)
        drawn[tau] = positions
    paths = {tau: out / f"sampled_1_{tau}_{len(positions)}.parquet" for tau, positions in drawn.items()}
    with replacing(out, [path.name for path in paths.values()], print):
        for tau, positions in drawn.items():
            write_parquet(paths[tau], [table[position] for position in positions])
    return paths
