"""Runs an exported robot policy: an observation in, a chunk of actions out.

It needs only numpy and onnxruntime, on the robot::

    from policy import Policy

    policy = Policy("out")
    while True:
        action = policy.select_action({"observation.state": state, "observation.images.top": frame})

or, for a file of observations::

    python policy.py MODEL OBSERVATION.npz ACTIONS.npz

MODEL is what edgeprune wrote: the folder, or model.onnx in it. Of a policy that takes several steps
for a chunk (Diffusion Policy, SmolVLA) the folder has once.onnx and step.onnx, and only they are
needed; model.onnx by itself gives the same, and looks at the cameras in each step anew.

State: (joints,) in the data set's units. A camera's frame: (height, width, 3) uint8 as it comes
from the camera, or (3, height, width) float32 from 0 to 1, of the size that the policy was trained
on. An instruction: its tokens and their mask, as the policy's tokenizer gives them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before it is imported: it sends nothing then
import onnxruntime as ort

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class Policy:
    """A policy's file or folder. steps: how many actions of a chunk are carried out before the
    policy looks again; None for all of them. seed: of the noise that a chunk is made of, where it
    is made of noise."""

    def __init__(
        self, model: str | Path, steps: int | None = None, threads: int = 0, seed: int = 0
    ) -> None:
        parts = [Path(model) / name for name in ("once.onnx", "step.onnx")]
        whole = Path(model) / "model.onnx" if Path(model).is_dir() else Path(model)
        files = parts if all(part.is_file() for part in parts) else [whole]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._sessions = [
            ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            for file in files
        ]
        held = self._sessions[-1].get_modelmeta().custom_metadata_map
        told = held.get("edgeprune.loop", held.get("edgeprune.schedule"))
        self._loop: dict[str, Any] | None = None if told is None else json.loads(told)
        changing = [] if self._loop is None else self._loop["inputs"]
        made = {o.name for session in self._sessions[:-1] for o in session.get_outputs()}
        self._inputs = {
            each.name: each
            for session in self._sessions
            for each in session.get_inputs()
            if each.name not in made and each.name not in changing
        }
        self._steps = steps
        self._random = np.random.default_rng(seed)
        # How many observations the policy looks back on; None where it has no dimension for them.
        self._looks = None if self._loop is None else self._loop["observations"]
        self._seen: deque[dict[str, np.ndarray]] = deque(maxlen=self._looks or 1)
        self._left: deque[np.ndarray] = deque()

    def chunk(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray | None = None
    ) -> np.ndarray:
        """The next actions, (chunk, joints). Raises ValueError for what doesn't fit.

        noise: what the chunk is made of, (1 + steps of denoising, horizon, joints): where it
        begins, and what each step adds; None draws it. A policy that looks back on several
        observations remembers those it was shown, the first as often as needed.
        """
        self.observe(observation)
        fed = {name: self._history(name) for name in self._inputs}
        if self._loop is None:
            actions: np.ndarray = self._sessions[0].run(["action"], fed)[0]
            return actions[0]
        return self._denoised(fed, self._loop, noise)

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """Shows the policy an observation that it isn't asked for actions at."""
        missing = sorted(self._inputs.keys() - observation.keys())
        if missing:
            raise ValueError(f"the observation lacks {', '.join(missing)}")
        seen = {name: self._fitted(name, observation[name]) for name in self._inputs}
        self._seen.append(seen)
        while len(self._seen) < (self._looks or 1):
            self._seen.append(seen)

    def select_action(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The next action, (joints,); the policy runs when those of the last chunk are done."""
        if self._left:
            if self._looks is not None:
                self.observe(observation)
        else:
            self._left.extend(self.chunk(observation)[: self._steps])
        return self._left.popleft()

    def reset(self) -> None:
        """Forgets what it has seen and what is left of a chunk: at the beginning of an episode."""
        self._seen.clear()
        self._left.clear()

    def _denoised(
        self, fed: dict[str, np.ndarray], loop: Mapping[str, Any], noise: np.ndarray | None
    ) -> np.ndarray:
        """The actions that noise becomes, step by step (metadata edgeprune.loop)."""
        for session in self._sessions[:-1]:  # what is computed once
            names = [each.name for each in session.get_outputs()]
            known = session.run(names, {i.name: fed[i.name] for i in session.get_inputs()})
            fed |= dict(zip(names, known, strict=True))
        kinds = {i.name: _TYPES[i.type] for i in self._sessions[-1].get_inputs()}
        fed = {name: array for name, array in fed.items() if name in kinds}
        sample, moment = loop["inputs"]
        shape = (1 + loop["times"], *loop["shape"])
        if noise is None:
            noise = self._random.standard_normal(shape)
        if np.shape(noise) != shape:
            raise ValueError(f"noise is {list(np.shape(noise))}, where the policy takes {shape}")
        noise = np.asarray(noise, np.float32)[:, None]
        x, added = noise[0], noise[1:]
        for time, row, fresh in zip(loop["timesteps"], loop["rows"], added, strict=True):
            changing = {sample: x, moment: np.array([time], kinds[moment])}
            p = self._sessions[-1].run(["prediction"], {**fed, **changing})[0]
            a, b, c, d, e, s = np.asarray(row, np.float32)
            clean = a * x + b * p
            if loop["clip"] is not None:
                clean = clean.clip(-loop["clip"], loop["clip"])
            x = c * clean + d * x + e * p + s * fresh
        actions = x[0, loop["first"] : loop["last"], : loop["joints"]]
        if loop["scale"] is None:
            return actions
        scale, shift = (np.asarray(loop[key], np.float32) for key in ("scale", "shift"))
        return actions * scale + shift

    def _history(self, name: str) -> np.ndarray:
        """What the policy was shown of an input, with a batch of one."""
        if self._looks is None:
            return self._seen[-1][name][None]
        return np.stack([seen[name] for seen in self._seen])[None]

    def _fitted(self, name: str, given: np.ndarray) -> np.ndarray:
        value, entry = np.asarray(given), self._inputs[name]
        wanted = list(entry.shape)[1 if self._looks is None else 2 :]
        if value.dtype == np.uint8 and value.ndim == 3:
            value = value.transpose(2, 0, 1).astype(np.float32) / 255
        value = np.ascontiguousarray(value, _TYPES[entry.type])
        if list(value.shape) != wanted:
            raise ValueError(f"{name} is {list(value.shape)}, where the policy takes {wanted}")
        return value


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
