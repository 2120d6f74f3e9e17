"""Demonstrations: the expert at work, disturbed, so that its way back is seen as well.

    python -m examples.vla.generate [--shards 16] [--out examples/vla/data]

What is recorded is what the expert does from where the disturbance left it, not the disturbance
(DART, Laskey et al. 2017, arXiv:1703.09327). Shards that are there already are not made again.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

import numpy as np

from examples.vla import expert
from examples.vla.picture import render
from examples.vla.policy import CHUNK
from examples.vla.shards import FOLDER, Frames
from examples.vla.world import HELD_OUT, Bools, Episodes, Floats, Scenes, draw

#: Episodes in a shard.
EPISODES = 500
_KEPT = 0.5  # share of the moments that are recorded: neighbours are much alike
_NOISE = 0.9  # the most that actions are disturbed by, in one standard deviation
_LASTING = 0.6  # how much of a disturbance is left one step later
_PICTURES = 256  # rendered at once


def frames(episodes: int, seed: int) -> Frames:
    """What is recorded of episodes at random; each is disturbed by an amount of its own."""
    if seed >= HELD_OUT:
        raise ValueError(f"seeds from {HELD_OUT} are for evaluation")
    rng = np.random.default_rng((seed, 1))
    under_way = Episodes(draw(episodes, seed))
    level = rng.uniform(0, _NOISE, (episodes, 1))
    noise = np.zeros((episodes, 2))
    scenes: list[Scenes] = []
    chunks: list[Floats] = []
    while under_way.running.any():
        chunk = expert.chunk(under_way.scenes, CHUNK)
        kept: Bools = under_way.running & (rng.random(episodes) < _KEPT)
        scenes.append(under_way.scenes[kept])
        chunks.append(chunk[kept])
        fresh = level * rng.normal(size=(episodes, 2))
        noise = _LASTING * noise + np.sqrt(1 - _LASTING**2) * fresh
        under_way.step(chunk[:, 0] + noise)
    return _recorded(_joined(scenes), np.concatenate(chunks))


def _joined(parts: list[Scenes]) -> Scenes:
    names = [field.name for field in fields(Scenes)]
    return Scenes(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def _recorded(scenes: Scenes, chunks: Floats) -> Frames:
    parts = range(0, len(scenes), _PICTURES)
    return Frames(
        image=np.concatenate([render(scenes[i : i + _PICTURES]) for i in parts]),
        instruction=scenes.instruction,
        state=scenes.state,
        chunk=chunks.astype(np.float32),
        target=(2 * scenes.objects[:, 0] - 1).astype(np.float32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shards", type=int, default=16, help=f"of {EPISODES} episodes each")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for number in range(options.shards):
        path = options.out / f"shard-{number:03}.npz"
        if path.exists():
            continue
        made = frames(EPISODES, seed=number)
        draft = path.with_suffix(".part")
        with draft.open("wb") as file:
            np.savez_compressed(file, **vars(made))
        os.replace(draft, path)
        print(f"{path}: {len(made)} frames", flush=True)


if __name__ == "__main__":
    main()
