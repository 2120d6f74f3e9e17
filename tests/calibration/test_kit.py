"""The calibration kit: one zip that runs on a bare device, and the profile that comes of it."""

from __future__ import annotations

import json
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from edgeprune.calibration import fit as calibration
from edgeprune.calibration import int8_samples, kit
from edgeprune.calibration.kit import write_kit
from edgeprune.calibration.observations import read_results
from edgeprune.calibration.sample_blocks import sample
from edgeprune.cli.app import main
from edgeprune.core.errors import UserError
from edgeprune.profiles.profile import load_profile
from tests.calibration.hasty import hasty_scripts

NETWORKS = 12
# What a device hasn't got: importing any of it ends the kit.
ABSENT = ("torch", "onnx", "edgeprune", "sklearn", "yaml", "pydantic")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of few networks that measures in a hurry."""
    folder = tmp_path_factory.mktemp("kit")
    scripts = hasty_scripts(folder / "scripts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kit, "export_folder", lambda: scripts)
        write_kit(folder / "kit.zip", NETWORKS)
    return folder / "kit.zip"


def run_kit(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python kit.zip` in an empty folder, where what a device hasn't got can't be imported."""
    bare = path.parent / "bare"
    bare.mkdir(exist_ok=True)
    for name in ABSENT:
        (bare / f"{name}.py").write_text(f"raise ImportError('{name}')")
    # -S leaves out the .pth files, through which this checkout is installed.
    code = (
        "import runpy, sys\n"
        f"sys.path[1:1] = [{str(bare)!r}]\n"
        f"sys.path += {site.getsitepackages()!r}\n"
        f"sys.argv = [{str(path)!r}, *sys.argv[1:]]\n"
        f"runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    command = [sys.executable, "-S", "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=path.parent)


@pytest.fixture(scope="module")
def results(packed: Path) -> Path:
    """What the kit measured here."""
    done = run_kit(packed, "-o", "results.jsonl")
    assert done.returncode == 0 and done.stderr == "", done.stderr + done.stdout
    assert json.loads(done.stdout)["networks"] == NETWORKS
    return packed.parent / "results.jsonl"


def test_a_kit_holds_the_scripts_and_the_networks(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        names = set(archive.namelist())
        scripts = {"__main__.py", "microbench.py", "runner.py", "stopwatch.py"}
        networks = {f"{seed:05d}.onnx" for seed in range(NETWORKS)}
        pairs = {
            f"int8/{name}{ending}"
            for name in int8_samples.names()
            for ending in (".onnx", ".x86.onnx", ".arm.onnx")
        }
        assert names == scripts | networks | pairs | {"reference.onnx"}
        assert archive.read("00003.onnx") == sample(3).SerializeToString()
    assert packed.stat().st_size < 2e6
    assert [p.name for p in packed.parent.glob("*kit.zip*")] == ["kit.zip"]


def test_it_runs_as_one_command(packed: Path) -> None:
    done = subprocess.run(
        [sys.executable, packed.name, "--seconds", "0", "-o", "one.jsonl"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=packed.parent,
    )
    assert json.loads(done.stdout)["networks"] == 1, done.stderr
    refused = subprocess.run(
        [sys.executable, packed.name, "--threads", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=packed.parent,
    )
    assert refused.returncode == 2 and list(json.loads(refused.stdout)) == ["error"]


def test_it_measures_with_numpy_and_onnxruntime_alone(results: Path) -> None:
    found = read_results(results)
    assert len(found.samples) == NETWORKS
    assert found.peaks_mb  # from inside the zip as well
    assert [pair["pair"] for pair in found.pairs] == sorted(int8_samples.names())
    assert not [pair["error"] for pair in found.pairs if "error" in pair]


def test_its_results_make_a_profile_that_check_takes(
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("_LARGE", "_SMALL"):
        monkeypatch.setattr(calibration, name, {**getattr(calibration, name), "n_estimators": 3})
    output, model = tmp_path / "board.yaml", tmp_path / "model.onnx"
    words = ["--from", str(results), "--ram-mb", "2048", "-o", str(output)]
    assert main(["calibrate", *words]) == 0
    assert "board" in capsys.readouterr().out
    profile = load_profile(output)
    assert (profile.name, profile.ram_mb.value) == ("board", 2048)
    assert profile.calibration is not None and profile.calibration.networks == NETWORKS
    assert yaml.safe_load(output.read_text())["tables"]
    assert profile.int8 is not None and profile.int8_kinds is not None
    assert 0.1 < profile.int8.value < 3
    shares = {kind: share.value for kind, share in profile.int8_kinds}
    wild = {kind: value for kind, value in shares.items() if not 0.1 < value < 3}
    assert len(wild) <= 1, shares  # a few runs in a hurry, beside other tests
    for _, share in profile.int8_kinds:
        assert "sample networks in int8 over float" in share.source
    model.write_bytes(sample(2).SerializeToString())
    assert main(["check", str(model), "--profile", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["profile"] == "board" and found["latency_source"] == "predicted"
    low, high = found["latency_interval_ms"]
    assert 0 < low < high and found["latency_ms"] > 0


def test_calibrate_packs_a_kit_and_says_how_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(write_kit, "__defaults__", (1,))
    assert main(["calibrate", "--kit", str(tmp_path / "my kit.zip")]) == 0
    captured = capsys.readouterr()
    assert "python3" in captured.out and "my kit.zip" in captured.out and captured.err == ""
    with zipfile.ZipFile(tmp_path / "my kit.zip") as archive:
        assert "00000.onnx" in archive.namelist()
    assert [p.name for p in tmp_path.iterdir()] == ["my kit.zip"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kit", "kit.txt"], "ends in .zip"),
        (["--kit", "missing/kit.zip"], "no folder missing"),
        (["--kit", "kit.zip", "--from", "r.jsonl"], "exclude each other"),
        (["--kit", "kit.zip", "--remote", "ssh://board"], "exclude each other"),
        (["--from", "r.jsonl", "--remote", "ssh://board"], "exclude each other"),
        (["--from", "missing.jsonl", "-o", "a.yaml"], "missing.jsonl"),
        (["--from", "thesis.txt", "-o", "a.yaml"], "thesis.txt: no results"),
        (["--from", "header.jsonl", "-o", "a.yaml"], "header.jsonl: no results"),
        (["--from", "r.jsonl", "-o", "a.json"], "ends in .yaml"),
        (["--remote", "ssh://board", "-o", "a.json"], "ends in .yaml"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "header.jsonl").write_text('{"format": 2}\n')
    before = set(tmp_path.iterdir())
    assert main(["calibrate", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert said in captured.err
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("broken", ["edgeprune.calibration.kit._pack", "tempfile.mkstemp"])
def test_what_can_not_be_written_is_one_line_and_leaves_the_old_kit(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "kit.zip").write_text("the old one")
    monkeypatch.setattr(broken, full)
    with pytest.raises(UserError, match=r"kit\.zip: No space left"):
        write_kit(tmp_path / "kit.zip", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["kit.zip"]
    assert (tmp_path / "kit.zip").read_text() == "the old one"
