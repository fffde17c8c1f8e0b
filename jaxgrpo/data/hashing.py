"""Counter-based random numbers: a 64-bit hash of integers, so that any draw is a pure function of its coordinates.

The mixing function is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014). Unlike numpy's generators its values are fixed for good: no data order changes with the numpy version.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def mix(words: np.ndarray) -> np.ndarray:
    """SplitMix64's step: uint64 [...] -> uint64 [...], a bijection with well-mixed output bits."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        words = words + _GOLDEN
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))


def hash_words(*coordinates: int | np.ndarray) -> np.ndarray:
    """Hash integer coordinates (scalars or arrays that broadcast together) to uint64 of the broadcast shape."""
    state = np.zeros((), np.uint64)
    for coordinate in coordinates:
        if isinstance(coordinate, int):
            coordinate = np.uint64(coordinate & _MASK)
        state = mix(state ^ np.asarray(coordinate).astype(np.uint64))
    return state


def permutation(n: int, *coordinates: int) -> np.ndarray:
    """A permutation of range(n), int64 [n], that is a pure function of the coordinates."""
    return np.argsort(hash_words(*coordinates, np.arange(n)), kind="stable")
