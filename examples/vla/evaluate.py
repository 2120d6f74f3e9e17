"""Success in closed loop: the policy sees, acts a few steps, sees again.

    python -m examples.vla.evaluate examples/vla/policy.pt [--episodes 400]

Takes a checkpoint (.pt), a torch.export program (.pt2) or an ONNX file, which onnxruntime runs with
one thread. `success` is a metric for --eval.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from examples.vla.picture import render
from examples.vla.policy import Policy
from examples.vla.world import HELD_OUT, Bools, Episodes, Scenes, draw

#: From pictures, instructions and states, as `observe` gives them, to chunks (n, steps, 2).
Act = Callable[..., NDArray[np.float32]]
#: Steps that are taken of each chunk.
EXECUTED = 4
#: Episodes of `success`.
EPISODES = 200
_CALLS = 200  # that the latency is taken from


def observe(
    scenes: Scenes,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """What a policy gets: (n, 3, 64, 64) from 0 to 1, (n, words.LENGTH), (n, 2) from -1 to 1."""
    return render(scenes).astype(np.float32) / 255, scenes.instruction, scenes.state


def rollout(act: Act, scenes: Scenes, executed: int = EXECUTED) -> Bools:
    """Which episodes are won, (episodes,), with `executed` actions of each chunk carried out."""
    episodes = Episodes(scenes)
    while episodes.running.any():
        running = episodes.running
        chunk = np.zeros((len(scenes), executed, 2))
        chunk[running] = act(*observe(episodes.scenes[running]))[:, :executed]
        for step in range(executed):
            episodes.step(chunk[:, step])
    return episodes.won


def from_module(model: nn.Module) -> Act:
    """A module as rollout calls it; the module's mode is left as it is."""

    def act(*observed: NDArray[np.generic]) -> NDArray[np.float32]:
        with torch.no_grad():
            actions = model(*(torch.from_numpy(array) for array in observed))
        result: NDArray[np.float32] = actions.float().numpy()
        return result

    return act


def success(model: nn.Module) -> float:
    """The share of 200 held-out episodes that a policy wins, in percent, for --eval."""
    return 100 * float(rollout(from_module(model), draw(EPISODES, HELD_OUT)).mean())


def load(path: Path) -> Act:
    """A policy from a .pt, .pt2 or .onnx file."""
    if path.suffix == ".onnx":
        return _from_onnx(path)
    if path.suffix == ".pt2":
        return from_module(torch.export.load(path).module())
    policy = Policy()
    policy.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return from_module(policy.eval())


def _from_onnx(path: Path) -> Act:
    import onnxruntime  # needed for this form alone

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]

    def act(*observed: NDArray[np.generic]) -> NDArray[np.float32]:
        [actions] = session.run(None, dict(zip(names, observed, strict=True)))
        result: NDArray[np.float32] = actions
        return result

    return act


def wilson(won: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, `won` of `count` (Wilson 1927)."""
    z = 1.959964
    share, weight = won / count, z * z / count
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return centre - half, centre + half


def latency_ms(act: Act) -> float:
    """The median of calls with one picture, in milliseconds."""
    observed = observe(draw(1, HELD_OUT))
    times = []
    for _ in range(_CALLS + 10):
        start = time.perf_counter()
        act(*observed)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[10:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--executed", type=int, default=EXECUTED, help="actions of each chunk")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out episodes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    act = load(options.model)
    scenes = draw(options.episodes, HELD_OUT + options.seed)
    won = rollout(act, scenes, options.executed)
    low, high = wilson(int(won.sum()), len(won))
    pushes = scenes.edge >= 0
    print(
        f"{options.model}: {100 * won.mean():.1f} % of {len(won)} episodes "
        f"(95 %: {100 * low:.1f} to {100 * high:.1f}); touch {100 * won[~pushes].mean():.1f} %, "
        f"push {100 * won[pushes].mean():.1f} %; {latency_ms(act):.2f} ms a call"
    )


if __name__ == "__main__":
    main()
