"""The teacher: a rule that sees where everything is, and does what it is told."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from examples.vla.world import CONTACT, STEP, Bools, Floats, Scenes, advance

_GAP = 0.015  # left to the object where the gripper goes to push it
# Kept from objects that stand in the way; a learner that comes near this still touches nothing.
_CLEARANCE = CONTACT + 0.045
_ALIGNED = 0.035  # how far aside a push may begin


def act(scenes: Scenes) -> Floats:
    """What to do next: (episodes, 2), of length 1 at most.

    It walks to the object, or to the side of it that is opposite to the edge, around what is in
    between; and pushes, staying in the middle.
    """
    direction = scenes.direction
    toward = scenes.objects[:, 0] - scenes.gripper
    along = (toward * direction).sum(-1, keepdims=True)
    aside = toward - along * direction
    ready = (
        (scenes.edge >= 0)[:, None]
        & (along > CONTACT / 2)
        & (along < CONTACT + 4 * _GAP)
        & (np.linalg.norm(aside, axis=-1, keepdims=True) < _ALIGNED)
    )
    pushes = (scenes.edge >= 0)[:, None]
    goal = scenes.objects[:, 0] - direction * np.where(pushes, CONTACT + _GAP, 0.0)
    # The whole distance aside at once: pushed off its centre, an object would roll off.
    action = np.where(ready, direction + aside / STEP, _walk(scenes, goal))
    return action / np.maximum(np.linalg.norm(action, axis=-1, keepdims=True), 1.0)


def chunk(scenes: Scenes, steps: int) -> Floats:
    """What it does from here on, undisturbed: (episodes, steps, 2)."""
    actions = []
    for _ in range(steps):
        actions.append(act(scenes))
        scenes, _ = advance(scenes, actions[-1])
    return np.stack(actions, axis=1)


def _walk(scenes: Scenes, goal: Floats) -> Floats:
    """The step towards a goal (episodes, 2) that passes the nearest object in the way."""
    way = goal - scenes.gripper
    length = np.linalg.norm(way, axis=-1, keepdims=True)
    heading = way / np.maximum(length, 1e-9)
    clearance = np.full(scenes.present.shape, _CLEARANCE)
    # Behind an object to be pushed it goes nearer; one to be touched is no obstacle.
    clearance[:, 0] = np.where(scenes.edge >= 0, CONTACT + _GAP / 3, 0.0)
    for _ in range(2):  # the second time for what stands beside the first
        heading = _around(scenes, heading, length, clearance)
    return heading * np.minimum(length / STEP, 1.0)


def _around(scenes: Scenes, heading: Floats, length: Floats, clearance: Floats) -> Floats:
    """A heading (episodes, 2) turned to pass the first object that it would hit."""
    offset = scenes.objects - scenes.gripper[:, None]
    ahead = (offset * heading[:, None]).sum(-1)
    side = heading[:, None, 0] * offset[..., 1] - heading[:, None, 1] * offset[..., 0]
    blocks: Bools = scenes.present & (ahead > 0) & (ahead < length) & (np.abs(side) < clearance)
    first = np.where(blocks, ahead, np.inf).argmin(1)
    row = np.arange(len(scenes))
    turned = _tangent(offset[row, first], clearance[row, first], side[row, first])
    return np.where(blocks.any(1)[:, None], turned, heading)


def _tangent(offset: Floats, clearance: Floats, side: Floats) -> Floats:
    """The heading that just passes a circle at `offset`, (n, 2); away from it, if too near.

    side: (n,), positive where the circle is to be passed on the side of smaller angles.
    """
    distance = np.maximum(np.linalg.norm(offset, axis=-1), 1e-9)
    near = np.pi / 2 + np.clip(3 * (clearance - distance) / np.maximum(clearance, 1e-9), 0, 1)
    outside = distance >= clearance
    angle = np.where(outside, np.arcsin(np.minimum(clearance / distance, 1)), near)
    angle = np.where(side >= 0, -angle, angle)
    x, y = (offset / distance[:, None]).T
    cosine, sine = np.cos(angle), np.sin(angle)
    turned: NDArray[np.float64] = np.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
    return turned
