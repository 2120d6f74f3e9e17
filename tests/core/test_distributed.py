"""The whole command under torchrun: two processes come to one plan, and the first one writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune.core import distributed as ranks
from edgeprune.core.errors import UserError

HERE = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

MODEL = """
import sys
sys.path.insert(0, {root!r})
from torch.utils.data import DataLoader
from digits_case import Digits, _teacher_state, images
import torch

def build():
    model = Digits()
    model.load_state_dict(_teacher_state())
    return model, torch.zeros(1, 1, 8, 8)

def loaders():
    train, test = images()
    return DataLoader(train, 64, shuffle=True), DataLoader(test, 360)
"""


@dataclass(frozen=True)
class Run:
    """What a command left and said."""

    status: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("source") / "digits.py"
    file.write_text(MODEL.format(root=str(HERE / "training")))
    return file


def run(source: Path, out: Path, launcher: tuple[str, ...], *options: str) -> Run:
    words = ["-m", "edgeprune", f"{source}:build", "--data", f"{source}:loaders", "-o", str(out)]
    done = subprocess.run(
        [sys.executable, *launcher, *words, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr, out)


@pytest.mark.parametrize("method", ["structured", "weight"])
def test_two_processes_come_to_what_one_does(source: Path, tmp_path: Path, method: str) -> None:
    asked = ("--profile", "raspberry-pi-4", "--rate", "0.5", "--method", method)
    options = (*asked, "--epochs", "2", "--steps", "2")
    alone = run(source, tmp_path / "alone", (), *options)
    both = run(source, tmp_path / "both", TORCHRUN, *options)
    assert (alone.status, both.status) == (0, 0), both.stderr[-3000:]
    one, two = alone.report, both.report
    assert one["groups"] == two["groups"]
    assert one["rate"] == two["rate"]
    assert one["after"]["metric"] == pytest.approx(two["after"]["metric"], abs=0.3)
    assert two["validation"]["passed"]
    assert both.stdout.count("Written to") == 1
    assert {f.name for f in both.folder.iterdir()} == {f.name for f in alone.folder.iterdir()}


def test_what_the_user_can_mend_is_said_once(source: Path, tmp_path: Path) -> None:
    launcher = ("-m", "edgeprune.training.torchrun", *TORCHRUN[2:])
    done = run(source, tmp_path / "out", launcher, "--profile", "no-such-device", "--rate", "0.5")
    assert done.status == 2
    assert done.stderr.count("edgeprune: ") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import sys; sys.exit(3)", 3),
        # One fails, and the other, which waits, is ended by a signal.
        ("import os, sys, time; int(os.environ['RANK']) and sys.exit(2); time.sleep(60)", 2),
        ("import os; os.kill(os.getpid(), 9)", 1),
    ],
)
def test_our_torchrun_ends_with_the_status_of_its_processes(
    tmp_path: Path, code: str, status: int
) -> None:
    script = tmp_path / "script.py"
    script.write_text(code)
    launcher = ("-m", "edgeprune.training.torchrun", *TORCHRUN[2:])
    done = subprocess.run(
        [sys.executable, *launcher, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_one_process_computes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks.join()
    assert ranks.is_first()
    assert ranks.from_first(lambda: 3) == 3
    assert ranks.spread([3, 1, 2], lambda items: [2 * i for i in items]) == [6, 2, 4]
    assert not torch.distributed.is_initialized()


def test_a_sweep_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        ranks.check_alone()
