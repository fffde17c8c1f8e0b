"""Which problems make up which training step: a pure function of the step, so resuming needs no iterator state."""

from functools import lru_cache

import numpy as np

from jaxgrpo.data.hashing import permutation
from jaxgrpo.data.problem import DataError

ORDERS = ("curriculum", "shuffle")
_SALT = 0x0EDE4  # keeps this stream apart from other uses of the same seed


@lru_cache(maxsize=4)
def _epoch_order(n_problems: int, seed: int, epoch: int) -> np.ndarray:
    order = permutation(n_problems, _SALT, seed, epoch)
    order.setflags(write=False)
    return order


class PromptOrder:
    """Maps a step to the positions of its problems; the cursor (prompts consumed since the start) is step * batch.

    order "curriculum": file order in every epoch. order "shuffle": a permutation, a pure function of (seed, epoch).
    As in the paper's training, an incomplete last batch of an epoch is dropped: an epoch has n_problems // batch steps.

    Raises DataError when a batch holds more problems than there are, or when the order is not one of ORDERS.
    """

    def __init__(self, n_problems: int, batch: int, order: str, seed: int):
        if order not in ORDERS:
            raise DataError(f"data order {order!r} is not known; choose one of {', '.join(ORDERS)}")
        if batch < 1:
            raise DataError(f"a batch of {batch} prompts is not possible; set the prompts per step to 1 or more")
        if n_problems < batch:
            raise DataError(
                f"{n_problems} problems do not fill one batch of {batch} prompts; "
                f"give a larger data file or set the prompts per step to at most {n_problems}"
            )
        self.n_problems, self.batch, self.order, self.seed = n_problems, batch, order, seed

    @property
    def steps_per_epoch(self) -> int:
        return self.n_problems // self.batch

    def batch_positions(self, step: int) -> np.ndarray:
        """Positions of the problems of a step (counted from 0): int64 [batch], all different, below n_problems."""
        if step < 0:
            raise ValueError(f"step {step} is negative; steps count from 0")
        epoch, batch_index = divmod(step, self.steps_per_epoch)
        positions = np.arange(batch_index * self.batch, (batch_index + 1) * self.batch)
        if self.order == "curriculum":
            return positions
        return _epoch_order(self.n_problems, self.seed, epoch)[positions]
