"""Behaviour cloning: the policy learns the expert's chunks of actions.

    python -m examples.vla.train [--steps 3200] [--bf16] [--resume]

Each frame is also seen turned and mirrored (the words for the edges change with it), and more
heads learn where the object is that is meant, and what; they stay behind when the policy is saved.
An interrupted run goes on from its last checkpoint with --resume.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.vla import words
from examples.vla.evaluate import from_module, rollout
from examples.vla.policy import CELLS, HEAD, WIDTH, Policy
from examples.vla.shards import FOLDER, Frames, as_inputs, load
from examples.vla.world import DIRECTIONS, HELD_OUT, draw

_OUT = Path(__file__).parent / "policy.pt"
_WARMUP = 200  # steps
_DECAY = 0.02
_CLIP = 1.0  # the gradient's norm
_BETA = 0.1  # where the smooth L1 loss turns linear
_NAMES = ("chunk", "place", "attention", "kind")  # the losses
_WEIGHTS = (1.0, 0.5, 0.2, 0.1)
_SYMMETRIES = 8  # of the square table
_TESTS = HELD_OUT // 2  # seed of the scenes that success is printed for, neither's data


@dataclass(frozen=True)
class Batch:
    """Tensors of a batch of frames; vectors are relative to the table's centre."""

    image: Tensor
    instruction: Tensor
    state: Tensor
    chunk: Tensor
    target: Tensor


class Learner(nn.Module):
    """A policy in training, with what helps it find the object that is meant.

    A head tells the object's place from what the actions are derived from; one attention head of
    the first fusion is told which cells the object is in; and a head tells the object's colour and
    shape from what the convolutions give there. Matching words with what is seen is learned several
    times faster so than from actions alone.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.where = nn.Linear(policy.head[0].in_features, 2)
        self.what = nn.Linear(policy.place.shape[1], len(words.COLOURS) + len(words.SHAPES))
        self._seen: dict[str, Tensor] = {}
        first: Any = policy.fusion[0]
        for name, layer in (
            ("query", first.across.query),
            ("key", first.across.key),
            ("cells", policy.stage2),
        ):
            layer.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._seen[name] = output

    def forward(self, batch: Batch) -> Tensor:
        """The losses, (4,): of the chunk, the place, the attention, colour and shape."""
        understood = self.policy.understand(batch.image, batch.instruction, batch.state)
        chunk = self.policy.head(understood).float()
        cells = cells_of(batch.target)
        # The first head of the first query: (n, 32) against (n, cells, 32).
        query, key = self._seen["query"][:, 0, :HEAD], self._seen["key"][..., :HEAD]
        looked = (key @ query[..., None])[..., 0].float() / math.sqrt(HEAD)
        there = (self._seen["cells"].flatten(2) @ cells[..., None])[..., 0]
        colours, shapes = self.what(there).float().split((len(words.COLOURS), len(words.SHAPES)), 1)
        colour, shape = (torch.from_numpy(n) for n in words.named(batch.instruction.numpy()))
        return torch.stack(
            [
                F.smooth_l1_loss(chunk, batch.chunk.flatten(1), beta=_BETA),
                F.smooth_l1_loss(self.where(understood).float(), batch.target, beta=_BETA),
                F.cross_entropy(looked, cells),
                F.cross_entropy(colours, colour) + F.cross_entropy(shapes, shape),
            ]
        )


def cells_of(places: Tensor) -> Tensor:
    """How places (n, 2) share in the picture's cells, (n, cells): their mean is the place."""
    across = ((places + 1) / 2 * CELLS - 0.5).clamp(0, CELLS - 1)
    shares = (1 - (across[..., None] - torch.arange(CELLS)).abs()).clamp(min=0)  # (n, 2, CELLS)
    return (shares[:, 1, :, None] * shares[:, 0, None]).flatten(1)


def mirrored(batch: Batch, symmetry: int) -> Batch:
    """A batch seen under one of the table's 8 symmetries: flips of x (1), of y (2), x for y (4)."""
    signs = np.array([-1.0 if symmetry & 1 else 1.0, -1.0 if symmetry & 2 else 1.0])
    swaps = bool(symmetry & 4)
    axes = [axis for axis, sign in ((-1, signs[0]), (-2, signs[1])) if sign < 0]
    image = batch.image.flip(axes) if axes else batch.image
    scale = torch.from_numpy(signs).float()

    def turned(vectors: Tensor) -> Tensor:
        vectors = vectors * scale
        return vectors.flip(-1) if swaps else vectors

    seen = (DIRECTIONS * signs)[:, ::-1] if swaps else DIRECTIONS * signs
    names = [words.EDGES[int(np.argmax(DIRECTIONS @ direction))] for direction in seen]
    return Batch(
        image.transpose(-1, -2) if swaps else image,
        torch.from_numpy(words.with_edges(names))[batch.instruction],
        turned(batch.state),
        turned(batch.chunk),
        turned(batch.target),
    )


