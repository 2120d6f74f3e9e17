"""Trains the demo's network on handwritten digits and writes its weights beside this file.

    python examples/digits/train.py

Half precision: what is rounded off moves no answer, and the file is half as large.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from edgeprune.cli.demo import digits, trained

WEIGHTS = Path(__file__).with_name("digits.safetensors")


def main() -> None:
    """Trains with seed 0 and says how many test images are right, weights rounded."""
    train, test = digits(0)
    model = trained(train, 0)
    kept = {n: t.half() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    save_file(kept, WEIGHTS)
    model.load_state_dict(kept)
    x, y = test.tensors
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean()
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1000:.0f} kB, {100 * right:.1f} % right")


if __name__ == "__main__":
    main()
