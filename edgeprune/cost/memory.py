"""How much memory onnxruntime's CPU provider takes for a model, from its kernels alone.

    peak = base + weights · all weights + blocked · filters kept in blocks + live · activations

"peak" is what `export/runner.py measure` reports: how far a fresh process's high-water mark rises
above what Python, numpy and onnxruntime take once imported. What each term stands for (onnxruntime
1.32, x86-64, glibc; `benchmarks/memory_model.py` measures it):

* base: the runtime's own code, read in as it is used, and numpy.random for the inputs.
* weights: the file's are held once. While products' weights are packed there are copies of them,
  and glibc gives freed blocks under 32 MB back to later calls, but rarely to the system.
* blocked: on x86, filters are rewritten in blocks of channels while the originals still stand.
* live: the arena of the first run, and a second block of that size from the second run on.

All is linear in what a solver's polynomials say, so that a plan's memory is as exact as a file's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.core.polynomial import Poly
from edgeprune.cost.nnls import nonnegative

if TYPE_CHECKING:
    from edgeprune.profiles.profile import Profile

Array = NDArray[np.float64]

_ROUNDS = 12  # of reweighting; the constants stand still long before
_FLOOR = 0.03  # relative errors below this are noise between processes: they weigh alike
_PRIOR = 0.1  # a constant of twice its prior counts like one network missed by 10 %
_LEAST = 0.5  # smaller constants of a prior, 0 say, are moved as easily as this one
_CONSTANTS = 4  # of the model: fewer observations than that fix none of them
_COVERED = 0.9  # the share of networks that an interval is to hold


class _Kernel(Protocol):
    @property
    def weights(self) -> Poly: ...

    @property
    def sizes(self) -> Mapping[str, Poly]: ...


class Kernels(Protocol):
    """What is asked of a `KernelGraph`."""

    @property
    def kernels(self) -> Sequence[_Kernel]: ...

    @property
    def live(self) -> Sequence[Poly]: ...

    @property
    def weights(self) -> Poly: ...


@dataclass(frozen=True)
class Footprint:
    """What a model's memory depends on, in MB (10**6 bytes).

    weights: all parameters and buffers, once. blocked: those of convolutions that work on blocks
    of channels. live: the most activations alive at one kernel.
    """

    weights: float
    blocked: float
    live: float

    @staticmethod
    def of(
        graph: Kernels, values: Mapping[int, Any] | None = None, bytes_per_element: float = 4
    ) -> Footprint:
        """The footprint of a model at a plan's widths and bits (a file's sizes need none)."""
        at = {} if values is None else values
        unit = bytes_per_element / 1e6
        return Footprint(
            weights=graph.weights(at) * unit,
            blocked=blocked_weights(graph)(at) * unit,
            live=max((live(at) for live in graph.live), default=0.0) * unit,
        )


@dataclass(frozen=True)
class MeasuredPeak:
    """A measured model. network: whose variant it is; variants are never split when validating."""

    network: str
    footprint: Footprint
    peak_mb: float


@dataclass(frozen=True)
class MemoryModel:
    """Peak memory as a sum; the factors are MB taken per MB of a `Footprint`, none negative.

    base_mb: what the smallest model takes. expected_error_percent: the median relative error on
    networks that were not fitted to. low, high: nine in ten of those lie between these multiples
    of their prediction.
    """

    base_mb: float
    weights: float
    blocked: float
    live: float
    expected_error_percent: float = 0.0
    low: float = 1.0
    high: float = 1.0

    def peak_mb(self, footprint: Footprint) -> float:
        """The predicted peak, in MB."""
        return float(_row(footprint) @ self._constants)

    def predict(
        self,
        graph: Kernels,
        values: Mapping[int, Any] | None = None,
        bytes_per_element: float = 4,
    ) -> float:
        """The predicted peak of a model's kernels, in MB; see `Footprint.of`."""
        return self.peak_mb(Footprint.of(graph, values, bytes_per_element))

    def interval_mb(self, predicted_mb: float) -> tuple[float, float]:
        """Between which peaks, in MB, the truth lies in nine cases of ten."""
        return predicted_mb * self.low, predicted_mb * self.high

    def held(self, graph: Kernels, bytes_per_element: float = 4) -> Poly:
        """MB that the weights take, whatever runs. peak = base + held + the largest of `steps`."""
        taken = graph.weights * self.weights + blocked_weights(graph) * self.blocked
        return taken * (bytes_per_element / 1e6)

    def steps(self, graph: Kernels, bytes_per_element: float = 4) -> tuple[Poly, ...]:
        """MB that the activations of each step take, as if it were the worst."""
        return tuple(live * (self.live * bytes_per_element / 1e6) for live in graph.live)

    @property
    def _constants(self) -> Array:
        return np.array([self.base_mb, self.weights, self.blocked, self.live])