def sample(frames: Frames, size: int, seed: int, step: int) -> Batch:
    """Frames at random, an eighth under each symmetry; the same for the same seed and step."""
    rng = np.random.default_rng((seed, step))
    chosen = frames[np.sort(rng.choice(len(frames), size, replace=False))]
    parts = []
    for symmetry in range(_SYMMETRIES):
        part = chosen[symmetry::_SYMMETRIES]
        chunk, target = torch.from_numpy(part.chunk), torch.from_numpy(part.target)
        parts.append(mirrored(Batch(*as_inputs(part), chunk, target), symmetry))
    return Batch(**{name: torch.cat([vars(p)[name] for p in parts]) for name in vars(parts[0])})


def rate(step: int, steps: int) -> float:
    """The learning rate's share at a step: a linear rise, then half a cosine."""
    if step < _WARMUP:
        return (step + 1) / _WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - _WARMUP) / max(steps - _WARMUP, 1)))


def optimizer_for(learner: nn.Module) -> torch.optim.Optimizer:
    """AdamW; what is no matrix (norms, biases) and embeddings don't decay."""
    named = list(learner.named_parameters())
    matrices = [p for n, p in named if p.dim() > 1 and "words" not in n]
    rest = [p for n, p in named if not (p.dim() > 1 and "words" not in n)]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, weight_decay=_DECAY, betas=(0.9, 0.98), fused=True)


def succeeds(policy: Policy, episodes: int) -> float:
    """Success in percent, on scenes that neither training nor evaluation uses."""
    policy.eval()
    share = float(rollout(from_module(policy), draw(episodes, _TESTS)).mean())
    policy.train()
    return 100 * share


def save(content: Any, path: Path) -> None:
    """Writes a file whole or not at all."""
    draft = path.with_suffix(".part")
    torch.save(content, draft)
    os.replace(draft, path)


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    frames = load(options.data)
    # Convolutions on a CPU are a tenth faster with channels last. Narrow ones must do without: in
    # the backward pass of four channels torch 2.13 spoils memory where there is no AVX-512.
    layout = torch.channels_last if options.width >= WIDTH else torch.contiguous_format
    learner = Learner(Policy(options.width)).train().to(memory_format=layout)
    optimizer = optimizer_for(learner)
    checkpoint = options.out.with_suffix(".checkpoint")
    start = 0
    if options.resume:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        learner.load_state_dict(content["learner"])
        optimizer.load_state_dict(content["optimizer"])
        start = content["step"]
    count = sum(p.numel() for p in learner.policy.parameters())
    print(f"{count / 1e6:.2f} M parameters, {len(frames)} frames, from step {start}", flush=True)
    began, losses = time.perf_counter(), np.zeros(len(_WEIGHTS))
    for step in range(start, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate(step, options.steps)
        batch = sample(frames, options.batch, options.seed, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            parts = learner(batch)
        optimizer.zero_grad()
        (parts @ torch.tensor(_WEIGHTS)).backward()
        nn.utils.clip_grad_norm_(learner.parameters(), _CLIP)
        optimizer.step()
        losses += parts.detach().numpy()
        done = step + 1
        if done % options.log == 0:
            minutes = (time.perf_counter() - began) / 60
            means = zip(_NAMES, losses / options.log, strict=True)
            shown = "  ".join(f"{name} {mean:.4f}" for name, mean in means)
            print(f"step {done}  {minutes:.1f} min  {shown}", flush=True)
            losses[:] = 0
        if done % options.check == 0 or done == options.steps:
            content = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict()}
            save({**content, "step": done}, checkpoint)
            share = succeeds(learner.policy, options.episodes)
            print(f"step {done}  success {share:.1f} %", flush=True)
    weights = learner.policy.state_dict().items()
    save({n: t.half() if t.is_floating_point() else t for n, t in weights}, options.out)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=_OUT)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--log", type=int, default=50, help="steps between losses printed")
    parser.add_argument("--check", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--episodes", type=int, default=100, help="that success is printed of")
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
