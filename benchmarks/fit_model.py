"""Fits the latency model's figures to many devices at once, each drawn to its class.

The logarithm of a figure (the share of peak of a kind of kernel, of the bandwidth, the launch
overhead) is a sum of three effects: common to all devices of the fit, to a class of devices, to one
device. Each effect is drawn to zero by a prior, and so is a misfit per network, common to all
devices: what the form of the model gets wrong about a network is no evidence about devices.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

import numpy as np
from counting import Kernel

from edgeprune.cost.analytic import COMPUTE_KINDS

#: The fitted figures, in the order in which the fit keeps them.
PARAMETERS = (*COMPUTE_KINDS, "bandwidth", "overhead_us")
_SIZE = len(PARAMETERS)
_KINDS = len(COMPUTE_KINDS)

#: A row's own noise, fixed beforehand (natural logarithms, so 0.1 is 10 %).
ROW_NOISE = 0.1
#: Residuals beyond this many ROW_NOISE count linearly, so that a disturbed row draws little.
ROBUST = 1.5
_STEPS, _ENOUGH = 60, 1e-4


@dataclass(frozen=True)
class Row:
    """One published measurement of a run."""

    network: str
    family: str
    side: int
    latency_ms: float
    kernels: tuple[Kernel, ...]

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Kind (an index; past the compute kinds: only memory), MACs and elements per kernel."""
        kinds = [
            COMPUTE_KINDS.index(k.kind) if k.kind in COMPUTE_KINDS else _KINDS for k in self.kernels
        ]
        return (
            np.array(kinds),
            np.array([k.macs for k in self.kernels], dtype=float),
            np.array([k.elements for k in self.kernels], dtype=float),
        )


@dataclass(frozen=True)
class Run:
    """One device as somebody measured it: its peaks, its class, its rows.

    bytes: of one element as computed, 2 in fp16 and 4 in fp32.
    """

    name: str
    group: str
    peak_gflops: float
    bandwidth_gb_s: float
    bytes: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Prior:
    """What is believed before any row: where the figures lie, and how far effects may stray.

    mean: the common figures, in the order of PARAMETERS (shares of peak; microseconds).
    group, device: standard deviations of an effect, in natural logarithms.
    misfit: that of what the form of the model gets wrong about a network.
    low, high: what is plausible; a bandwidth below 20 % is less than one core's memcpy.
    """

    mean: tuple[float, ...]
    group: float = 0.3
    device: float = 0.2
    misfit: float = 0.2
    low: tuple[float, ...] = (0.01,) * _KINDS + (0.2, 0.5)
    high: tuple[float, ...] = (1.0,) * _KINDS + (0.85, 300.0)

    def root(self, level: str) -> np.ndarray:
        """A square root of the covariance of a level's effect, (parameters, parameters).

        Kinds move together (a device is fast or slow as a whole), those that are a matrix
        multiplication more so, and each alone.
        """
        scale = {"common": 1.0, "group": self.group, "device": self.device}[level]
        together, matrix, alone = (0.5, 0.4, 0.4) if level == "common" else (0.8, 0.3, 0.5)
        kinds = np.array([1.0] * _KINDS + [0.0, 0.0])
        gemm = np.array([float(k in ("pointwise", "linear", "matmul")) for k in PARAMETERS])
        own = np.full(_SIZE, alone)
        own[_KINDS:] = 0.8
        covariance = (
            together**2 * np.outer(kinds, kinds)
            + matrix**2 * np.outer(gemm, gemm)
            + np.diag(own**2)
        )
        return scale * np.linalg.cholesky(covariance)


