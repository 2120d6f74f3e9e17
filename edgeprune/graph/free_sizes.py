"""Sizes that a model leaves free beside the batch: height, width, the length of a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

#: Where the user names no largest size.
ANY = 2**20

#: The name of the batch where it isn't dimension 0 of every input: layers, batch, width, say.
BATCH = "batch"


@dataclass(frozen=True)
class FreeSize:
    """One size: from `least` to `most`, in steps of `step`."""

    least: int
    most: int = ANY
    step: int = 1

    def __str__(self) -> str:
        upwards = "up" if self.most >= ANY else str(self.most)
        steps = f" in steps of {self.step}" if self.step > 1 else ""
        return f"{self.least}..{upwards}{steps}"

    def within(self, size: int) -> int:
        """The size nearest to `size` that this one can be."""
        lowest, highest = -(-self.least // self.step), self.most // self.step
        return min(max(size // self.step, lowest), highest) * self.step

    def takes(self, size: int) -> bool:
        return self.within(size) == size


@dataclass(frozen=True)
class FreeSizes:
    """Which sizes are free, by name. places: of each input tensor, in call order, {dimension:
    name}; the same name in two places is the same size."""

    places: tuple[Mapping[int, str], ...] = ()
    sizes: Mapping[str, FreeSize] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sizes)

    def __str__(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self.sizes.items())

    def at(self, number: int) -> Mapping[int, str]:
        """The free dimensions of one tensor."""
        return self.places[number] if number < len(self.places) else {}

    def of(self, tensors: Sequence[Tensor]) -> dict[str, int]:
        """What each free size is in these tensors."""
        return {
            name: int(tensor.shape[dim])
            for number, tensor in enumerate(tensors)
            for dim, name in self.at(number).items()
        }

    def without(self, names: Sequence[str]) -> FreeSizes:
        """These without some, which are fixed then."""
        return FreeSizes(
            tuple({d: n for d, n in place.items() if n not in names} for place in self.places),
            {name: size for name, size in self.sizes.items() if name not in names},
        )

    def narrowed(self, name: str, size: FreeSize) -> FreeSizes:
        """These with another range for one."""
        return replace(self, sizes={**self.sizes, name: size})

    def renamed(self, name: str, new: str) -> FreeSizes:
        """These with another name for one."""
        return FreeSizes(
            tuple({d: new if n == name else n for d, n in place.items()} for place in self.places),
            {new if n == name else n: size for n, size in self.sizes.items()},
        )

    def upwards_of(self, example: Mapping[str, int]) -> FreeSizes:
        """These with what they are in the example as the smallest."""
        return replace(self, sizes={n: replace(s, least=example[n]) for n, s in self.sizes.items()})

    def others(self, example: Mapping[str, int]) -> list[dict[str, int]]:
        """Sizes to try a model at beside those of its example: larger ones, none like another where
        their ranges allow, nor when they were halved a few times, and the smallest. None where
        nothing is free."""
        if not self:
            return []
        larger, smallest = {}, {}
        for i, (name, size) in enumerate(self.sizes.items()):
            apart = example[name] // (2 + i) + (i + 1) * size.step
            up = size.within(example[name] + apart)
            # Where the example is the largest, the other ones are smaller.
            down = size.within(example[name] - apart // 2)
            larger[name] = up if up != example[name] else down
            smallest[name] = size.within(size.least)
        return [larger, smallest]


NOTHING_FREE = FreeSizes()
