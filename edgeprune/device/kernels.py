"""From ops to the kernels that a runtime launches, what they cost, and how much memory is live.

Two front ends describe a model as a list of `Op`: `from_graph` (torch.fx, sizes as polynomials in
the plan) and `from_onnx` (an exported file, sizes as numbers). Everything after that is one code:
fusing, pricing, liveness. So the solver and `edgeprune check` speak of the same kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeprune.device.latency import COMPUTE_KINDS, kernel_latency_ms, padded_channels, rates
from edgeprune.device.profile import Profile
from edgeprune.poly import Poly

_NONE = Poly({})

FREE = "free"  # views: no kernel, the output is the input under another shape
_ABSORBING = (*COMPUTE_KINDS, "norm", "elementwise")  # kernels that take element-wise ops in


@dataclass(frozen=True)
class Op:
    """One op of a model.

    kind: one of COMPUTE_KINDS, MEMORY_KINDS or FREE.
    inputs, outputs: names of activation tensors (weights are not among them).
    macs: multiply-accumulates; channels: the dimensions among its factors that run in tiles.
    weights: how many elements of parameters it reads, held: those that no earlier op has counted.
    branch: the innermost removable branch that it belongs to.
    partial: it reads of its inputs only as much as it writes (a slice, a look-up).
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: Poly = _NONE
    channels: tuple[Poly, ...] = ()
    weights: Poly = _NONE
    branch: int | None = None
    partial: bool = False
    held: Poly = _NONE


@dataclass(frozen=True)
class OpGraph:
    """A model's ops in execution order.

    elements: how many elements each activation tensor has. inputs, outputs: the model's own.
    """

    ops: tuple[Op, ...]
    elements: Mapping[str, Poly]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """What the runtime launches as one: `ops[0]` and what was fused into it.

    moved: activation elements read and written; weights: parameter elements read (a look-up reads
    no more than it writes).
    """

    name: str
    kind: str
    ops: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    macs: Poly
    channels: tuple[Poly, ...]
    weights: Poly
    moved: Poly
    branch: int | None

    def latency_ms(self, profile: Profile, values: Mapping[int, float]) -> float:
        """Milliseconds on a device, at a plan's widths and bits; 0 for a kernel that is gone."""
        moved = self.moved(values) + self.weights(values)
        if moved <= 0:
            return 0.0
        macs = self.macs(values)
        for dimension in self.channels:
            size = round(dimension(values))
            macs *= tile_factor(size, profile.channel_multiple)
        cost = kernel_latency_ms(self.kind, macs, moved * profile.bytes_per_element, rates(profile))
        return cost


@dataclass(frozen=True)
class KernelGraph:
    """A fused model: kernels in order, and for each moment of its run what is live."""

    kernels: tuple[Kernel, ...]
    live: tuple[Poly, ...]  # activation elements held while each kernel runs
    weights: Poly  # all parameter elements

    def latency_ms(self, profile: Profile, values: Mapping[int, float]) -> float:
        """Milliseconds for one inference."""
        return sum(kernel.latency_ms(profile, values) for kernel in self.kernels)

    def peak_memory_mb(self, profile: Profile, values: Mapping[int, float]) -> float:
        """Weights and the most activations live at once, in MB, at the runtime's precision."""
        activations = max((live(values) for live in self.live), default=0.0)
        return (activations + self.weights(values)) * profile.bytes_per_element / 1e6

    def macs(self, values: Mapping[int, float]) -> float:
        """Multiply-accumulates of one inference, as written (no padding)."""
        return sum(kernel.macs(values) for kernel in self.kernels)


def tile_factor(size: int, multiple: int) -> float:
    """How much more than asked is computed in a dimension; below one tile, nothing."""
    return padded_channels(size, multiple) / size if size > multiple else 1.0


def fuse(graph: OpGraph, scale: Mapping[int, Poly] | None = None) -> KernelGraph:
    """Groups ops into kernels: an element-wise op joins the kernel that makes its input, if nobody
    but element-wise ops reads that input; batch norm counts as one. Views cost nothing.

    scale: the factor that is 1 while a branch stays and 0 after, by branch (none: all stay).
    """
    return _Fusion(graph, scale or {}).run()


