"""What a file in int8 is predicted to cost: by kind of kernel, or by one figure, or as in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeprune.calibration.int8_samples import sample
from edgeprune.cost.onnx_reader import kernel_graph
from edgeprune.cost.pricing import int8_kind
from edgeprune.cost.work import Work
from edgeprune.export.file_cost import predicted
from edgeprune.export.onnx import Exported
from edgeprune.profiles.profile import Figure, Int8Kinds, Profile, load_profile
from edgeprune.quantization import Quantized

SHARES = {"stem": 1.5, "conv": 0.3, "pointwise": 0.4, "depthwise": 1.2, "linear": 0.25, "rest": 2.0}


def figure(value: float) -> Figure:
    return Figure(value=value, source="made up")


def profile(**fields: Any) -> Profile:
    return load_profile("raspberry-pi-5").model_copy(update={"int8": None, **fields})


def kinds(**shares: float) -> Int8Kinds:
    return Int8Kinds(**{name: figure(value) for name, value in (SHARES | shares).items()})


def in_int8(folder: Path, network: str, floats: tuple[str, ...] = ()) -> Exported:
    """A sample network all of whose nodes count as int8, but for those that have `floats` ops."""
    path = folder / f"{network}.onnx"
    model = sample(network)
    onnx.save(model, path)
    inside = tuple(n.name for n in model.graph.node if n.op_type not in floats)
    made = Quantized(path, "int8", (), 1.0, 4.0, int8_nodes=inside)
    return Exported(path, None, (), (), 1.0, (), quantized=made, float_path=path)


def share(folder: Path, network: str, on: Profile, floats: tuple[str, ...] = ()) -> float:
    """Predicted latency in int8, as a share of that in float."""
    exported = in_int8(folder, network, floats)
    model = onnx.load(str(exported.path))
    in_float = kernel_graph(model, on.fusion).latency_ms(on, {})
    return predicted(exported, 1, on).latency_ms / in_float


def test_a_kernel_is_priced_by_the_share_of_its_kind(tmp_path: Path) -> None:
    """Of two networks the one of depthwise convolutions gains less."""
    on = profile(int8=figure(0.5), int8_kinds=kinds())
    dense, separable = (share(tmp_path, n, on) for n in ("residual-48", "separable-48"))
    assert dense < 0.5 < separable - 0.1
    everything = profile(int8_kinds=kinds(**dict.fromkeys(SHARES, 0.7)))
    assert share(tmp_path, "joined-32", everything) == pytest.approx(0.7, rel=1e-9)


def test_each_kind_has_a_price_of_its_own(tmp_path: Path) -> None:
    """Doubling one kind's share adds what that kind takes in float; together that is all of it."""
    added = {}
    for network in ("residual-24", "inverted-16", "joined-32", "perceptrons-64"):
        base = share(tmp_path, network, profile(int8_kinds=kinds()))
        for name in SHARES:
            more = profile(int8_kinds=kinds(**{name: SHARES[name] + 1.0}))
            added[network, name] = share(tmp_path, network, more) - base
    assert added["residual-24", "conv"] > 0.8 and added["residual-24", "depthwise"] == 0
    assert added["inverted-16", "depthwise"] > 0.1 and added["inverted-16", "pointwise"] > 0.3
    assert added["perceptrons-64", "linear"] > 0.5 and added["joined-32", "stem"] > 0.05
    for network in {network for network, _ in added}:
        assert sum(added[network, name] for name in SHARES) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("floats", [(), ("Gemm",)])
def test_without_the_table_one_figure_prices_all_as_it_did(
    tmp_path: Path, floats: tuple[str, ...]
) -> None:
    """To the last bit."""
    on = profile(int8=figure(0.37))
    exported = in_int8(tmp_path, "joined-32", floats)
    kernels = kernel_graph(onnx.load(str(exported.path)), on.fusion)
    assert exported.quantized is not None
    inside = set(exported.quantized.int8_nodes)
    times = zip(kernels.kernels, kernels.kernel_latencies_ms(on, {}), strict=True)
    as_it_was = sum(ms if inside.isdisjoint(k.ops) else 0.37 * ms for k, ms in times)
    cost = predicted(exported, 1, on)
    assert cost.latency_ms == as_it_was
    assert cost.remarks[-1] == "int8 is priced at 37% of the time of fp32 (made up)"


def test_what_stays_float_costs_what_float_does(tmp_path: Path) -> None:
    on = profile(int8_kinds=kinds())
    all_float = ("Conv", "Gemm", "MaxPool", "Concat", "Mul", "Add", "GlobalAveragePool", "Relu")
    assert share(tmp_path, "joined-32", on, (*all_float, "Sigmoid", "Reshape")) == 1.0


def test_where_nothing_is_known_it_is_floats_latency_and_said(tmp_path: Path) -> None:
    assert share(tmp_path, "residual-24", profile()) == 1.0
    cost = predicted(in_int8(tmp_path, "residual-24"), 1, profile())
    assert "no figure for int8" in cost.remarks[-1]
    told = predicted(in_int8(tmp_path, "residual-24"), 1, profile(int8_kinds=kinds())).remarks[-1]
    assert "by kind of kernel" in told and "depthwise 120%" in told


@pytest.mark.parametrize(
    ("kind", "sizes", "name"),
    [
        ("conv", (3, 3, 3, 1), "stem"),
        ("conv", (1, 10, 4, 1), "stem"),
        ("conv", (3, 7, 7, 1), "conv"),
        ("conv", (16, 3, 3, 1), "conv"),
        ("grouped", (64, 3, 3, 8), "conv"),
        ("grouped", (64, 3, 3, 32), "stem"),
        ("pointwise", (3, 1, 1, 1), "pointwise"),
        ("depthwise", (64, 3, 3, 64), "depthwise"),
        ("linear", None, "linear"),
        ("elementwise", None, "rest"),
        ("pool", None, "rest"),
        ("copy", None, "rest"),
    ],
)
def test_each_kernel_has_its_kind(
    kind: str, sizes: tuple[int, int, int, int] | None, name: str
) -> None:
    known = dict(zip(("cin", "kh", "kw", "groups"), map(np.asarray, sizes or ()), strict=False))
    assert int8_kind(Work(kind, sizes=known)) == name
