"""A table seen from above: objects, a gripper that pushes them, and what it is told to do.

Everything runs for many episodes at once. Lengths are shares of the table's side; x goes to the
right, y down, as in the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from examples.vla import words

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Objects at most: the one that is meant, and up to three others.
SLOTS = 4
OBJECT_RADIUS = 0.07
GRIPPER_RADIUS = 0.035
#: The distance of centres at which the gripper touches an object.
CONTACT = OBJECT_RADIUS + GRIPPER_RADIUS
#: How far an action of 1 moves the gripper.
STEP = 0.05
#: Steps after which an episode is lost.
LIMIT = 50
#: Where pushes go, in the order of words.EDGES.
DIRECTIONS = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
#: Scenes with these seeds and higher ones are for evaluation; training takes lower ones.
HELD_OUT = 1_000_000

_RIM = 0.02  # how near the gripper's centre comes to the table's rim
_AT_EDGE = 0.02  # a gap between object and edge that counts as none
_SEPARATION = 0.27  # of objects at the start: the gripper fits between any two
_CORRIDOR = 0.18  # half the width that is free where an object is to be pushed
_TOUCH_SHARE = 0.4
_DRAWS = 64  # places drawn for each thing; the first that suits is taken


@dataclass(frozen=True)
class Scenes:
    """Tables, one per episode. Slot 0 holds the object that the instruction means.

    gripper: (episodes, 2). objects: (episodes, SLOTS, 2); present, colour, shape, angle (radians):
    (episodes, SLOTS). shade: (episodes, 3), the table's colour, 0 to 1. edge: (episodes,), the
    number of the edge in words.EDGES, -1 where the object is to be touched. instruction:
    (episodes, words.LENGTH).
    """

    gripper: Floats
    objects: Floats
    present: Bools
    colour: Ints
    shape: Ints
    angle: Floats
    shade: Floats
    edge: Ints
    instruction: Ints

    def __len__(self) -> int:
        return len(self.edge)

    def __getitem__(self, which: NDArray[np.generic] | slice) -> Scenes:
        return Scenes(**{name: value[which] for name, value in vars(self).items()})

    @property
    def direction(self) -> Floats:
        """Where the object is to be pushed, of length 1; zero where it is to be touched."""
        return np.where((self.edge < 0)[:, None], 0.0, DIRECTIONS[self.edge])

    @property
    def state(self) -> NDArray[np.float32]:
        """What the policy is told of the gripper: its place from -1 to 1, (episodes, 2)."""
        return (2 * self.gripper - 1).astype(np.float32)


def draw(episodes: int, seed: int) -> Scenes:
    """Scenes at random, the same for the same seed.

    No two objects are of one colour and shape, none stands where another is to be pushed, and each
    can be walked around.
    """
    rng = np.random.default_rng(seed)
    edge = rng.integers(len(DIRECTIONS), size=episodes)
    edge[rng.random(episodes) < _TOUCH_SHARE] = -1
    colour, shape = _kinds(rng, episodes)
    scenes = Scenes(
        gripper=np.zeros((episodes, 2)),
        objects=np.zeros((episodes, SLOTS, 2)),
        present=np.zeros((episodes, SLOTS), dtype=np.bool_),
        colour=colour,
        shape=shape,
        angle=rng.uniform(0, 2 * np.pi, (episodes, SLOTS)),
        shade=rng.uniform(0.72, 0.95, (episodes, 1)) + rng.uniform(-0.05, 0.05, (episodes, 3)),
        edge=edge,
        instruction=words.compose(rng, colour[:, 0], shape[:, 0], edge),
    )
    _place(rng, scenes)
    return scenes


def _kinds(rng: np.random.Generator, episodes: int) -> tuple[Ints, Ints]:
    """Colours and shapes, (episodes, SLOTS) each; many share one of the two with slot 0."""
    shapes = len(words.SHAPES)
    kinds = np.arange(len(words.COLOURS) * shapes)
    meant = rng.integers(len(kinds), size=(episodes, 1))
    alike = (kinds // shapes == meant // shapes) | (kinds % shapes == meant % shapes)
    keys = rng.random((episodes, len(kinds))) + 0.4 * alike + 2.0 * (kinds == meant)
    chosen = np.argsort(-keys, axis=1)[:, :SLOTS]
    return chosen // shapes, chosen % shapes


def _place(rng: np.random.Generator, scenes: Scenes) -> None:
    """Fills in where objects and gripper are, and which slots are taken."""
    episodes = len(scenes)
    everyone = np.arange(episodes)
    scenes.objects[:, 0] = rng.uniform(0.18, 0.82, (episodes, 2))
    scenes.present[:, 0] = True
    others = rng.integers(1, SLOTS, size=episodes)
    for slot in range(1, SLOTS):
        places = rng.uniform(0.18, 0.82, (episodes, _DRAWS, 2))
        free = _free(scenes, places, _SEPARATION) & ~_in_corridor(scenes, places)
        scenes.objects[:, slot] = places[everyone, free.argmax(1)]
        scenes.present[:, slot] = free.any(1) & (slot <= others)
    places = rng.uniform(0.06, 0.94, (episodes, _DRAWS, 2))
    free = _free(scenes, places, CONTACT + 0.05)
    scenes.gripper[:] = places[everyone, free.argmax(1)]


def _free(scenes: Scenes, places: Floats, distance: float) -> Bools:
    """Whether places (episodes, n, 2) are that far from every object: (episodes, n)."""
    apart = np.linalg.norm(places[:, :, None] - scenes.objects[:, None], axis=-1)
    free: Bools = ((apart >= distance) | ~scenes.present[:, None]).all(-1)
    return free


def _in_corridor(scenes: Scenes, places: Floats) -> Bools:
    """Whether places (episodes, n, 2) are where slot 0 is to be pushed: (episodes, n)."""
    offset = places - scenes.objects[:, :1]
    direction = scenes.direction[:, None]
    along = (offset * direction).sum(-1)
    aside = np.linalg.norm(offset - along[..., None] * direction, axis=-1)
    return (along > 0) & (aside < _CORRIDOR)


def advance(scenes: Scenes, actions: NDArray[np.floating]) -> tuple[Scenes, Bools]:
    """The scenes one step later, and which objects were touched: (episodes, SLOTS).

    actions: (episodes, 2), cut to -1..1. Objects give way to the gripper and to each other; at the
    table's rim they stop, and the gripper with them.
    """
    moved = scenes.gripper + STEP * np.clip(actions, -1, 1)
    gripper = np.clip(moved, _RIM, 1 - _RIM)
    push = _overlap(scenes.objects - gripper[:, None], CONTACT, scenes.present)
    touched: Bools = push.any(-1)
    objects = scenes.objects + push
    pairs = scenes.present[:, :, None] & scenes.present[:, None] & ~np.eye(SLOTS, dtype=np.bool_)
    between = objects[:, :, None] - objects[:, None]
    objects = objects + 0.5 * _overlap(between, 2 * OBJECT_RADIUS, pairs).sum(2)
    objects = np.clip(objects, OBJECT_RADIUS, 1 - OBJECT_RADIUS)
    stopped = _overlap(objects - gripper[:, None], CONTACT, scenes.present).sum(1)
    gripper = np.clip(gripper - stopped, _RIM, 1 - _RIM)
    return replace(scenes, gripper=gripper, objects=objects), touched


def _overlap(offsets: Floats, distance: float, counts: Bools) -> Floats:
    """By how much, and in which direction, offsets (…, 2) fall short of a length; else zero."""
    lengths = np.linalg.norm(offsets, axis=-1, keepdims=True)
    short = np.where(counts[..., None], np.maximum(distance - lengths, 0), 0)
    return offsets / np.maximum(lengths, 1e-9) * short


def at_edge(scenes: Scenes) -> Bools:
    """Whether slot 0 has arrived at its edge: (episodes,), False where there is none."""
    there = ((scenes.objects[:, 0] - 0.5) * scenes.direction).sum(-1)
    return (scenes.edge >= 0) & (there >= 0.5 - OBJECT_RADIUS - _AT_EDGE)


class Episodes:
    """Episodes under way. Those that are won, lost or out of time stay as they are.

    won: (episodes,). An object that is to be touched must be the first that is; one that is to be
    pushed must reach its edge.
    """

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes
        self.steps = 0
        self.won: Bools = np.zeros(len(scenes), dtype=np.bool_)
        self._lost: Bools = np.zeros(len(scenes), dtype=np.bool_)

    @property
    def running(self) -> Bools:
        """(episodes,)"""
        return ~self.won & ~self._lost & (self.steps < LIMIT)

    def step(self, actions: NDArray[np.floating]) -> None:
        """One action for each episode, (episodes, 2); those of ended ones have no effect."""
        running = self.running
        after, touched = advance(self.scenes, actions)
        self.scenes = replace(
            self.scenes,
            gripper=np.where(running[:, None], after.gripper, self.scenes.gripper),
            objects=np.where(running[:, None, None], after.objects, self.scenes.objects),
        )
        to_touch, wrong = self.scenes.edge < 0, touched[:, 1:].any(1)
        self._lost |= running & to_touch & wrong
        self.won |= running & np.where(to_touch, touched[:, 0] & ~wrong, at_edge(self.scenes))
        self.steps += 1
