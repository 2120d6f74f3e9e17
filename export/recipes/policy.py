"""Runs an exported robot policy: an observation in, a chunk of actions out.

It needs only numpy and onnxruntime, on the robot::

    from policy import Policy

    policy = Policy("model.onnx")
    while True:
        action = policy.select_action({"observation.state": state, "observation.images.top": frame})

or, for a file of observations::

    python policy.py MODEL.onnx OBSERVATION.npz ACTIONS.npz

State: (joints,) in the data set's units. A camera's frame: (height, width, 3) uint8 as it comes
from the camera, or (3, height, width) float32 from 0 to 1, of the size that the policy was trained
on.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before it is imported: it sends nothing then
import onnxruntime as ort


class Policy:
    """A policy's file. steps: how many actions of a chunk are carried out before the policy looks
    again; None for all of them."""

    def __init__(self, model: str | Path, steps: int | None = None, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self._shapes = {i.name: list(i.shape) for i in self._session.get_inputs()}
        self._steps = steps
        self._left: deque[np.ndarray] = deque()

    def chunk(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The next actions, (chunk, joints). Raises ValueError for what doesn't fit."""
        missing = sorted(self._shapes.keys() - observation.keys())
        if missing:
            raise ValueError(f"the observation lacks {', '.join(missing)}")
        feeds = {name: self._fitted(name, observation[name]) for name in self._shapes}
        actions: np.ndarray = self._session.run(["action"], feeds)[0]
        return actions[0]

    def select_action(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The next action, (joints,); the policy runs when those of the last chunk are done."""
        if not self._left:
            self._left.extend(self.chunk(observation)[: self._steps])
        return self._left.popleft()

    def reset(self) -> None:
        """Forgets what is left of a chunk: at the beginning of an episode."""
        self._left.clear()

    def _fitted(self, name: str, given: np.ndarray) -> np.ndarray:
        value, wanted = np.asarray(given), self._shapes[name][1:]
        if value.dtype == np.uint8 and value.ndim == 3:
            value = value.transpose(2, 0, 1).astype(np.float32) / 255
        value = np.ascontiguousarray(value, np.float32)
        if list(value.shape) != wanted:
            raise ValueError(f"{name} is {list(value.shape)}, where the policy takes {wanted}")
        return value[None]


def main() -> None:
    """Runs one observation."""
    parser = argparse.ArgumentParser(description="Run an exported robot policy on an observation.")
    parser.add_argument("model", type=Path)
    parser.add_argument("observation", type=Path)
    parser.add_argument("actions", type=Path)
    words = parser.parse_args()
    with np.load(words.observation) as file:
        actions = Policy(words.model).chunk(dict(file))
    np.savez(words.actions, action=actions)
    print(f"{words.actions}: {len(actions)} actions of {actions.shape[1]}")


if __name__ == "__main__":
    main()
