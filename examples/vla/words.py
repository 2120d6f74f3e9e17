"""Instructions: a small grammar, as token numbers of a fixed length, for many episodes at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Tokens of an instruction, the padding at its end included.
LENGTH = 10
COLOURS = ("red", "green", "blue", "yellow", "purple")
#: Each shape with another word for it.
SHAPES = (("circle", "disc"), ("square", "box"), ("triangle", "wedge"), ("cross", "plus"))
EDGES = ("left", "right", "top", "bottom")

_TOUCH = (
    "touch the C S",
    "tap the C S",
    "reach the C S",
    "go to the C S",
    "touch the S that is C",
)
_PUSH = (
    "push the C S to the E edge",
    "slide the C S to the E",
    "move the C S to the E side",
    "to the E edge push the C S",
    "push the S that is C to the E edge",
)
# What a colour, a shape and an edge are until they are filled in.
_SLOTS = {"C": -1, "S": -2, "E": -3}


def _vocabulary() -> tuple[str, ...]:
    fixed = {word for sentence in (*_TOUCH, *_PUSH) for word in sentence.split()} - set(_SLOTS)
    shapes = [word for names in SHAPES for word in names]
    return ("", *sorted(fixed), *COLOURS, *shapes, *EDGES)


#: All words; the first, number 0, is padding.
VOCABULARY = _vocabulary()
_NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}


def encode(sentence: str) -> NDArray[np.int64]:
    """A sentence as (LENGTH,) token numbers. Raises ValueError if a word is unknown or it is too
    long."""
    words = sentence.split()
    unknown = [word for word in words if word not in _NUMBERS]
    if unknown or len(words) > LENGTH:
        raise ValueError(f"{sentence!r}: unknown {unknown}, or more than {LENGTH} words")
    return _padded([_NUMBERS[word] for word in words])


def decode(tokens: Sequence[int] | NDArray[np.int64]) -> str:
    """The sentence of (LENGTH,) token numbers."""
    return " ".join(VOCABULARY[int(token)] for token in tokens if token)


def compose(
    rng: np.random.Generator,
    colour: NDArray[np.int64],
    shape: NDArray[np.int64],
    edge: NDArray[np.int64],
) -> NDArray[np.int64]:
    """An instruction per episode, in one of several wordings: (episodes, LENGTH).

    colour, shape: (episodes,) numbers in COLOURS and SHAPES; edge: a number in EDGES, or -1 for an
    object to be touched.
    """
    count = len(colour)
    touch, push = _templates(_TOUCH), _templates(_PUSH)
    tokens = np.where(
        (edge < 0)[:, None],
        touch[rng.integers(len(touch), size=count)],
        push[rng.integers(len(push), size=count)],
    )
    shapes = np.array([[_NUMBERS[word] for word in names] for names in SHAPES])
    fillings = {
        "C": np.array([_NUMBERS[word] for word in COLOURS])[colour],
        "S": shapes[shape, rng.integers(shapes.shape[1], size=count)],
        "E": np.array([_NUMBERS[word] for word in EDGES])[edge],
    }
    for name, words in fillings.items():
        tokens = np.where(tokens == _SLOTS[name], words[:, None], tokens)
    return tokens


def named(tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The colours and shapes, as numbers (n,), that instructions (n, LENGTH) name."""
    colours, shapes = np.full((2, len(VOCABULARY)), -1)
    for number, colour in enumerate(COLOURS):
        colours[_NUMBERS[colour]] = number
    for number, synonyms in enumerate(SHAPES):
        shapes[[_NUMBERS[word] for word in synonyms]] = number
    return colours[tokens].max(-1), shapes[tokens].max(-1)


def with_edges(renamed: Sequence[str]) -> NDArray[np.int64]:
    """A table by which tokens are looked up so that EDGES read as `renamed`: (words,)."""
    table = np.arange(len(VOCABULARY))
    table[[_NUMBERS[word] for word in EDGES]] = [_NUMBERS[word] for word in renamed]
    return table


def _templates(sentences: Sequence[str]) -> NDArray[np.int64]:
    """Sentences as (sentences, LENGTH), what is to be filled in as negative numbers."""
    return np.stack(
        [_padded([_SLOTS.get(w, _NUMBERS.get(w, 0)) for w in s.split()]) for s in sentences]
    )


def _padded(tokens: list[int]) -> NDArray[np.int64]:
    return np.array(tokens + [0] * (LENGTH - len(tokens)), dtype=np.int64)