class _Fusion:
    def __init__(self, graph: OpGraph, scale: Mapping[int, Poly]) -> None:
        self._graph = graph
        self._scale = scale
        self._source: dict[str, str] = {}  # a view's tensor -> the tensor it shows
        self._maker: dict[str, int] = {}  # tensor -> index of the kernel that makes it
        self._kernels: list[list[Op]] = []
        self._users: dict[str, list[Op]] = {}

    def run(self) -> KernelGraph:
        for op in self._graph.ops:
            if op.kind == FREE and op.inputs:
                for out in op.outputs:
                    self._source[out] = self._shown(op.inputs[0])
        for op in self._graph.ops:
            if op.kind != FREE:
                for name in op.inputs:
                    self._users.setdefault(self._shown(name), []).append(op)
        for op in self._graph.ops:
            if op.kind == FREE:
                continue
            at = self._absorber(op)
            if at is None:
                at = len(self._kernels)
                self._kernels.append([])
            self._kernels[at].append(op)
            for out in op.outputs:
                self._maker[out] = at
        kernels = [self._kernel(ops) for ops in self._kernels]
        live = tuple(self._live(kernels))
        weights = Poly.total(self._present(op.held, op.branch) for op in self._graph.ops)
        return KernelGraph(tuple(kernels), live, weights)

    def _shown(self, tensor: str) -> str:
        while tensor in self._source:
            tensor = self._source[tensor]
        return tensor

    def _absorber(self, op: Op) -> int | None:
        """The kernel that an element-wise op joins: the latest that makes an input of its size."""
        if op.kind != "elementwise" or not op.outputs:
            return None
        size = self._graph.elements[op.outputs[0]].terms
        found = []
        for name in map(self._shown, op.inputs):
            maker = self._maker.get(name)
            if maker is None or self._kernels[maker][0].kind not in _ABSORBING:
                continue
            alone = all(user.kind == "elementwise" for user in self._users.get(name, ()))
            visible = name in self._outputs()
            if alone and not visible and self._graph.elements[name].terms == size:
                found.append(maker)
        return max(found, default=None)

    def _outputs(self) -> set[str]:
        return {self._shown(name) for name in self._graph.outputs}

    def _kernel(self, ops: Sequence[Op]) -> Kernel:
        made = {out for op in ops for out in op.outputs}
        inside = {op.name for op in ops}
        reads = _distinct(
            name for op in ops for name in map(self._shown, op.inputs) if name not in made
        )
        outside = self._outputs()
        writes = tuple(
            name
            for name in _distinct(out for op in ops for out in op.outputs)
            if name in outside or any(user.name not in inside for user in self._users.get(name, ()))
        )
        first = ops[0]
        moved = Poly.total(
            self._graph.elements[name] for name in (*(writes if first.partial else reads), *writes)
        )
        macs = Poly.total(op.macs for op in ops)
        weights = Poly.total(op.weights for op in ops if not op.partial)
        return Kernel(
            first.name,
            first.kind,
            tuple(op.name for op in ops),
            reads,
            writes,
            self._present(macs, first.branch),
            first.channels,
            self._present(weights, first.branch),
            self._present(moved, first.branch),
            first.branch,
        )

    def _present(self, amount: Poly, branch: int | None) -> Poly:
        return (
            amount if branch is None or branch not in self._scale else amount * self._scale[branch]
        )

    def _live(self, kernels: Sequence[Kernel]) -> Iterable[Poly]:
        """For each kernel: its own tensors, and what was made before and is read after."""
        end = len(kernels)
        born = {name: -1 for name in map(self._shown, self._graph.inputs)}
        dies: dict[str, int] = {name: -1 for name in born}
        branch: dict[str, int | None] = {}
        for step, kernel in enumerate(kernels):
            for name in kernel.reads:
                dies[name] = step
                born.setdefault(name, -1)
            for name in kernel.writes:
                born[name] = step
                dies.setdefault(name, step)
                branch[name] = kernel.branch
        for name in self._outputs():
            dies[name] = end
        sizes = {name: self._present(self._graph.elements[name], branch.get(name)) for name in born}
        for step in range(end):
            yield Poly.total(
                sizes[name] for name in born if born[name] <= step <= dies.get(name, -1)
            )


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
