"""Timing the sample networks: resumed where it stopped, refused where it would be noise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeprune.calibration import int8_samples
from edgeprune.calibration.observations import read_results
from edgeprune.calibration.sample_blocks import sample, write_samples
from edgeprune.core.errors import EdgePruneError
from export import microbench, runner
from tests.calibration.hasty import HASTE, hasty_scripts

FIRST = 4  # the ones from here on are of both kinds: with planes and with tokens
NETWORKS = 4
NAMES = [f"{number:05d}" for number in range(FIRST, FIRST + NETWORKS)]
KERNEL = {"name": "Conv0", "op": "Conv", "in": [], "out": [], "parameter_bytes": 0, "ms": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small networks and the reference."""
    folder = tmp_path_factory.mktemp("networks")
    for _ in write_samples(folder, NETWORKS, FIRST):
        pass
    return folder


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HASTE.items():
        monkeypatch.setattr(microbench, name, value)


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "results.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HASTE.items():
            patch.setattr(microbench, name, value)
        microbench.measure(folder, path)
    return path


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what each network's timing comes to; returns the networks that are timed."""

    def set_to(*found: dict[str, Any]) -> list[str]:
        asked: list[str] = []
        waiting = list(found)

        def timing(path: Path, *_: Any) -> dict[str, Any]:
            asked.append(path.stem)
            plain = {"ms": 1.0, "reference_ms": 1.0, "noisy": False, "kernels": [KERNEL]}
            return plain | (waiting.pop(0) if waiting else {})

        monkeypatch.setattr(microbench, "_timed", timing)
        return asked

    return set_to


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


# -- what is measured ----------------------------------------------------------------------------


def test_a_file_says_the_circumstances_the_networks_their_memory_and_a_summary(
    measured: Path,
) -> None:
    header, *networks, memory, summary = lines(measured)
    assert header["format"] == microbench.FORMAT and header["threads"] == 1
    assert header["runtime"] == runner.RUNTIME and header["provider"] == runner.CPU_PROVIDER
    assert {"machine", "cpu", "ram_mb", "governor", "load_average"} <= set(header)
    assert [line["network"] for line in networks] == NAMES
    assert 1 < memory["peak_memory_mb"] < 10_000 and memory["memory"] in NAMES
    assert summary["summary"]["networks"] == NETWORKS
    kernels = sum(len(line["kernels"]) for line in networks)
    assert summary["summary"]["kernels"] == kernels > 50


def test_a_networks_kernels_have_shapes_and_times_that_add_up(measured: Path) -> None:
    for line in lines(measured)[1 : NETWORKS + 1]:
        assert line["ms"] > 0 and line["reference_ms"] > 0 and line["runs"] == 3
        for kernel in line["kernels"]:
            assert kernel["ms"] >= 0 and kernel["op"] and kernel["out"]
        together = sum(kernel["ms"] for kernel in line["kernels"])
        assert line["ms"] / 3 < together < 5 * line["ms"]


def test_what_was_measured_can_be_read(measured: Path) -> None:
    results = read_results(measured)
    assert [sample.name for sample in results.samples] == NAMES
    assert results.summary["networks"] == NETWORKS and len(results.peaks_mb) == 1
    works = [o.work for sample in results.samples for o in sample.kernels]
    assert {"conv", "copy", "elementwise"} <= {work.kind for work in works}
    assert any("Relu" in work.fused for work in works)


# -- going on ------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, timed: Callable[..., list[str]]
) -> None:
    path, asked = tmp_path / "r.jsonl", timed()
    microbench.measure(folder, path, seconds=0)
    assert asked == NAMES[:1]
    with path.open("a") as file:
        file.write(f'{{"network": "{NAMES[1]}", "ms": 1.0, "kern')
    microbench.measure(folder, path, seconds=60)
    assert asked == NAMES
    assert [s.name for s in read_results(path).samples] == asked
    microbench.measure(folder, path, seconds=60)
    assert len(asked) == NETWORKS


