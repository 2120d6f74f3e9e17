"""Least squares whose coefficients can't be negative: rates, shares, megabytes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nonnegative(a: Array, b: Array) -> Array:
    """The x >= 0 that brings a·x closest to b, for a few columns (each subset is tried).

    a: (rows, columns), of whatever scales; b: (rows,).
    """
    columns = a.shape[1]
    scale = np.maximum(np.abs(a).max(axis=0), 1e-300)
    scaled = a / scale
    best, least = np.zeros(columns), float(b @ b)
    for count in range(1, columns + 1):
        for used in map(list, combinations(range(columns), count)):
            part = np.linalg.lstsq(scaled[:, used], b, rcond=None)[0]
            if (part < 0).any():
                continue
            missed = scaled[:, used] @ part - b
            if float(missed @ missed) < least:
                least = float(missed @ missed)
                best = np.zeros(columns)
                best[used] = part
    return np.asarray(best / scale)
