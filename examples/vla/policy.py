"""The policy: a picture, an instruction and the gripper's place make the next few actions.

    picture ── convolutions ── 8×8 tokens ─────────────┐ keys, values
    instruction ── transformer ── mean ─┐              ▼
    gripper's place ── MLP ─────────────┴─ queries ── fusion, twice ── MLP ── chunk of actions

Queries are few, so that most weights are wide and cheap to use; the action chunk is that of ACT
(Zhao et al. 2023, arXiv:2304.13705), regressed at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.vla import words
from examples.vla.picture import SIDE

#: Actions that are given at once.
CHUNK = 8
#: The widest layers of the whole model.
WIDTH = 384
#: Width of one attention head.
HEAD = 32
_QUERIES = 4
#: Cells on each side that the picture is encoded as.
CELLS = SIDE // 8


class Policy(nn.Module):
    """image (n, 3, 64, 64), 0 to 1; instruction (n, words.LENGTH), int64; state (n, 2), -1 to 1:
    gives actions (n, CHUNK, 2), -1 to 1.

    width: of the queries, a multiple of 48; all else is in proportion. depth: layers of the fusion,
    and of the instruction's transformer.
    """

    def __init__(self, width: int = WIDTH, depth: int = 2) -> None:
        super().__init__()
        fine, middle, coarse = width // 12, width // 6, width // 3
        self.stem = nn.Sequential(
            nn.Conv2d(3, fine, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(fine), nn.ReLU()
        )
        self.stage1 = Residual(fine, middle)
        self.stage2 = Residual(middle, coarse)
        self.place = nn.Parameter(0.5 * torch.randn(CELLS**2, coarse))
        self.norm_image = nn.LayerNorm(coarse)

        self.words = nn.Embedding(len(words.VOCABULARY), coarse)
        self.order = nn.Parameter(0.5 * torch.randn(words.LENGTH, coarse))
        self.language = nn.ModuleList(Language(coarse) for _ in range(depth))
        self.norm_language = nn.LayerNorm(coarse)
        self.ask = nn.Linear(coarse, _QUERIES * width)

        self.gripper = nn.Sequential(
            nn.Linear(2, coarse), nn.GELU(), nn.Linear(coarse, _QUERIES * width)
        )
        self.fusion = nn.ModuleList(Fusion(width, coarse) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(
            nn.Linear(_QUERIES * width, 5 * width),
            nn.GELU(),
            nn.Linear(5 * width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, CHUNK * 2),
        )

    def forward(self, image: Tensor, instruction: Tensor, state: Tensor) -> Tensor:
        actions: Tensor = self.head(self.understand(image, instruction, state))
        return actions.unflatten(-1, (CHUNK, 2))

    def understand(self, image: Tensor, instruction: Tensor, state: Tensor) -> Tensor:
        """What the actions are derived from: (n, queries × width)."""
        cells = self.stage2(self.stage1(self.stem(image)))
        cells = self.norm_image(cells.flatten(2).transpose(1, 2) + self.place)
        tokens = self.words(instruction) + self.order
        for block in self.language:
            tokens = block(tokens)
        asked = self.ask(self.norm_language(tokens).mean(1)) + self.gripper(state)
        queries = asked.unflatten(-1, (_QUERIES, -1))
        for block in self.fusion:
            queries = block(queries, cells)
        understood: Tensor = self.norm(queries).flatten(1)
        return understood


class Residual(nn.Module):
    """Two convolutions with batch norm and a shortcut; half the resolution."""

    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wider)
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, wider, 1, stride=2, bias=False), nn.BatchNorm2d(wider)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Attention(nn.Module):
    """Queries of (n, q, width) over a memory of (n, m, source); heads of 32."""

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, heads * HEAD)
        self.key = nn.Linear(source, heads * HEAD)
        self.value = nn.Linear(source, heads * HEAD)
        self.out = nn.Linear(heads * HEAD, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        query, key, value = (
            projected.unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for projected in (self.query(x), self.key(memory), self.value(memory))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Language(nn.Module):
    """A transformer's layer over the instruction's tokens, (n, words.LENGTH, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, width, max(width // 32, 1))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Fusion(nn.Module):
    """Queries (n, q, width) look at each other, then at the picture's cells (n, m, source)."""

    def __init__(self, width: int, source: int) -> None:
        super().__init__()
        heads = max(width // 48, 1)
        self.norm1 = nn.LayerNorm(width)
        self.among = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.across = Attention(width, source, heads)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = _mlp(width, 5 * width)

    def forward(self, x: Tensor, cells: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.among(y, y)
        x = x + self.across(self.norm2(x), cells)
        out: Tensor = x + self.mlp(self.norm3(x))
        return out


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def build(width: int = WIDTH, depth: int = 2) -> tuple[Policy, tuple[Tensor, Tensor, Tensor]]:
    """A new policy in eval mode and inputs to call it with, for --arch."""
    inputs = (
        torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)),
        torch.from_numpy(words.encode("push the red square to the left edge"))[None],
        torch.zeros(1, 2),
    )
    return Policy(width, depth).eval(), inputs