def test_more_networks_are_added_to_those_that_are_there(
    folder: Path, tmp_path: Path, timed: Callable[..., list[str]]
) -> None:
    path, asked = tmp_path / "r.jsonl", timed()
    microbench.measure(folder, path, seconds=60)
    for _ in write_samples(tmp_path, 1, first=90):
        pass
    assert microbench.measure(tmp_path, path, seconds=60)["networks"] == NETWORKS + 1
    assert asked[-1] == "00090"


@pytest.mark.parametrize("threads", [1, 2])
def test_another_setup_is_refused(
    threads: int, folder: Path, tmp_path: Path, timed: Callable[..., list[str]]
) -> None:
    path, asked = tmp_path / "r.jsonl", timed()
    microbench.measure(folder, path, threads=2, seconds=0)
    before = path.read_text()
    if threads == 2:
        microbench.measure(folder, path, threads=2, seconds=0)
        return
    with pytest.raises(runner.RunnerError, match="measured otherwise"):
        microbench.measure(folder, path, threads=threads, seconds=0)
    assert path.read_text() == before and asked == NAMES[:1]


def test_a_file_of_something_else_is_not_added_to(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    with pytest.raises(runner.RunnerError, match="measured otherwise"):
        microbench.measure(folder, path, seconds=0)
    assert path.read_text() == "years of work"


# -- noise ---------------------------------------------------------------------------------------


def test_a_disturbed_network_is_timed_once_more_and_the_quieter_time_kept(
    folder: Path, tmp_path: Path, timed: Callable[..., list[str]]
) -> None:
    asked = timed({"noisy": True, "ms": 9.0}, {"ms": 2.0})
    microbench.measure(folder, tmp_path / "r.jsonl", seconds=60)
    assert asked[:3] == [NAMES[0], NAMES[0], NAMES[1]]
    first = lines(tmp_path / "r.jsonl")[1]
    assert (first["ms"], first["noisy"]) == (2.0, False)


def test_a_device_that_is_busy_is_refused_but_what_it_measured_is_kept(
    folder: Path, tmp_path: Path, timed: Callable[..., list[str]]
) -> None:
    timed(*[{"noisy": True}] * 4)
    with pytest.raises(runner.RunnerError, match=r"2 of 4 networks ran unevenly.*busy"):
        microbench.measure(folder, tmp_path / "r.jsonl", seconds=60)
    samples = read_results(tmp_path / "r.jsonl").samples
    assert [sample.noisy for sample in samples] == [True, True, False, False]


def test_a_busy_device_is_measured_where_that_is_accepted(
    folder: Path, tmp_path: Path, timed: Callable[..., list[str]]
) -> None:
    timed(*[{"noisy": True}] * 4)
    summary = microbench.measure(folder, tmp_path / "r.jsonl", seconds=60, accept_noise=True)
    assert (summary["networks"], summary["noisy"]) == (4, 2)


def test_a_device_that_slows_down_is_refused(
    folder: Path,
    tmp_path: Path,
    timed: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(microbench, "MOST_DRIFT", 0.15)
    timed(*({"reference_ms": ms} for ms in (1.0, 1.1, 1.2, 1.3)))
    with pytest.raises(runner.RunnerError, match=r"30% slower at the end.*throttles"):
        microbench.measure(folder, tmp_path / "r.jsonl", seconds=60)


def test_runs_that_spread_or_share_their_core_are_noisy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reference = folder / f"{NAMES[3]}.onnx", lambda: None
    quiet = microbench._timed(path, reference, 1, runner.CPU_PROVIDER)
    monkeypatch.setattr(microbench, "NOISY", -1.0)
    spread = microbench._timed(path, reference, 1, runner.CPU_PROVIDER)
    monkeypatch.setattr(microbench, "NOISY", HASTE["NOISY"])
    monkeypatch.setattr(microbench, "LEAST_CPU_SHARE", 1e9)
    shared = microbench._timed(path, reference, 1, runner.CPU_PROVIDER)
    assert [found["noisy"] for found in (quiet, spread, shared)] == [False, True, True]


# -- the command ---------------------------------------------------------------------------------


def test_it_runs_where_neither_onnx_nor_this_package_is(folder: Path, tmp_path: Path) -> None:
    scripts = hasty_scripts(tmp_path / "scripts")
    for name in ("onnx", "torch", "edgeprune"):
        (scripts / f"{name}.py").write_text("raise ImportError('not on this device')")
    words = [folder, "-o", tmp_path / "r.jsonl", "--seconds", "0", "--threads", "2"]
    done = subprocess.run(
        [sys.executable, scripts / "microbench.py", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads(done.stdout)["networks"] == 1
    assert read_results(tmp_path / "r.jsonl").header["threads"] == 2


@pytest.mark.parametrize(
    "words", [["missing"], ["empty"], ["empty.zip"], ["."], ["--no-such-option"], []]
)
def test_what_goes_wrong_is_one_json_line(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.zip").write_bytes(b"PK\5\6" + bytes(18))
    for path in write_samples(tmp_path, 0):
        assert path.name == microbench.REFERENCE
    assert microbench.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err == ""
    assert list(json.loads(captured.out)) == ["error"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "hello", '{"format": 1}', '{"format": 2}'])
def test_a_file_that_is_no_result_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(EdgePruneError, match=r"r\.jsonl: no results") as caught:
        read_results(tmp_path / "r.jsonl")
    assert "\n" not in str(caught.value)


def test_a_convolution_whose_weight_was_packed_away_is_not_guessed_at(
    folder: Path, tmp_path: Path, timed: Callable[..., list[str]]
) -> None:
    known = {**KERNEL, "in": [[1, 16, 28, 28], [12, 16, 3, 3]], "out": [[1, 12, 28, 28]]}
    packed = {**known, "op": "ConvTranspose", "in": [[1, 16, 28, 28], [12]]}
    timed({"kernels": [known, packed]})
    microbench.measure(folder, tmp_path / "r.jsonl", seconds=60, accept_noise=True)
    first = read_results(tmp_path / "r.jsonl").samples[0]
    assert (first.launches, len(first.kernels)) == (2, 1)


# -- in int8 -------------------------------------------------------------------------------------


def test_a_network_is_timed_in_int8_beside_float_with_the_types_of_this_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turn about: the reference of each is the other. What can't be run says so."""
    monkeypatch.setattr(int8_samples, "names", lambda: ["separable-48", "residual-24"])
    for _ in (*write_samples(tmp_path, 1), *int8_samples.write_pairs(tmp_path)):
        pass
    (tmp_path / "int8" / "residual-24.arm.onnx").write_bytes(b"no model")
    monkeypatch.setattr(microbench.platform, "machine", lambda: "aarch64")
    path = tmp_path / "r.jsonl"
    for _ in range(2):  # the second time there is nothing left to measure
        microbench.measure(tmp_path, path)
    failed, timed = (line for line in lines(path) if "pair" in line)
    assert failed["pair"] == "residual-24" and "error" in failed and "float" not in failed
    assert timed["pair"] == "separable-48"
    ops = {name: {kernel["op"] for kernel in timed[name]["kernels"]} for name in ("float", "int8")}
    assert "Conv" in ops["float"] and "QLinearConv" in ops["int8"]
    assert timed["float"]["ms"] / timed["int8"]["reference_ms"] == pytest.approx(1, rel=0.9)
    assert read_results(path).pairs == (failed, timed)
    assert [sample.name for sample in read_results(path).samples] == ["00000"]


def test_a_disturbed_pair_is_timed_once_more(timed: Any, tmp_path: Path) -> None:
    for name in ("00000.onnx", "reference.onnx"):
        (tmp_path / name).write_bytes(sample(1).SerializeToString())
    (tmp_path / "int8").mkdir()
    for name in ("a.onnx", "a.x86.onnx", "a.arm.onnx"):
        (tmp_path / "int8" / name).write_bytes(sample(1).SerializeToString())
    noisy = {"noisy": True}
    asked = timed({}, noisy, {}, {"ms": 3.0}, {"ms": 4.0})
    microbench.measure(tmp_path, tmp_path / "r.jsonl", accept_noise=True)
    assert [name.partition(".")[0] for name in asked] == ["00000", "a", "a", "a", "a"]
    found = next(line for line in lines(tmp_path / "r.jsonl") if "pair" in line)
    assert (found["noisy"], found["float"]["ms"], found["int8"]["ms"]) == (False, 3.0, 4.0)
