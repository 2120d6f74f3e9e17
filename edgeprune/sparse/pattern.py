"""Which single weights may go together, by the name of the method."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil

#: Methods that zero single weights; N:M (2:4, 1:4, …) is one more.
SPARSE_METHODS = ("weight", "unstructured", "2:4")

_N_OF_M = re.compile(r"(\d{1,2}):(\d{1,2})")


@dataclass(frozen=True)
class Pattern:
    """name: weight (a rate per layer), unstructured (one threshold for all) or N:M.

    keep, of: N and M: of each M weights that follow one another along the input dimension, N stay;
    0 for the other two.
    """

    name: str
    keep: int = 0
    of: int = 0

    @property
    def rate(self) -> float | None:
        """The share of weights that N:M takes; None where --rate says it."""
        return 1 - self.keep / self.of if self.of else None

    def eased(self, share: float) -> Pattern:
        """A pattern on the way from all weights, 0, to this one, 1."""
        if not self.of:
            return self
        keep = min(ceil(self.of - share * (self.of - self.keep) - 1e-9), self.of)
        return Pattern(f"{keep}:{self.of}", keep, self.of)


def pattern_of(method: str) -> Pattern | None:
    """The pattern of a method's name; None for a method that removes channels or layers."""
    if method in ("weight", "unstructured"):
        return Pattern(method)
    found = _N_OF_M.fullmatch(method)
    if found is None:
        return None
    keep, of = int(found[1]), int(found[2])
    return Pattern(method, keep, of) if 0 < keep < of else None
