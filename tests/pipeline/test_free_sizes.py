"""Free sizes from the user's words to the file: the user's own module against it at other sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.core.errors import UserError
from edgeprune.loading.load import load


class Seeing(nn.Module):
    """Down, up and a skip: sizes in steps of 4, and channels concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, 2, 1)
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu()
        return self.head(torch.cat([self.up(self.deep(y).relu()), y], 1))


class Reading(nn.Module):
    """A transformer over tokens, heads and all, with positions cut off at the length."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.places = nn.Parameter(torch.randn(64, 32))
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, ids: Tensor) -> Tensor:
        b, t = ids.shape
        x = self.words(ids) + self.places[:t]
        q, k, v = self.qkv(x).view(b, t, 3, 4, 8).permute(2, 0, 3, 1, 4)
        mask = torch.ones(t, t, dtype=torch.bool).tril()
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, 32))
        return x + self.mlp(x)


class Pooled(nn.Module):
    """A pool to 4x4, which ONNX writes for one size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(self.conv(x), 4).flatten(1))


def images(*sizes: int) -> Tensor:
    return torch.randn(2, 3, *sizes)


def tokens(size: int) -> Tensor:
    return torch.randint(0, 50, (3, size))


def pruned(module: nn.Module, example: Tensor, text: str, rate: float = 0.4, **more: Any) -> Any:
    return edgeprune.prune(
        module.eval(),
        example,
        more.pop("profile", "raspberry-pi-4"),
        rate=rate,
        data="none",
        importance="magnitude",
        free_sizes=text,
        **more,
    )


def worst(path: Path, module: nn.Module, calls: list[Tensor]) -> float:
    """How far the file is from a module on some calls, of the largest number."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    apart = 0.0
    for call in calls:
        with torch.no_grad():
            want = module(call).numpy()
        (got,) = session.run(None, {session.get_inputs()[0].name: call.numpy()})
        assert got.shape == want.shape
        apart = max(apart, float(np.abs(got - want).max() / np.abs(want).max()))
    return apart


CASES = [
    (Seeing, images(32, 32)[:1], "1x3xHxW=16..256", [images(32, 32), images(52, 84)]),
    (Reading, tokens(6)[:1], "1xT=2..512:int64", [tokens(6), tokens(33), tokens(2)]),
]


@pytest.mark.parametrize(("make", "example", "text", "calls"), CASES[1:])
def test_the_file_is_the_users_module_at_other_sizes(
    make: Any, example: Tensor, text: str, calls: list[Tensor], tmp_path: Path
) -> None:
    module = make().eval()
    whole = pruned(module, example, text, 0)
    assert worst(whole.export(tmp_path / "whole.onnx"), module, calls) < 1e-5


@pytest.mark.parametrize(("make", "example", "text", "calls"), CASES)
def test_a_smaller_file_and_program_are_the_smaller_module_at_other_sizes(
    make: Any, example: Tensor, text: str, calls: list[Tensor], tmp_path: Path
) -> None:
    result = pruned(make(), example, text, output=tmp_path / "out")
    assert result.report["rate"]["met"]
    assert worst(tmp_path / "out" / "model.onnx", result.module, calls) < 1e-5
    program = torch.export.load(tmp_path / "out" / "pruned.pt2").module()
    for call in calls:
        assert torch.allclose(program(call), result.module(call), atol=1e-4)
    again = load(str(tmp_path / "out" / "pruned.pt2"))
    assert again.example_inputs is not None and again.example_inputs.free
    facts = result.report["onnx"]["free_sizes"]
    dims = onnx.load(tmp_path / "out" / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert {d.dim_param for d in dims if d.dim_param} == {"batch", *facts}


def test_what_onnx_writes_for_one_size_is_fixed_and_said(tmp_path: Path) -> None:
    module = Pooled()
    result = pruned(module, images(32, 32)[:1], "1x3xHxW=16..256", 0)
    assert result.report["onnx"]["free_sizes"] == {}
    assert any("can't be free in ONNX" in remark for remark in result.report["remarks"])
    assert worst(result.export(tmp_path / "m.onnx"), module.eval(), [images(32, 32)]) < 1e-5


def test_a_runtime_with_fixed_sizes_has_the_examples_and_says_so(tmp_path: Path) -> None:
    example = images(32, 32)[:1]
    result = pruned(Seeing(), example, "1x3xHxW=16..256", 0, profile="jetson-nano")
    model = onnx.load(result.export(tmp_path / "m.onnx"))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [1, 3, 32, 32]
    assert any("H, W fixed as in the example" in r for r in result.report["remarks"])


def test_a_text_that_fits_no_input_is_refused() -> None:
    with pytest.raises(UserError, match="free_sizes"):
        pruned(Seeing(), images(32, 32), "1xT=2..64")