class _Design:
    """The kernels of one run as arrays, for predictions and their derivatives."""

    def __init__(self, run: Run) -> None:
        parts = [row.arrays for row in run.rows]
        kind = np.concatenate([each[0] for each in parts])
        self.starts = np.cumsum([0] + [len(each[0]) for each in parts[:-1]])
        # milliseconds at full peak and full bandwidth
        macs = np.concatenate([each[1] for each in parts])
        self.work = np.where(kind < _KINDS, macs * 2 / (run.peak_gflops * 1e6), 0.0)
        elements = np.concatenate([each[2] for each in parts])
        self.move = elements * run.bytes / (run.bandwidth_gb_s * 1e6)
        self.kind = np.minimum(kind, _KINDS - 1)
        self.count = np.array([len(each[0]) for each in parts], dtype=float)
        self.log_ms = np.log([row.latency_ms for row in run.rows])
        self.masks = [self.kind == i for i in range(_KINDS)]

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log milliseconds per row, and their derivatives: (rows,), (rows, parameters)."""
        share = np.exp(x)
        work = self.work / share[self.kind]
        move = self.move / share[_KINDS]
        bound = work > move
        launch = self.count * share[-1] / 1e3
        total = np.add.reduceat(np.where(bound, work, move), self.starts) + launch
        slope = np.empty((len(total), _SIZE))
        busy = np.where(bound, work, 0.0)
        for i, mask in enumerate(self.masks):
            slope[:, i] = -np.add.reduceat(np.where(mask, busy, 0.0), self.starts)
        slope[:, _KINDS] = -np.add.reduceat(np.where(bound, 0.0, move), self.starts)
        slope[:, -1] = launch
        return np.log(total), slope / total[:, None]


@dataclass
class Fitted:
    """The effects found, and the figures they make."""

    prior: Prior
    common: np.ndarray
    groups: dict[str, np.ndarray]
    devices: dict[str, np.ndarray]
    misfits: dict[str, float] = field(default_factory=dict)

    def figures(self, group: str, device: str | None = None) -> np.ndarray:
        """Logarithms of the figures, in the order of PARAMETERS, of a class or one of its runs."""
        x = self.common + self.groups.get(group, np.zeros(_SIZE))
        if device is not None:
            x = x + self.devices.get(device, np.zeros(_SIZE))
        return np.clip(x, np.log(self.prior.low), np.log(self.prior.high))


def predicted_ms(x: np.ndarray, run: Run, rows: Sequence[Row]) -> np.ndarray:
    """Milliseconds of rows on a run's device, with figures `x` (logarithms)."""
    return np.asarray(np.exp(_Design(replace(run, rows=tuple(rows))).predict(x)[0]))


def fit(runs: Sequence[Run], prior: Prior) -> Fitted:
    """The most probable effects: damped Gauss-Newton, rows weighted anew at each step (Huber)."""
    problem = _Problem([run for run in runs if run.rows], prior)
    z = np.zeros(problem.length)
    damping, loss = 1e-3, problem.loss(z)
    for _ in range(_STEPS):
        jacobian, residual = problem.linear(z)
        normal = jacobian.T @ jacobian
        gradient = jacobian.T @ residual
        while True:
            step = np.linalg.solve(normal + damping * np.eye(len(z)), -gradient)
            new = problem.loss(z + step)
            if new <= loss or damping > 1e6:
                break
            damping *= 4
        gained, z, loss = loss - new, z + step, min(loss, new)
        damping = max(damping / 4, 1e-6)
        if gained < _ENOUGH * max(loss, 1.0):
            break
    return problem.unpack(z)


