"""Numbers that look random and are the same for ever, whatever the version of a library: what is stored depends on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from data.hashing import hash_integers


def uniform(size: int, stream: int) -> NDArray[np.float64]:
    """Returns numbers between 0 and 1, both exclusive, [size]; another stream has others."""
    hashes = hash_integers(np.arange(size, dtype=np.int64), hash_integers(np.array([stream], np.int64))[0])
    return ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def standard_normal(size: int, stream: int) -> NDArray[np.float64]:
    """Returns standard normal numbers, [size]."""
    numbers: NDArray[np.float64] = special.ndtri(uniform(size, stream))
    return numbers
