"""What int8 takes by kind of kernel: what made-up times hold comes out, what is broken does not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgeprune.calibration import int8_samples
from edgeprune.calibration.fit import fit
from edgeprune.calibration.int8_shares import figures, read_pairs
from edgeprune.core.errors import EdgePruneError
from edgeprune.profiles.profile import Int8Kinds
from tests.calibration import tabled

SHARES = {"stem": 1.5, "conv": 0.3, "pointwise": 0.4, "depthwise": 1.2, "linear": 0.25, "rest": 2.0}
#: What the profiler adds to each kernel, and what quantising the input takes.
OFFSET_MS, BORDER_MS = 0.002, 0.5

# What a profile of onnxruntime tells of a kernel of each kind: op, shapes in and out.
_KERNELS: dict[str, tuple[str, str, list[list[int]], list[list[int]]]] = {
    "stem": ("Conv", "QLinearConv", [[1, 3, 64, 64], [16, 3, 3, 3]], [[1, 16, 32, 32]]),
    "conv": ("Conv", "QLinearConv", [[1, 16, 32, 32], [16, 16, 3, 3]], [[1, 16, 32, 32]]),
    "pointwise": ("Conv", "QLinearConv", [[1, 16, 32, 32], [32, 16, 1, 1]], [[1, 32, 32, 32]]),
    "depthwise": ("Conv", "QLinearConv", [[1, 32, 32, 32], [32, 1, 3, 3]], [[1, 32, 32, 32]]),
    "rest": ("Add", "QLinearAdd", [[1, 32, 32, 32]] * 2, [[1, 32, 32, 32]]),
    "linear": ("Gemm", "QGemm", [[1, 32], [10, 32]], [[1, 10]]),
}


def line(name: str, times: Mapping[str, float], shares: Mapping[str, float] = SHARES) -> Any:
    """What microbench.py writes of a network of one kernel of each kind, and of one that changes
    types, which is none of them. times: milliseconds in float."""

    def kernel(kind: str, quantised: bool) -> dict[str, Any]:
        op, op_in_int8, given, made = _KERNELS[kind]
        ms = times[kind] * (shares[kind] if quantised else 1.0) + OFFSET_MS
        # An integer kernel doesn't tell its weight.
        shapes = {"in": given[:1] if quantised else given, "out": made}
        facts = {"name": kind, "op": op_in_int8 if quantised else op, "parameter_bytes": 64}
        return {**facts, **shapes, "ms": ms}

    border: dict[str, Any] = {"name": "q", "op": "QuantizeLinear", "in": [[1]], "out": [[1]]}
    border["ms"] = BORDER_MS + OFFSET_MS
    whole = sum(times.values())
    in_int8 = sum(ms * shares[kind] for kind, ms in times.items()) + BORDER_MS
    first = [kernel(kind, False) for kind in times]
    second = [{**border, "parameter_bytes": 0}, *(kernel(kind, True) for kind in times)]
    return {
        "pair": name,
        "noisy": False,
        "float": {"ms": whole, "reference_ms": in_int8, "kernels": first},
        "int8": {"ms": in_int8, "reference_ms": whole, "kernels": second},
    }


def table(*lines: Any) -> dict[str, Any]:
    return figures(read_pairs(lines), "made up")


ALIKE = dict.fromkeys(SHARES, 1.0)


def test_what_was_put_in_comes_out_by_kind() -> None:
    found = table(line("a", ALIKE), line("b", {**ALIKE, "conv": 7.0}))
    assert set(found["int8_kinds"]) == set(Int8Kinds.model_fields)
    got = {kind: figure["value"] for kind, figure in found["int8_kinds"].items()}
    assert got == pytest.approx(SHARES, rel=1e-3)
    in_int8 = sum(SHARES.values()) + BORDER_MS
    first, second = in_int8 / 6, (in_int8 + 6 * SHARES["conv"]) / 12
    assert found["int8"]["value"] == pytest.approx((first + second) / 2, rel=2e-3)


def test_long_kernels_count_more_and_the_scatter_is_told() -> None:
    slow = {**SHARES, "conv": 0.5}
    found = table(line("a", ALIKE), line("b", {**ALIKE, "conv": 3.0}, slow))["int8_kinds"]["conv"]
    assert found["value"] == pytest.approx((1 * 0.3 + 3 * 0.5) / 4, rel=1e-3)
    assert found["source"].startswith("made up") and "0.30 to 0.50" in found["source"]
    assert "2 sample networks" in found["source"]


def test_a_network_tells_nothing_of_kinds_that_it_hardly_has() -> None:
    odd = line("b", {**ALIKE, "rest": 0.01}, {**SHARES, "rest": 90.0})
    found = table(line("a", ALIKE), odd)["int8_kinds"]["rest"]
    assert found["value"] == pytest.approx(SHARES["rest"], rel=1e-3)
    assert "1 sample networks" in found["source"]


def test_the_machines_speed_while_one_was_timed_does_not_count() -> None:
    """Twice as slow while the file in int8 was looked at, its neighbour in float too."""
    found = line("a", ALIKE)
    slow = found["int8"]
    slow["ms"] *= 2
    slow["reference_ms"] *= 2
    for kernel in slow["kernels"]:
        kernel["ms"] = 2 * (kernel["ms"] - OFFSET_MS) + OFFSET_MS
    assert table(found) == table(line("a", ALIKE))


def test_disturbed_networks_count_only_where_no_other_tells() -> None:
    wild = line("b", ALIKE, dict.fromkeys(SHARES, 5.0)) | {"noisy": True}
    assert table(line("a", ALIKE), wild) == table(line("a", ALIKE))
    assert table(wild)["int8"]["value"] == pytest.approx(5.0 + BORDER_MS / 6, rel=1e-3)


def test_without_times_of_each_kind_there_is_no_table() -> None:
    some = {kind: 1.0 for kind in SHARES if kind != "depthwise"}
    failed = {"pair": "c", "error": "no such kernel"}
    assert table() == table(failed) == table(line("a", some)) == {}
    assert table(line("a", some), line("b", ALIKE), failed)["int8_kinds"]


def test_networks_of_other_layers_in_int8_are_left_out_and_the_notes_say_why() -> None:
    other = line("b", ALIKE)
    del other["int8"]["kernels"][1]
    assert table(line("a", ALIKE), other) == table(line("a", ALIKE))
    results = replace(tabled.results(12), pairs=(line("a", ALIKE), other))
    made = fit(results, "mine")
    assert "1 of 2 networks told nothing of int8: the runtime" in made.notes
    assert made.int8_kinds is not None and made.int8_kinds.conv.value == pytest.approx(0.3)
    failed = fit(replace(results, pairs=({"pair": "a", "error": "no kernel"},)), "mine")
    assert "1 of 1 networks told nothing of int8: no kernel" in failed.notes
    assert failed.int8 is failed.int8_kinds is None
    assert failed.tables == made.tables == fit(replace(results, pairs=()), "mine").tables


@pytest.mark.parametrize("broken", ["no float", "no time", "no number"])
def test_what_is_broken_is_one_line(broken: str) -> None:
    found = copy.deepcopy(line("a", ALIKE))
    if broken == "no float":
        del found["float"]
    elif broken == "no time":
        found["float"]["ms"] = 0
    else:
        found["int8"]["ms"] = "fast"
    with pytest.raises(EdgePruneError, match="measure again") as caught:
        read_pairs([found])
    assert "\n" not in str(caught.value)


def test_the_networks_are_written_in_float_and_for_each_processor(tmp_path: Path) -> None:
    paths = list(int8_samples.write_pairs(tmp_path))
    assert {p.name for p in paths} == {
        f"{name}{ending}" for name in int8_samples.names() for ending in ENDINGS
    }
    for path in paths:
        types = {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}
        assert (onnx.TensorProto.INT8 in types) == (path.name.count(".") == 2)
        assert (onnx.TensorProto.UINT8 in types) == path.name.endswith(".x86.onnx")


ENDINGS = (".onnx", ".x86.onnx", ".arm.onnx")
