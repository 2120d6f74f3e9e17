"""The curve: one scoring pass, a point per latency budget, results that can be taken up again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeprune.cli.app import main
from edgeprune.pipeline import run as pipeline
from edgeprune.report import Report
from edgeprune.sweeping import curve as curve_module
from edgeprune.sweeping.html import render
from edgeprune.sweeping.results import Row, Sweep, front

NETWORK = """
import torch
from torch import nn


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )
    return model, torch.zeros(1, 3, 16, 16)


def talkative():
    print("factories may print")
    return network()


def other():
    return network(1)


def metric(model):
    return float(sum(p.numel() for p in model.parameters()))
"""
FAST = ("--profile", "raspberry-pi-4", "--solver-seconds", "2", "--points", "3")
COLUMNS = (
    "share,latency_budget_ms,latency_ms,latency_source,peak_memory_mb,size_mb,params,macs,loss,gap,"
    "metric,met,folder"
)
POINT = ["model.onnx", "pruned.pt2", "pruned.safetensors", "report.html", "report.json"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of some 40 k parameters and labelled data for it."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "small_network.py").write_text(NETWORK)
    random = np.random.default_rng(0)
    x = random.normal(size=(96, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=random.integers(0, 4, 96))
    return folder


@pytest.fixture(scope="module")
def words(place: Path) -> tuple[str, ...]:
    return ("sweep", f"{place / 'small_network.py'}:network", *FAST)


@pytest.fixture(scope="module")
def swept(place: Path, words: tuple[str, ...]) -> Path:
    """A sweep with data that several tests look at."""
    folder = place / "swept"
    assert main([*words, "--data", str(place / "data.npz"), "-o", str(folder), "-q"]) == 0
    return folder


@pytest.fixture
def mine(swept: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(swept, tmp_path / "mine"))


@pytest.fixture
def fast(swept: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Points that are taken from there, where it's not what is in them that counts; the budgets."""
    made: list[float] = []
    budgets = {row["latency_budget_ms"]: row["folder"] for row in rows(swept)}

    def copied(task: Any, prepared: Any, latency_ms: float, folder: Path, *_: Any) -> None:
        made.append(latency_ms)
        shutil.copytree(swept / budgets[str(latency_ms)], folder, dirs_exist_ok=True)

    monkeypatch.setattr(curve_module, "fit_point", copied)
    return made


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def widths(folder: Path) -> dict[str, list[int]]:
    """What each point's plan is."""
    reports = {p.name: p / "report.json" for p in (folder / "points").iterdir()}
    return {
        k: [g["after"] for g in json.loads(r.read_text())["groups"]] for k, r in reports.items()
    }


def ends(folder: Path) -> list[dict[str, str]]:
    """The rows that a sweep of two points has as well; a bound depends on the solver's time."""
    return [{**row, "gap": ""} for row in rows(folder) if row["share"] != "0.55"]


def times(folder: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("points/*/model.onnx")}


