"""The profile of this machine: measured once, kept, mended when broken."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeprune.calibration import fit as calibration
from edgeprune.calibration import host, named
from edgeprune.calibration.fit import fit
from edgeprune.calibration.observations import Results
from edgeprune.core.errors import EdgePruneError, UserError
from edgeprune.profiles.profile import Profile, load_profile
from tests.calibration import tabled
from tests.calibration.hasty import hasty_scripts


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(host.CACHE_VARIABLE, str(folder))
    monkeypatch.delenv(host.THREADS_VARIABLE, raising=False)
    return folder


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitting in a fraction of a second."""
    for name in ("_LARGE", "_SMALL"):
        monkeypatch.setattr(calibration, name, {**getattr(calibration, name), "n_estimators": 1})


@pytest.fixture(scope="module")
def found() -> Results:
    """Results of a machine that is made up: nothing is measured in most of these tests."""
    return tabled.results(12)


@pytest.fixture(scope="module")
def made(found: Results) -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_FEWEST_FOR_TREES", 10**9)
        return fit(found, "host")


@pytest.fixture
def runs(found: Results, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Every measurement asked for, as (threads, seconds); none is carried out."""
    asked: list[tuple[int, float]] = []

    def measure(
        output: Path, threads: int, seconds: float, accept_noise: bool = False, int8: bool = False
    ) -> Results:
        # The quick one doesn't measure int8: with it files themselves are timed.
        assert int8 == (seconds == host.FULL_SECONDS)
        asked.append((threads, seconds))
        output.write_text("{}")
        return replace(found, header={**found.header, "threads": threads})

    monkeypatch.setattr(host, "measure", measure)
    return asked


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real measurements, of few networks and in a hurry."""
    scripts = hasty_scripts(tmp_path / "scripts")
    monkeypatch.setattr(host, "export_folder", lambda: scripts)
    monkeypatch.setattr(host, "_BATCH", 2)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


# -- measuring -----------------------------------------------------------------------------------


def test_this_machine_is_measured_batch_by_batch(hasty: None, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for seconds in (2.5, 10.0, 40.0):  # a busy machine manages fewer in a time
        results = host.measure(path, threads=1, seconds=seconds)
        if len(results.samples) > host._BATCH:
            break
    assert len(results.samples) > host._BATCH
    assert results.header["threads"] == 1
    names = [line["network"] for line in lines(path) if "network" in line]
    assert names == [f"{seed:05d}" for seed in range(len(names))]


def test_what_is_there_already_is_not_measured_again(hasty: None, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    host.measure(path, threads=1, seconds=1.0, int8=True)
    before = [line for line in lines(path) if "network" in line]
    assert len(host.measure(path, threads=1, seconds=1.0, int8=True).pairs) == 10
    assert sum("pair" in line for line in lines(path)) == 10
    after = [line for line in lines(path) if "network" in line]
    assert before and after[: len(before)] == before
    assert len({line["network"] for line in after}) == len(after)


# -- the profile that is kept --------------------------------------------------------------------


def test_the_second_time_nothing_is_measured(runs: list[Any], cache: Path) -> None:
    said: list[str] = []
    first = host.host_profile(say=said.append)
    second = host.host_profile(say=said.append)
    assert first == second
    assert first.name == "host"
    assert len(runs) == len(said) == 1
    assert "measuring this machine" in said[0] and "once" in said[0]
    assert runs == [(1, host.QUICK_SECONDS)]
    assert [path.name for path in cache.iterdir()] == [host.cache_path(1).name]


def test_load_profile_knows_it_and_tells_standard_error(
    runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert named.load_profile("host").name == "host"
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


# -- calibrate -----------------------------------------------------------------------------------


def test_calibrate_writes_a_profile_named_after_its_file(runs: list[Any], tmp_path: Path) -> None:
    output = tmp_path / "my-board.yaml"
    said: list[str] = []
    profile = host.calibrate(output, threads=2, say=said.append)
    assert profile.name == "my-board"
    assert load_profile(output) == profile
    assert runs == [(2, host.FULL_SECONDS)]
    assert len(said) == 1 and "8 minutes" in said[0]


def test_calibrate_takes_the_place_of_the_quick_profile(
    runs: list[Any], cache: Path, tmp_path: Path
) -> None:
    quick = host.host_profile(say=print)
    careful = host.calibrate(tmp_path / "mine.yaml", ram_mb=512, say=print)
    kept = host.host_profile(say=pytest.fail)
    assert kept != quick
    assert kept == careful.model_copy(update={"name": "host"})
    assert [path.name for path in cache.iterdir()] == [host.cache_path(1).name]


def test_an_interrupted_calibration_goes_on_where_it_stopped(
    found: Results, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[bool] = []

    def measure(
        output: Path, threads: int, seconds: float, accept_noise: bool = False, int8: bool = False
    ) -> Results:
        begun.append(output.exists())
        output.write_text("half of it")
        if len(begun) == 1:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(host, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        host.calibrate(tmp_path / "mine.yaml", say=print)
    assert not (tmp_path / "mine.yaml").exists()
    host.calibrate(tmp_path / "mine.yaml", say=print)
    assert begun == [False, True]
    assert [path.suffix for path in cache.iterdir()] == [".yaml"]
    host.calibrate(tmp_path / "mine.yaml", say=print)
    assert begun == [False, True, False]


def test_a_calibration_that_fails_keeps_what_it_measured(
    hasty: None, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(EdgePruneError, match="at least 12"):
        host.calibrate(tmp_path / "mine.yaml", seconds=0.1, say=print)
    [unfinished] = cache.iterdir()
    begun = [line["network"] for line in lines(unfinished) if "network" in line]
    assert 0 < len(begun) < 12
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize("name", ["profile.json", "profile", "missing/profile.yaml"])
def test_calibrate_refuses_a_bad_path_before_it_measures(
    runs: list[Any], tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError):
        host.calibrate(tmp_path / name)
    assert runs == []


def test_a_written_profile_reads_back_equal(made: Profile, tmp_path: Path) -> None:
    profile = made.model_copy(update={"name": "überall: # 1"})
    path = tmp_path / "profile.yaml"
    host.write_profile(profile, path)
    assert load_profile(path) == profile
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["budgets"] == {
        "latency_ms": None,
        "memory_mb": None,
        "size_mb": None,
    }


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    made: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text("old")

    def replace(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(host.os, "replace", replace)
    with pytest.raises(OSError, match="disk full"):
        host.write_profile(made, path)
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

    monkeypatch.setattr(host, "_BATCH", 1)
    monkeypatch.setattr(host.subprocess, "run", run)
    with pytest.raises(EdgePruneError, match="measuring this machine failed") as caught:
        host.host_profile(say=print)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_a_busy_machine_is_measured_all_the_same_and_said_so(
    found: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(output: Path, threads: int, seconds: float, accept_noise: bool = False) -> Results:
        assert accept_noise
        return replace(found, samples=tuple(replace(s, noisy=True) for s in found.samples))

    monkeypatch.setattr(host, "measure", measure)
    said: list[str] = []
    assert host.host_profile(say=said.append).name == "host"
    assert "12 of 12 networks ran unevenly" in said[-1]
