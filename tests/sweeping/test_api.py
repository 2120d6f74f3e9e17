"""`edgeprune.sweep`: rows and reports, and what it refuses."""

from __future__ import annotations

import pickle
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import edgeprune
from edgeprune.core.errors import UserError
from edgeprune.sweeping import curve
from edgeprune.sweeping.api import SweepResult
from edgeprune.sweeping.worker import Answer, Job, work


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4)
    )


X = torch.zeros(1, 64)
PROFILE = "raspberry-pi-4"


def parameters(model: nn.Module) -> float:
    return float(sum(p.numel() for p in model.parameters()))


@pytest.fixture(scope="module")
def loader() -> DataLoader[tuple[Tensor, ...]]:
    torch.manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(64, 64), torch.arange(64) % 4), 16, shuffle=True)


@pytest.fixture(scope="module")
def alone(
    loader: DataLoader[tuple[Tensor, ...]], tmp_path_factory: pytest.TempPathFactory
) -> SweepResult:
    """A sweep in this process."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    return edgeprune.sweep(
        network(), X, PROFILE, 2, 0.5, data=loader, metric=parameters, output=folder
    )


def test_rows_and_reports(alone: SweepResult) -> None:
    assert [row.share for row in alone.points] == [0.9, 0.5] and not alone.failures
    assert [row.metric for row in alone.points] == [row.params for row in alone.points]
    assert alone.baseline.metric == parameters(network())
    reports = [alone.report(row) for row in alone.points]
    assert [r["after"]["latency_ms"] for r in reports] == [r.latency_ms for r in alone.points]
    with pytest.raises(UserError, match="no report"):
        alone.report(alone.baseline)


def test_loaders_are_known_by_what_they_hold(alone: SweepResult) -> None:
    other = [(torch.randn(16, 64), torch.arange(16) % 4) for _ in range(5)]
    with pytest.raises(UserError, match="--data differs"):
        edgeprune.sweep(
            network(), X, PROFILE, 2, 0.5, data=other, metric=parameters, output=alone.folder
        )


def test_worker_makes_the_point_that_this_process_makes(
    alone: SweepResult, loader: DataLoader[tuple[Tensor, ...]], tmp_path: Path
) -> None:
    sent: list[Job] = []

    class Pool(Executor):
        """A worker in this process: what it gets has been pickled, and so has its answer."""

        def submit(self, work: Any, job: Job, /) -> Any:
            sent.append(job)
            future: Future[Answer] = Future()
            future.set_result(pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(job))))))
            return future

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve, "executor", lambda *_: nullcontext(Pool()))
        beside = edgeprune.sweep(
            network(), X, PROFILE, 2, 0.5, data=loader, metric=parameters, output=tmp_path, jobs=2
        )
    assert len(sent) == 2
    for one, other in zip(alone.points, beside.points, strict=True):
        assert one.model_copy(update={"gap": 0.0}) == other.model_copy(update={"gap": 0.0})
        assert alone.report(one)["groups"] == beside.report(other)["groups"]
    answer = work(replace(sent[0], fingerprint={**sent[0].fingerprint, "the model": "sha256:0"}))
    assert not answer.files and "the model differs" in str(answer.failure)


def test_what_can_not_be_sent_to_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pickled"):
        edgeprune.sweep(
            network(),
            X,
            PROFILE,
            2,
            metric=lambda model: 1.0,
            output=tmp_path / "o",
            jobs=2,
        )


def test_latency_is_the_sweeps_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="latency"):
        edgeprune.sweep(
            network(),
            X,
            PROFILE,
            budgets=edgeprune.Budgets(latency_ms=1),
            output=tmp_path / "o",
        )
