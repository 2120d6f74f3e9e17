"""What three networks' reports and the command line's help say, word for word.

A change that is meant is written down by `python tests/test_golden.py`, and read in the diff.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgeprune
from edgeprune.graph.compare import TOLERANCE

HERE = Path(__file__).parent / "golden"

#: What hangs on the machine, its load or the release: left out, but it must be there.
VARYING = {"seconds", "edgeprune", "files", "oracle_max_abs_error", "oracle_max_rel_error"}
VARYING |= {"max_abs_error", "max_rel_error", "runtime", "origin"}


class Cnn(nn.Module):
    """A stem, a residual block with a squeeze, a strided depthwise pair, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.one, self.two = nn.Conv2d(24, 32, 3, padding=1), nn.Conv2d(32, 24, 1)
        self.squeeze, self.excite = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.deep, self.wide = nn.Conv2d(24, 24, 3, 2, 1, groups=24), nn.Conv2d(24, 48, 1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.stem(x)))
        z = self.two(F.relu(self.one(y)))
        y = y + z * torch.sigmoid(self.excite(F.relu(self.squeeze(z.mean((2, 3), keepdim=True)))))
        return self.head(self.wide(F.relu(self.deep(y))).mean((2, 3)))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Patches, two transformer blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.blocks = nn.ModuleList(nn.ModuleDict(self._block()) for _ in range(2))
        self.head = nn.Linear(32, 10)

    @staticmethod
    def _block() -> dict[str, nn.Module]:
        return {
            "before": nn.LayerNorm(32), "qkv": nn.Linear(32, 96), "project": nn.Linear(32, 32),
            "between": nn.LayerNorm(32), "up": nn.Linear(32, 64), "down": nn.Linear(64, 32),
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            b: Any = block
            q, k, v = (
                b["qkv"](b["before"](x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
            )
            x = x + b["project"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + b["down"](F.gelu(b["up"](b["between"](x))))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class Policy(nn.Module):
    """An image and a state, a recurrent layer, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.feel = nn.Conv2d(3, 16, 4, 4), nn.Linear(6, 16)
        self.think = nn.GRU(32, 40, batch_first=True)
        self.act, self.value = nn.Linear(40, 7), nn.Linear(40, 1)

    def forward(self, image: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.relu(self.see(image)).flatten(2).transpose(1, 2)
        felt = torch.relu(self.feel(state)).unsqueeze(1).expand(-1, seen.shape[1], -1)
        y = self.think(torch.cat([seen, felt], 2))[0][:, -1]
        return torch.tanh(self.act(y)), self.value(y)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "cnn": (Cnn, ((1, 3, 32, 32),), {"profile": "raspberry-pi-4", "rate": 0.5}),
    "tokens": (Tokens, ((1, 3, 32, 32),), {"profile": "jetson-nano-cpu", "rate": 0.4}),
    "policy": (
        Policy, ((1, 3, 32, 32), (1, 6)),
        {"profile": "intel-n100", "budgets": edgeprune.Budgets(size_mb=0.03)},
    ),
}  # fmt: skip


def reported(name: str) -> Any:
    """A network's report without what varies, numbers to six digits."""
    make, shapes, asked = NETWORKS[name]
    torch.manual_seed(0)
    module = make().eval()
    inputs = tuple(torch.randn(shape) for shape in shapes)
    inputs = inputs if len(inputs) > 1 else inputs[0]  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        result = edgeprune.prune(
            module, inputs, **asked, data="none", importance="magnitude",
            output=Path(folder) / "out",
        )  # fmt: skip
    told = result.report
    assert told["surgery"]["oracle_max_rel_error"] <= TOLERANCE and told["validation"]["passed"]
    return _plain(told)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items() if key not in VARYING}
    if isinstance(value, list):
        return [_plain(x) for x in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def helped(*words: str) -> str:
    """The help of a command at 100 columns, without styles, in a process of its own: what other
    tests did to this one's terminal doesn't matter."""
    made = subprocess.run(
        [sys.executable, "-m", "edgeprune", *words, "--help"],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", made.stdout)
    return "\n".join(line.rstrip() for line in plain.splitlines()) + "\n"


COMMANDS = {"edgeprune": (), "prune": ("prune",), "sweep": ("sweep",), "check": ("check",)}


@pytest.mark.parametrize("name", NETWORKS)
def test_reports_say_what_they_said(name: str) -> None:
    assert reported(name) == json.loads((HERE / f"{name}.json").read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_said(name: str) -> None:
    assert helped(*COMMANDS[name]) == (HERE / f"{name}.txt").read_text()


def write() -> None:
    """Writes down what is said now."""
    HERE.mkdir(exist_ok=True)
    for name in NETWORKS:
        (HERE / f"{name}.json").write_text(json.dumps(reported(name), indent=1) + "\n")
    for name, words in COMMANDS.items():
        (HERE / f"{name}.txt").write_text(helped(*words))


if __name__ == "__main__":
    write()
