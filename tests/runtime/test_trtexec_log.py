"""What trtexec prints, as it stands in NVIDIA's issues and sources."""

from __future__ import annotations

import pytest

from edgeprune.core.errors import UserError
from edgeprune.runtime.trtexec_log import (
    failed,
    managed_memory_mb,
    options_of,
    read_layers,
    read_times,
    reason,
    version_of,
)


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # trtexec --help", (8, 2, 1)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8003] # ./trtexec", (8, 0, 3)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100200] # trtexec", (10, 2, 0)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # ./trtexec", (10, 13, 3)),
        ("&&&& RUNNING TensorRT.trtexec # trtexec", None),
        ("", None),
    ],
)
def test_the_banner_tells_the_version(banner: str, version: tuple[int, ...] | None) -> None:
    assert version_of(banner) == version


def test_options_are_those_at_the_start_of_a_line_of_help() -> None:
    text = (
        "=== Build ===\n  --workspace=N   Set it.\n      or --fp16\n  --memPoolSize=poolspec  x\n"
    )
    assert options_of(text) == {"--workspace", "--memPoolSize"}


# Lines as of 8.0 and 10 (NVIDIA/TensorRT's and Isaac's issues), cut.
OLD = """\
[02/03/2022-06:14:51] [E] [TRT] 3: getPluginCreator could not find plugin: Round version: 1
[02/03/2022-06:14:51] [E] [TRT] ModelImporter.cpp:720: While parsing node number 2 [Round -> "41"]:
[02/03/2022-06:14:51] [E] [TRT] ModelImporter.cpp:721: --- Begin node ---
[02/03/2022-06:14:51] [E] [TRT] ModelImporter.cpp:722: input: "40"
output: "41"
name: "LeakyRelu_2"
op_type: "Round"
attribute {
  name: "alpha"
}

[02/03/2022-06:14:51] [E] [TRT] ModelImporter.cpp:723: --- End node ---
[02/03/2022-06:14:51] [E] [TRT] ModelImporter.cpp:726: ERROR: builtin_op_importers.cpp:4643 In \
function importFallbackPluginImporter:
[8] Assertion failed: creator && "Plugin not found"
[02/03/2022-06:14:51] [E] Failed to parse onnx file
&&&& FAILED TensorRT.trtexec [TensorRT v8003] # trtexec
"""
NEW = """\
[06/13/2025-19:41:36] [E] [TRT] parsers/onnx/ModelImporter.cpp:961: While parsing node number 267 \
[Conv -> "/model/Conv_output_0"]:
[06/13/2025-19:41:36] [E] [TRT] parsers/onnx/ModelImporter.cpp:964: --- Begin node ---
input: "/model/Reshape_output_0"
name: "/model/Conv"
[06/13/2025-19:41:36] [E] [TRT] parsers/onnx/ModelImporter.cpp:965: --- End node ---
[06/13/2025-19:41:36] [E] [TRT] parsers/onnx/ModelImporter.cpp:967: ERROR: \
parsers/onnx/ModelImporter.cpp:195 In function parseNode:
[6] Invalid Node - /model/Conv
&&&& FAILED TensorRT.trtexec [TensorRT v101303] # trtexec
"""
BARE = """\
While parsing node number 24 [Pad]:
ERROR: /workspace/parsers/onnx/builtin_op_importers.cpp:2251 In function importPad:
[8] Assertion failed: inputs.at(1).is_weights()
[04/07/2021-19:29:32] [E] Failed to parse onnx file
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            OLD,
            "TensorRT can't take node 2, Round 'LeakyRelu_2': Assertion failed: creator && "
            '"Plugin not found"',
        ),
        (NEW, "TensorRT can't take node 267, Conv '/model/Conv': Invalid Node - /model/Conv"),
        (BARE, "TensorRT can't take node 24, Pad: Assertion failed: inputs.at(1).is_weights()"),
        (
            "[01/01/2022-00:00:00] [E] Engine set up failed\n"
            "[01/01/2022-00:00:00] [E] [TRT] 2: [builder.cpp] Insufficient memory\n",
            "[builder.cpp] Insufficient memory",
        ),
        ("[01/01/2022-00:00:00] [E] Engine set up failed\n", "Engine set up failed"),
        ("&&&& RUNNING x\nSegmentation fault\n", "Segmentation fault"),
        ("", "trtexec ended with exit status 1"),
    ],
)
def test_a_failure_is_told_by_what_says_most(log: str, said: str) -> None:
    assert reason(1, log) == said


def test_failures_are_told_by_status_or_by_the_last_line() -> None:
    assert failed(1, "") and failed(0, OLD) and not failed(0, "&&&& PASSED TensorRT.trtexec\n")
    assert "want of memory" in reason(137, "[I] Start building\n")


def times(*rows: tuple[float, float]) -> str:
    entries = (
        f'{{ "startComputeMs" : {at}, "computeMs" : {ms}, "latencyMs" : {ms + 1} }}'
        for at, ms in rows
    )
    return "[\n  " + "\n, ".join(entries) + "\n]\n"


def test_times_are_medians_of_what_began_after_the_warm_up() -> None:
    found = read_times(times((0, 90), (499, 80), (500, 2), (510, 1), (520, 3), (530, 10)), 500)
    assert (found.latency_ms, found.runs, found.host_ms, found.mean_ms) == (2.5, 4, 3.5, 4.0)
    assert found.p99_ms == pytest.approx(3 + 7 * 0.97)
    assert found.noise == pytest.approx((4.75 - 1.75) / 2.5) and found.noisy
    steady = read_times(times(*((600 + i, 5) for i in range(9))), 500)
    assert (steady.noise, steady.noisy, steady.latency_ms) == (0, False, 5)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[3]", '[{"computeMs": "x"}]', times((0, 0))])
def test_times_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="no times that can be read"):
        read_times(text)


def test_layers_are_all_but_the_count() -> None:
    text = """[
  { "count" : 10 }
, { "name" : "conv + relu", "timeMs" : 12, "averageMs" : 1.2, "percentage" : 75 }
, { "name" : "fc", "timeMs" : 4, "averageMs" : 0.4, "medianMs" : 0.39, "percentage" : 25 }
]"""
    assert read_layers(text) == [
        {"name": "conv + relu", "time_ms": 1.2},
        {"name": "fc", "time_ms": 0.4},
    ]
    assert read_layers('[{"name" : "a "quote"", "averageMs" : 1}]') == []


def test_memory_is_what_is_managed_once_a_context_is_there() -> None:
    # NVIDIA/TensorRT issue 2217, a Jetson.
    log = """
[I] [TRT] [MemUsageChange] Init cuDNN: CPU +240, GPU +241, now: CPU 674, GPU 2222 (MiB)
[I] [TRT] [MemUsageChange] TensorRT-managed allocation in engine deserialization: CPU +0, GPU +20, \
now: CPU 0, GPU 20 (MiB)
[I] [TRT] [MemUsageChange] TensorRT-managed allocation in IExecutionContext creation: CPU +0, \
GPU +67, now: CPU 0, GPU 87 (MiB)
"""
    assert managed_memory_mb(log) == pytest.approx(87 * 1.048576)
    assert managed_memory_mb("[I] nothing of it\n") is None