def changed(words: tuple[str, ...], *more: str) -> list[str]:
    """The words with options added, or given other values."""
    spoken = list(words)
    for option, value in zip(more[::2], more[1::2], strict=True):
        if option in spoken:
            spoken[spoken.index(option) + 1] = value
        else:
            spoken += [option, value]
    return spoken


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that bad words end in."""
    capfd.readouterr()
    assert main(list(words)) == 2
    captured = capfd.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("edgeprune: ") and not captured.out
    return line


# -- the curve -----------------------------------------------------------------------------------


def test_curve_falls_in_latency_and_rises_in_loss_from_the_unpruned_model(swept: Path) -> None:
    table = rows(swept)
    assert [row["share"] for row in table] == ["1.0", "0.9", "0.55", "0.2"]
    latencies = [float(row["latency_ms"]) for row in table]
    losses = [float(row["loss"]) for row in table]
    assert latencies == sorted(latencies, reverse=True) and losses == sorted(losses)
    assert losses[0] == 0 < losses[1] and len(set(latencies)) == 4
    for row in table[1:]:
        budget = float(row["share"]) * latencies[0]
        assert float(row["latency_budget_ms"]) == pytest.approx(budget)
        assert float(row["latency_ms"]) <= budget and row["met"] == "True"


def test_csv_has_the_columns_that_scripts_read(swept: Path) -> None:
    lines = (swept / "sweep.csv").read_text().splitlines()
    assert lines[0].startswith(COLUMNS) and len(lines) == 5
    assert all(float(row["metric"]) >= 0 for row in rows(swept))


def test_every_point_is_what_prune_writes(swept: Path) -> None:
    for row in rows(swept)[1:]:
        folder = swept / row["folder"]
        assert sorted(p.name for p in folder.iterdir()) == POINT
        report = Report.from_json((folder / "report.json").read_text())
        assert report.met and report.validation.passed
        assert report.after.latency_ms == float(row["latency_ms"])
        assert report.budgets.memory_mb == 512  # the profile's own holds at every point
        assert report.files["onnx"] == str(folder / "model.onnx")
    program = torch.export.load(swept / "points" / "0.20" / "pruned.pt2")
    assert program.module(check_guards=False)(torch.zeros(1, 3, 16, 16)).shape == (1, 4)


def test_json_holds_the_same_rows_and_what_they_are_of(swept: Path) -> None:
    sweep = Sweep.model_validate_json((swept / "sweep.json").read_text())
    assert (sweep.model, sweep.profile, sweep.seed, sweep.met) == (
        "network",
        "raspberry-pi-4",
        0,
        True,
    )
    assert sweep.to_csv() == (swept / "sweep.csv").read_text()
    assert sweep.settings["importance"] == "sensitivity" and sweep.settings["points"] == 3
    assert sweep.metric_name == "accuracy, %" and sweep.baseline.metric is not None


def test_scores_are_made_once_and_the_folder_is_the_models_and_the_profiles(
    place: Path,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    scored, traced = [], []
    score, trace = pipeline.score, pipeline.trace
    monkeypatch.setattr(pipeline, "score", lambda *a: scored.append(1) or score(*a))
    monkeypatch.setattr(pipeline, "trace", lambda *a: traced.append(1) or trace(*a))
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    metric = f"{place / 'small_network.py'}:metric"
    assert main(changed(words, "--points", "2", "--eval", metric)) == 0
    assert len(scored) == len(traced) == 1
    out = capfd.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["network-raspberry-pi-4-sweep"]
    assert "unpruned" in out and "All 2 points meet their budgets." in out
    table = rows(tmp_path / "network-raspberry-pi-4-sweep")
    assert all(float(row["metric"]) == float(row["params"]) for row in table)


def test_front_keeps_what_no_other_row_beats() -> None:
    def row(latency: float | None, loss: float | None) -> Row:
        return Row(share=0.5, latency_ms=latency, loss=loss)

    slow, beaten, fast, equal = row(4, 0), row(3, 0.5), row(2, 0.4), row(2, 0.4)
    found = front([slow, beaten, fast, equal, row(1, None), row(None, 0)], lambda r: r.loss)
    assert found == [slow, fast]


# -- taken up again ------------------------------------------------------------------------------


def test_same_words_again_make_nothing_anew(
    place: Path, words: tuple[str, ...], mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(pipeline, "score", never)
    before, made = (mine / "sweep.csv").read_text(), times(mine)
    (mine / "sweep.csv").unlink()
    assert main([*words, "--data", str(place / "data.npz"), "-o", str(mine), "-q"]) == 0
    assert (mine / "sweep.csv").read_text() == before and times(mine) == made


def test_damaged_point_alone_is_made_again_and_comes_out_the_same(
    place: Path, words: tuple[str, ...], mine: Path
) -> None:
    before, plans, made = rows(mine), widths(mine), times(mine)
    file = mine / "points" / "0.55" / "model.onnx"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one bit
    file.write_bytes(damaged)
    assert main([*words, "--data", str(place / "data.npz"), "-o", str(mine), "-q"]) == 0
    assert widths(mine) == plans
    for old, new in zip(before, rows(mine), strict=True):
        assert {**old, "gap": ""} == {**new, "gap": ""}
    assert sorted(name for name in made if times(mine)[name] == made[name]) == ["0.20", "0.90"]


def test_damaged_scores_are_said(
    place: Path, words: tuple[str, ...], mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (mine / "scores.npz").open("r+b") as file:
        file.seek(200)
        file.write(b"\0\1\2")
    assert main([*words, "--data", str(place / "data.npz"), "-o", str(mine), "-q"]) == 2
    assert "scores.npz is damaged: --fresh" in capsys.readouterr().err


def test_killed_sweep_goes_on_where_it_was(
    place: Path, words: tuple[str, ...], swept: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    command = changed(words, "--points", "2", "--data", str(place / "data.npz"), "-o", str(folder))
    command.append("-q")
    process = subprocess.Popen([sys.executable, "-m", "edgeprune", *command])
    try:
        until = time.monotonic() + 60
        while not (folder / "points" / "0.90").exists() and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    made = times(folder)
    assert "0.90" in made and not (folder / "sweep.csv").exists()
    assert main(command) == 0
    assert made.items() <= times(folder).items()
    assert widths(folder).items() <= widths(swept).items() and ends(folder) == ends(swept)


def test_interrupted_sweep_says_how_it_goes_on(
    words: tuple[str, ...],
    tmp_path: Path,
    fast: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fit_point = curve_module.fit_point

    def interrupted(*arguments: Any) -> None:
        if fast:
            raise KeyboardInterrupt
        fit_point(*arguments)

    monkeypatch.setattr(curve_module, "fit_point", interrupted)
    capfd.readouterr()
    assert main([*words, "-o", str(tmp_path / "out"), "-q"]) == 130
    [line] = capfd.readouterr().err.splitlines()
    assert "1 of 3 points" in line and "same words" in line


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--seed", "1"), "--seed is 1 and was 0"),
        (("--size-mb", "9"), "--size-mb is 9 and was none"),
        (("--profile", "jetson-nano"), "--profile is jetson-nano and was raspberry-pi-4"),
        (("other",), "the model differs"),
    ],
)
def test_folder_of_another_sweep_is_refused_by_what_differs(
    place: Path,
    words: tuple[str, ...],
    swept: Path,
    capfd: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    told: str,
) -> None:
    made = times(swept)
    spoken = changed(words, "--data", str(place / "data.npz"), "-o", str(swept))
    if more == ("other",):
        spoken[1] = f"{place / 'small_network.py'}:other"
    else:
        spoken = changed(tuple(spoken), *more)
    line = refused(capfd, *spoken)
    assert told in line and "-o" in line and "--fresh" in line
    assert times(swept) == made


def test_other_data_are_another_sweep_and_fresh_begins_anew(
    words: tuple[str, ...], mine: Path, fast: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    again = [*changed(words, "-o", str(mine), "--points", "2"), "-q"]
    assert "--data is none" in refused(capfd, *again)
    assert main([*again, "--fresh"]) == 0
    assert len(fast) == 2 and len(rows(mine)) == 3
    assert sorted(p.name for p in (mine / "points").iterdir()) == ["0.20", "0.90"]


# -- what can't be met, and what fails -----------------------------------------------------------


def test_unreachable_point_is_marked_and_ends_in_3(
    words: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    capfd.readouterr()
    code = main(
        changed(words, "--points", "2", "--least", "0.01", "--method", "layer", "-o", str(folder))
    )
    captured = capfd.readouterr()
    assert code == 3
    assert "0.01" in captured.err.splitlines()[-1] and "out of reach" in captured.err
    assert "over" in captured.out and "NOT" in captured.out
    last = rows(folder)[-1]
    assert last["met"] == "False" and "out of reach" in last["note"]
    assert (folder / "points" / "0.01" / "model.onnx").exists()
    assert "out of reach" in (folder / "sweep.html").read_text()


def test_nothing_to_sweep_is_said(
    words: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused(capfd, *words, "--method", "layer", "-o", str(tmp_path / "out"))
    assert "nothing to sweep" in line and "--least" in line


def test_failing_point_is_named_and_alone_made_again(
    words: tuple[str, ...],
    tmp_path: Path,
    fast: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, fit_point, failed = tmp_path / "out", curve_module.fit_point, []

    def failing(*arguments: Any) -> None:
        if len(fast) == 1 and not failed:
            failed.append(1)
            raise RuntimeError("out of luck\nat this point")
        fit_point(*arguments)

    monkeypatch.setattr(curve_module, "fit_point", failing)
    capfd.readouterr()
    assert main([*words, "-o", str(folder), "-q"]) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert "point 0.55 failed: RuntimeError: out of luck" in line
    assert [row["params"] != "" for row in rows(folder)] == [True, True, False, True]
    assert main([*words, "-o", str(folder), "-q"]) == 0
    assert len(fast) == 3 and all(row["met"] == "True" for row in rows(folder))


# -- side by side --------------------------------------------------------------------------------


def test_two_jobs_make_the_plans_of_one_and_print_nothing_else(
    place: Path,
    words: tuple[str, ...],
    swept: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "out"
    command = changed(words, "--data", str(place / "data.npz"), "-o", str(folder), "--jobs", "2")
    command = changed(tuple(command), "--points", "2")
    command[1] = f"{place / 'small_network.py'}:talkative"
    capfd.readouterr()
    assert main([*command, "--json"]) == 0
    captured = capfd.readouterr()
    assert captured.out == (folder / "sweep.json").read_text()
    assert captured.err == "factories may print\n"  # once, from this process
    assert widths(folder).items() <= widths(swept).items() and ends(folder) == ends(swept)


def test_cluster_without_dask_says_what_to_install(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    folder = tmp_path / "out"
    line = refused(capfd, *words, "--cluster", "tcp://localhost:8786", "-o", str(folder))
    assert "pip install 'edgeprune[cluster]'" in line and not folder.exists()


def two_points(words: tuple[str, ...], place: Path, folder: Path, cluster: Any) -> list[str]:
    """The command for two points on a cluster."""
    data, address = str(place / "data.npz"), cluster.scheduler_address
    few = ("--points", "2", "--data", data, "-o", str(folder))
    return [*changed(words, *few), "-q", "--cluster", address]


def test_cluster_makes_the_same_points(
    place: Path, words: tuple[str, ...], swept: Path, tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    folder = tmp_path / "out"
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, dashboard_address=None
    ) as cluster:
        assert main(two_points(words, place, folder, cluster)) == 0
    assert widths(folder).items() <= widths(swept).items()


def test_a_worker_that_is_lost_in_the_middle_is_replaced(
    place: Path, words: tuple[str, ...], swept: Path, tmp_path: Path
) -> None:
    """Its points are made by another one, and come to the same."""
    distributed = pytest.importorskip("distributed")
    folder = tmp_path / "out"
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        pids = {nanny.worker_address: nanny.pid for nanny in cluster.workers.values()}
        lost: list[int] = []

        def lose_one() -> None:
            while not lost:
                time.sleep(0.01)
                for worker in list(cluster.scheduler.workers.values()):
                    if worker.processing and worker.address in pids:
                        lost.append(pids[worker.address])
                        os.kill(lost[0], signal.SIGKILL)
                        return

        threading.Thread(target=lose_one, daemon=True).start()
        assert main(two_points(words, place, folder, cluster)) == 0
    assert lost
    assert widths(folder).items() <= widths(swept).items()


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--points", "1"), "--points 1"),
        (("--points", "80"), "give at most 71"),
        (("--points", "80", "--least", "0.5"), "give at most 41"),
        (("--least", "0"), "--least 0"),
        (("--least", "0.9"), "--least 0.9"),
        (("--least", "0.333"), "hundredths"),
        (("--least", "nan"), "--least nan"),
        (("--jobs", "0"), "--jobs 0"),
        (("--jobs", "2", "--cluster", "tcp://x:1"), "exclude"),
        (("--jobs", "2", "--profile", "host"), "time each other"),
        (("--cluster", "tcp://x:1", "--profile", "host"), "time each other"),
        (("--epochs", "1"), "--data"),
        (("--latency-ms", "3"), "latency-ms"),
    ],
)
def test_bad_words_are_refused_in_one_line(
    words: tuple[str, ...],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    told: str,
) -> None:
    assert told in refused(capfd, *changed(words, *more, "-o", str(tmp_path / "out")))


def test_folder_with_other_files_is_refused(
    words: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "notes.txt" in refused(capfd, *words, "-o", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


# -- the page ------------------------------------------------------------------------------------


class _Outside(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "src" or (name == "href" and tag == "link"):
                self.loaded.append(f"{tag} {value}")
            if name == "href" and tag == "a":
                self.links.append(value or "")


def test_page_loads_nothing_and_links_to_the_points(swept: Path) -> None:
    text = (swept / "sweep.html").read_text()
    page = _Outside()
    page.feed(text)
    assert page.loaded == [] and "@import" not in text.split("<script>")[0]
    assert len(page.links) == 3 and all((swept / link).is_file() for link in page.links)
    assert text.count('role="img"') == 2  # loss, and accuracy
    assert len(text) < 100_000 and "<script" not in text
    assert "Accuracy, % against latency" in text


def test_page_escapes_what_comes_from_outside(swept: Path) -> None:
    sweep = Sweep.model_validate_json((swept / "sweep.json").read_text())
    bad = "<img src=x>"
    points = [sweep.points[0].model_copy(update={"met": False, "note": bad}), *sweep.points[1:]]
    told = sweep.model_copy(
        update={"model": bad, "met": False, "metric_name": bad, "points": points, "remarks": [bad]}
    )
    page = _Outside()
    page.feed(render(told))
    assert page.loaded == []