class _Problem:
    """The unknowns as one vector of whitened effects: common, groups, devices, misfits."""

    def __init__(self, runs: Sequence[Run], prior: Prior) -> None:
        self.runs, self.prior = runs, prior
        self.designs = [_Design(run) for run in runs]
        self.groups = sorted({run.group for run in runs})
        self.families = sorted({row.family for run in runs for row in run.rows})
        self.roots = {level: prior.root(level) for level in ("common", "group", "device")}
        self.mean = np.log(np.array(prior.mean))
        blocks = 1 + len(self.groups) + len(runs)
        self.tail = blocks * _SIZE
        self.length = self.tail + len(self.families)
        index = {name: i for i, name in enumerate(self.families)}
        self.which = [np.array([index[row.family] for row in run.rows]) for run in runs]

    def _slice(self, block: int) -> slice:
        return slice(block * _SIZE, (block + 1) * _SIZE)

    def _figures(self, z: np.ndarray, run: int) -> np.ndarray:
        group = 1 + self.groups.index(self.runs[run].group)
        device = 1 + len(self.groups) + run
        x = self.mean + self.roots["common"] @ z[:_SIZE]
        x = x + self.roots["group"] @ z[self._slice(group)]
        x = x + self.roots["device"] @ z[self._slice(device)]
        return np.clip(x, np.log(self.prior.low), np.log(self.prior.high))

    def _residuals(self, z: np.ndarray, run: int) -> tuple[np.ndarray, np.ndarray]:
        log_ms, slope = self.designs[run].predict(self._figures(z, run))
        misfit = self.prior.misfit * z[self.tail + self.which[run]]
        return (log_ms + misfit - self.designs[run].log_ms) / ROW_NOISE, slope / ROW_NOISE

    def loss(self, z: np.ndarray) -> float:
        total = float(z @ z)
        for run in range(len(self.runs)):
            size = np.abs(self._residuals(z, run)[0])
            total += float(np.where(size < ROBUST, size**2, 2 * ROBUST * size - ROBUST**2).sum())
        return total

    def linear(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Jacobian and residuals, rows then priors, with Huber's weights at `z`."""
        jacobians, residuals = [np.eye(self.length)], [z]
        for run in range(len(self.runs)):
            residual, slope = self._residuals(z, run)
            weight = np.sqrt(ROBUST / np.maximum(np.abs(residual), ROBUST))
            full = np.zeros((len(residual), self.length))
            full[:, :_SIZE] = slope @ self.roots["common"]
            group = 1 + self.groups.index(self.runs[run].group)
            full[:, self._slice(group)] = slope @ self.roots["group"]
            device = 1 + len(self.groups) + run
            full[:, self._slice(device)] = slope @ self.roots["device"]
            places = self.tail + self.which[run]
            full[np.arange(len(residual)), places] = self.prior.misfit / ROW_NOISE
            jacobians.append(full * weight[:, None])
            residuals.append(residual * weight)
        return np.concatenate(jacobians), np.concatenate(residuals)

    def unpack(self, z: np.ndarray) -> Fitted:
        roots = self.roots
        offset = 1 + len(self.groups)
        misfits = dict(zip(self.families, self.prior.misfit * z[self.tail :], strict=True))
        return Fitted(
            self.prior,
            self.mean + roots["common"] @ z[:_SIZE],
            {n: roots["group"] @ z[self._slice(1 + i)] for i, n in enumerate(self.groups)},
            {r.name: roots["device"] @ z[self._slice(offset + i)] for i, r in enumerate(self.runs)},
            {name: float(value) for name, value in misfits.items()},
        )


#: Standard deviations of a device's own effect, and of a network's misfit, that `choose` tries.
STRAYS = (0.1, 0.4)
MISFITS = (0.2, 0.4)
#: Parts into which `choose` splits the networks.
PARTS = 5


@dataclass(frozen=True)
class Guess:
    """A row of a run, predicted by a fit that had not seen its network."""

    run: str
    row: Row
    error: float

    @property
    def size(self) -> float:
        return abs(self.error)


def without(runs: Sequence[Run], families: Collection[str]) -> list[Run]:
    """The runs without some families' rows, on any device."""
    return [
        replace(run, rows=tuple(row for row in run.rows if row.family not in families))
        for run in runs
    ]


def families_of(runs: Sequence[Run]) -> list[str]:
    return sorted({row.family for run in runs for row in run.rows})


def guesses(fitted: Fitted, runs: Sequence[Run], families: Collection[str]) -> list[Guess]:
    """Relative errors of the rows of some families."""
    found = []
    for run in runs:
        rows = [row for row in run.rows if row.family in families]
        if rows:
            ms = predicted_ms(fitted.figures(run.group, run.name), run, rows)
            found += [
                Guess(run.name, row, float(each) / row.latency_ms - 1)
                for row, each in zip(rows, ms, strict=True)
            ]
    return found


def choose(runs: Sequence[Run], prior: Prior) -> Prior:
    """The prior whose strength predicts networks best that its fit had not seen.

    Networks are split into PARTS; each part is predicted from the others.
    """
    names = families_of(runs)
    parts = [names[i::PARTS] for i in range(min(PARTS, len(names)))]
    best, least = prior, np.inf
    for stray, misfit in product(STRAYS, MISFITS):
        trial = replace(prior, device=stray, misfit=misfit)
        errors = [
            guess.size
            for part in parts
            for guess in guesses(fit(without(runs, part), trial), runs, part)
        ]
        if float(np.mean(errors)) < least:
            best, least = trial, float(np.mean(errors))
    return best


def left_out(runs: Sequence[Run], prior: Prior) -> list[Guess]:
    """Every row, predicted by a fit that saw its family on no device.

    The prior's strength is chosen anew without that family as well.
    """
    found = []
    for name in families_of(runs):
        others = without(runs, [name])
        found += guesses(fit(others, choose(others, prior)), runs, [name])
    return found


def device_left_out(runs: Sequence[Run], prior: Prior, group: str) -> list[Guess]:
    """Rows of a class, each predicted by a fit that saw neither its network nor its device."""
    found = []
    for run in runs:
        if run.group == group:
            others = [other for other in runs if other is not run]
            for name in families_of([run]):
                found += guesses(fit(without(others, [name]), prior), [run], [name])
    return found


def mean_percent(found: Sequence[Guess], run: str | None = None) -> float:
    """Mean absolute error in percent, of one run or of all."""
    return 100 * float(np.mean([each.size for each in found if run in (None, each.run)]))


def sensitivity(x: np.ndarray, run: Run) -> np.ndarray:
    """How much the predictions move with each figure: the largest |d log ms / d log figure|."""
    return np.asarray(np.abs(_Design(run).predict(x)[1]).max(axis=0))