#: Weights and live activations and nothing else: what a model needs, not what a runtime takes.
NEEDED = MemoryModel(base_mb=0.0, weights=1.0, blocked=0.0, live=1.0)


def blocked_weights(graph: Kernels) -> Poly:
    """Elements of the filters that onnxruntime rewrites in blocks of channels (none off x86)."""
    return Poly.total(kernel.weights for kernel in graph.kernels if "block" in kernel.sizes)


def fit(observations: Sequence[MeasuredPeak], prior: MemoryModel | None = None) -> MemoryModel:
    """The constants that meet measured peaks best, and the error to expect on other networks.

    Robust least squares on relative errors, no constant negative. prior: what the constants are
    drawn to, gently; needed with under five networks. Raises ValueError without enough of them.
    """
    if not observations or (prior is None and len(observations) < _CONSTANTS):
        raise ValueError(f"{len(observations)} measured models are too few to fit memory to")
    model = _fitted(observations, prior)
    predicted = cross_validated(observations, prior)
    if predicted is None:
        return model
    ratio = np.array([o.peak_mb for o in observations]) / predicted
    tail = (1 - _COVERED) / 2
    low, high = np.quantile(ratio, [tail, 1 - tail])
    error = 100 * float(np.median(abs(1 / ratio - 1)))
    return replace(model, expected_error_percent=error, low=float(low), high=float(high))


def cross_validated(
    observations: Sequence[MeasuredPeak], prior: MemoryModel | None = None
) -> Array | None:
    """Each observation's peak in MB, predicted by a fit that saw no variant of its network.

    None where what is left after taking one network away is too little to fit.
    """
    predicted = np.zeros(len(observations))
    for network in dict.fromkeys(o.network for o in observations):
        rest = [o for o in observations if o.network != network]
        if not rest or (prior is None and len(rest) < _CONSTANTS):
            return None
        model = _fitted(rest, prior)
        for i, observation in enumerate(observations):
            if observation.network == network:
                predicted[i] = model.peak_mb(observation.footprint)
    return predicted


def _fitted(observations: Sequence[MeasuredPeak], prior: MemoryModel | None) -> MemoryModel:
    """Iteratively reweighted: errors count by their size, not its square."""
    peaks = np.array([o.peak_mb for o in observations])
    rows = np.stack([_row(o.footprint) for o in observations]) / peaks[:, None]
    pull = np.zeros((0, rows.shape[1]))
    if prior is not None:
        pull = np.diag(_PRIOR / np.maximum(prior._constants, _LEAST))
    target = pull @ (prior._constants if prior is not None else np.zeros(rows.shape[1]))
    weight = np.ones(len(rows))
    constants = np.zeros(rows.shape[1])
    for _ in range(_ROUNDS):
        constants = nonnegative(
            np.concatenate([rows * weight[:, None], pull]), np.concatenate([weight, target])
        )
        weight = 1 / np.sqrt(np.maximum(abs(rows @ constants - 1), _FLOOR))
        weight /= weight.max()
    return MemoryModel(*map(float, constants))


def _row(footprint: Footprint) -> Array:
    """What the constants multiply, in the order of `MemoryModel`."""
    return np.array([1.0, footprint.weights, footprint.blocked, footprint.live])


def memory_model(profile: Profile) -> MemoryModel:
    """How peak memory follows from a model's kernels on a device."""
    found = profile.memory
    if found is None:
        return NEEDED
    return MemoryModel(
        found.base_mb.value,
        found.weights.value,
        found.blocked.value,
        found.live.value,
        found.expected_error_percent.value,
        found.interval.low,
        found.interval.high,
    )
