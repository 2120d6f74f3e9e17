"""Attention that a runtime computes in one kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.cost.fx_reader import kernel_graph
from edgeprune.cost.kernels import KernelGraph
from edgeprune.coupling import couple
from edgeprune.coupling.plan import Plan
from edgeprune.profiles.profile import Fusion, load_profile
from tests.pruning import randomized, traced

FUSED, APART = Fusion(attention=True), Fusion()
WIDTH, HEADS, TOKENS = 16, 2, 6


class Attention(nn.Module):
    """As timm and transformers write it. spy: what reads the weights or the keys besides.
    written_out: without PyTorch's own attention."""

    def __init__(self, spy: str = "", written_out: bool = False, mask: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.spy, self.written_out = spy, written_out
        self.register_buffer("mask", torch.ones(TOKENS, TOKENS).tril().log() if mask else None)

    def forward(self, x: Tensor) -> Any:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        if not self.written_out:
            made = F.scaled_dot_product_attention(q, k, v, self.mask)
            return self.out(made.transpose(1, 2).flatten(2))
        scores = q * (WIDTH // HEADS) ** -0.5 @ k.transpose(-2, -1)
        weights = scores.softmax(-1)
        made = self.out((weights @ v).transpose(1, 2).flatten(2))
        besides = {"": None, "answer": weights, "sum": weights.sum(-1), "keys": k.relu()}
        return made if not self.spy else (made, besides[self.spy])


def kernels(module: nn.Module, fusion: Fusion) -> tuple[KernelGraph, dict[int, float]]:
    graph = traced(randomized(module), torch.randn(1, TOKENS, WIDTH))
    coupling = couple(graph)
    values = Plan.everything(coupling).variables(coupling)
    return kernel_graph(graph, coupling, fusion), values


@pytest.mark.parametrize("written_out", [False, True])
def test_it_reads_queries_keys_and_values_and_writes_what_it_makes(written_out: bool) -> None:
    module = Attention(written_out=written_out)
    whole, values = kernels(module, FUSED)
    (one,) = [k for k in whole.kernels if k.label == "Attention"]
    assert one.macs(values) == 2 * HEADS * TOKENS * TOKENS * (WIDTH // HEADS)
    # All three lie in what the linear layer wrote: none is cut out, turned or scaled before.
    assert one.written(values) == TOKENS * WIDTH
    assert one.moved(values) == 4 * TOKENS * WIDTH
    assert {k.kind for k in whole.kernels} == {"linear", "matmul", "copy"}
    apart, values = kernels(module, APART)
    assert whole.macs(values) == apart.macs(values)
    assert any(k.kind == "softmax" for k in apart.kernels)


def test_a_mask_is_read_too() -> None:
    whole, values = kernels(Attention(mask=True), FUSED)
    (one,) = [k for k in whole.kernels if k.label == "Attention"]
    assert one.weights(values) == TOKENS * TOKENS


@pytest.mark.parametrize("spy", ["answer", "sum"])
def test_weights_that_somebody_else_reads_are_written(spy: str) -> None:
    whole, _ = kernels(Attention(spy, written_out=True), FUSED)
    assert any(k.kind == "softmax" for k in whole.kernels)
    assert not any(k.label == "Attention" for k in whole.kernels)


def test_what_others_read_of_a_side_is_cut_out_for_them() -> None:
    """The keys, and so what they are cut out of; queries and values are read where that lies."""
    whole, _ = kernels(Attention("keys", written_out=True), FUSED)
    labels = [k.label for k in whole.kernels]
    assert labels.count("Attention") == 1 and labels.count("Split") == 1
    assert labels.count("Transpose") == 2  # of all three together, and of what is made


def test_boards_whose_tensor_cores_do_it_say_so() -> None:
    fused = {n for n in ("jetson-orin-nano", "jetson-nano", "raspberry-pi-5", "jetson-orin-nx")
             if load_profile(n).fusion.attention}  # fmt: skip
    assert fused == {"jetson-orin-nano", "jetson-orin-nx"}
