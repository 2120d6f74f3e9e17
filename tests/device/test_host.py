"""The profile of this machine: measured once, kept, mended when broken."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeprune.device import host
from edgeprune.device.calibration import fit
from edgeprune.device.profile import load_profile
from edgeprune.errors import EdgePruneError, UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(host.CACHE_VARIABLE, str(folder))
    monkeypatch.delenv(host.THREADS_VARIABLE, raising=False)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Real but hasty results: the only measuring in these tests."""
    return host.run_benches(1, 0.01)


@pytest.fixture
def runs(real: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Every measurement asked for, as (threads, seconds per bench); none is carried out."""
    asked: list[tuple[int, float]] = []

    def run_benches(threads: int, seconds_per_bench: float) -> dict[str, Any]:
        asked.append((threads, seconds_per_bench))
        return {**real, "threads": threads}

    monkeypatch.setattr(host, "run_benches", run_benches)
    return asked


def test_this_machine_can_be_measured(real: dict[str, Any]) -> None:
    profile = fit(real, "host")
    assert profile.threads == 1
    assert profile.peak_gflops.value > 0.1
    assert profile.launch_overhead_us.value < 10_000


def test_the_second_time_nothing_is_measured(runs: list[Any], cache: Path) -> None:
    said: list[str] = []
    first = host.host_profile(say=said.append)
    second = host.host_profile(say=said.append)
    assert first == second
    assert first.name == "host"
    assert len(runs) == len(said) == 1
    assert "measuring this machine" in said[0]
    assert [path.name for path in cache.iterdir()] == [host.cache_path(1).name]


def test_load_profile_knows_it_and_tells_standard_error(
    runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_profile("host").name == "host"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


def test_refresh_measures_again(runs: list[Any]) -> None:
    host.host_profile(say=print)
    host.host_profile(refresh=True, say=print)
    assert len(runs) == 2


@pytest.mark.parametrize("content", [b"", b"schema: 1\nname: ho", b"\xff\xfe\x00", b"a: [", b"3"])
def test_a_broken_cache_is_measured_again(runs: list[Any], content: bytes) -> None:
    first = host.host_profile(say=print)
    host.cache_path(1).write_bytes(content)
    said: list[str] = []
    assert host.host_profile(say=said.append) == first
    assert len(runs) == 2
    assert "broken" in said[0]
    assert load_profile(host.cache_path(1)) == first


def test_a_cache_that_cannot_be_written_is_said_and_survived(runs: list[Any], cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    said: list[str] = []
    assert host.host_profile(say=said.append).name == "host"
    assert host.CACHE_VARIABLE in said[-1]


def test_threads_come_from_the_environment(
    runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host.host_profile(say=print).threads == 1
    monkeypatch.setenv(host.THREADS_VARIABLE, "3")
    assert host.host_profile(say=print).threads == 3
    assert [threads for threads, _ in runs] == [1, 3]  # kept apart
    monkeypatch.setenv(host.THREADS_VARIABLE, "all")
    with pytest.raises(UserError, match=host.THREADS_VARIABLE):
        host.host_profile(say=print)


def test_the_cache_is_keyed_by_processor_and_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    here = host.cache_path(1)
    assert here == host.cache_path(1)
    monkeypatch.setattr(host, "_cpu_identity", lambda: "another")
    elsewhere = host.cache_path(1)
    monkeypatch.setattr(host, "_version", lambda package: "99")
    assert len({here, elsewhere, host.cache_path(1)}) == 3


def test_calibrate_writes_a_profile_named_after_its_file(runs: list[Any], tmp_path: Path) -> None:
    output = tmp_path / "my-board.yaml"
    said: list[str] = []
    profile = host.calibrate(output, threads=2, say=said.append)
    assert profile.name == "my-board"
    assert load_profile(output) == profile
    assert runs == [(2, 1.2)]
    assert len(said) == 1


def test_calibrate_takes_the_results_of_another_device(
    runs: list[Any], real: dict[str, Any], tmp_path: Path
) -> None:
    results, output = tmp_path / "results.json", tmp_path / "board.yaml"
    results.write_text(json.dumps(real))
    assert host.calibrate(output, results=results, ram_mb=1024).ram_mb.value == 1024
    with pytest.raises(UserError, match="ram_mb"):
        host.calibrate(output, results=results)
    results.write_text("{")
    with pytest.raises(UserError, match=r"results\.json"):
        host.calibrate(output, results=results, ram_mb=1024)
    assert runs == []


@pytest.mark.parametrize("name", ["profile.json", "profile", "missing/profile.yaml"])
def test_calibrate_refuses_a_bad_path_before_it_measures(
    runs: list[Any], tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError):
        host.calibrate(tmp_path / name)
    assert runs == []


def test_a_written_profile_reads_back_equal(real: dict[str, Any], tmp_path: Path) -> None:
    profile = fit(real, "überall: # 1")
    path = tmp_path / "profile.yaml"
    host.write_profile(profile, path)
    assert load_profile(path) == profile
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["budgets"] == {
        "latency_ms": None,
        "memory_mb": None,
        "size_mb": None,
    }


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    real: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text("old")

    def replace(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(host.os, "replace", replace)
    with pytest.raises(OSError, match="disk full"):
        host.write_profile(fit(real, "x"), path)
    assert [p.name for p in tmp_path.iterdir()] == ["profile.yaml"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("stdout", "stderr", "reason"),
    [
        ('{"error": "no onnx here"}', "", "no onnx here"),
        ("", "Traceback\n  ...\nMemoryError: too much", "MemoryError: too much"),
        ("", "", "exit status 2"),
    ],
)
def test_a_failed_measurement_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, cache: Path, stdout: str, stderr: str, reason: str
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 2, stdout, stderr)

    monkeypatch.setattr(host.subprocess, "run", run)
    with pytest.raises(EdgePruneError, match="measuring this machine failed") as caught:
        host.host_profile(say=print)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not cache.exists()
