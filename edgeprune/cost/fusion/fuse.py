"""What a runtime makes of a model's ops: which of them become one kernel, and in which layout.

TensorRT takes whole chains of element-wise ops into the kernel before them, and on tensor cores
computes an attention in one (`attention.py`). onnxruntime takes an
activation or an addition into a convolution, and little else; on x86 it also keeps the channels of
images in blocks (NCHWc), and reorders a tensor wherever an op doesn't know that layout. Its rules
here are those seen in the graphs that onnxruntime 1.32 optimises (`optimized_model_filepath`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from edgeprune.core.polynomial import Monomial, Poly
from edgeprune.cost.analytic import COMPUTE_KINDS
from edgeprune.cost.fusion.attention import with_attention
from edgeprune.cost.kernels import FREE, Kernel, KernelGraph, Op, OpGraph, altered
from edgeprune.cost.work import surroundings
from edgeprune.profiles.profile import Fusion

_NONE = Poly({})
_CHAINS = (*COMPUTE_KINDS, "norm", "elementwise")  # kernels that TensorRT's element-wise ops join
_CONVOLUTIONS = ("conv", "pointwise", "depthwise", "grouped")

#: Activations that onnxruntime computes inside a convolution.
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh")

# Element-wise ops that work on blocks as they are, given that all their inputs are blocked.
_KEEP_BLOCKS = ("Add", "Mul", "Relu", "Sigmoid", "Tanh", "Silu", "Gelu")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_ALIGNMENT = 4  # what the channels of a blocked convolution must divide by
#: Views that a runtime for CPUs still launches, if only to copy a pointer.
VIEWS = ("Reshape", "View", "Flatten", "Squeeze", "Unsqueeze", "Unflatten", "_unsafe_view")


def fuse(
    graph: OpGraph,
    scale: Mapping[int, Poly] | None = None,
    fusion: Fusion | None = None,
    widths: Mapping[int, float] | None = None,
) -> KernelGraph:
    """The kernels that a runtime makes of a model. Views cost nothing, batch norm counts as one.

    scale: the factor that is 1 while a branch stays and 0 after, by branch (none: all stay).
    widths: the variables' values in the whole model, where layouts are decided.
    """
    return _repeating(graph, _fused(graph, scale or {}, fusion or Fusion(), widths or {}))


def _fused(
    graph: OpGraph, scale: Mapping[int, Poly], how: Fusion, widths: Mapping[int, float]
) -> KernelGraph:
    graph = _with_pixels(graph, widths)
    if how.runtime == "onnxruntime":
        graph = _without(graph, lambda op: op.label == "Scale" or _is_folded_side(op))
        if how.block:
            graph = _Blocks(graph, how.block, widths).run()
        return _surrounded(_OnnxRuntime(graph, scale).run(), widths)
    if how.attention:
        graph = with_attention(graph)
    return _Chains(_without(graph, lambda op: _flag(op, "feeds")), scale).run()


def _repeating(graph: OpGraph, fused: KernelGraph) -> KernelGraph:
    """The kernels, those that a loop repeats knowing how often."""
    if graph.loop is None:
        return fused
    changed, makers = graph.repeated, {op.name: op for op in graph.ops}
    times = graph.loop.times

    def known(kernel: Kernel) -> Kernel:
        made = (out for name in kernel.ops if name in makers for out in makers[name].outputs)
        tensors = {*kernel.reads, *kernel.writes, *made}
        return kernel if changed.isdisjoint(tensors) else altered(kernel, times=times)

    return altered(fused, kernels=tuple(map(known, fused.kernels)))


def _with_pixels(graph: OpGraph, widths: Mapping[int, float]) -> OpGraph:
    """Ops on images know how many pixels those have: a plan removes channels, not pixels."""

    def known(op: Op) -> Op:
        images = [name for name in op.inputs if name in graph.channels]
        if not images or op.kind == FREE or "pixels" in op.sizes:
            return op
        # Of a gate and what it scales, the latter's.
        pixels = max(_pixels(graph, name, widths) for name in images)
        return altered(op, sizes={**op.sizes, "pixels": Poly.constant(pixels)})

    return altered(graph, ops=tuple(map(known, graph.ops)))


def _pixels(graph: OpGraph, tensor: str, widths: Mapping[int, float]) -> int:
    """How many pixels each channel of a tensor has; 1 for what is no image."""
    channels = graph.channels.get(tensor)
    if channels is None:
        return 1
    return round(graph.elements[tensor](widths) / max(channels(widths), 1))


def _surrounded(graph: KernelGraph, widths: Mapping[int, float]) -> KernelGraph:
    """The graph with each kernel knowing how large the network around it is."""
    weights = [kernel.weights(widths) for kernel in graph.kernels]
    written = [kernel.written(widths) for kernel in graph.kernels]
    around = surroundings(weights, written)
    kernels = tuple(altered(kernel, around=around) for kernel in graph.kernels)
    return altered(graph, kernels=kernels)


class _Chains:
    """TensorRT: an element-wise op joins the kernel that makes its input, if nobody but
    element-wise ops reads that input."""

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
        self._visible = {self._shown(name) for name in self._graph.outputs}
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
        kernels.extend(self._views())
        weights = Poly.total(self._present(op.held, op.branch) for op in self._graph.ops)
        return KernelGraph(tuple(kernels), live, weights)

    def _views(self) -> Iterable[Kernel]:
        """Views that are launched all the same."""
        return ()

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
            if maker is None or self._kernels[maker][0].kind not in _CHAINS:
                continue
            alone = all(user.kind == "elementwise" for user in self._users.get(name, ()))
            if alone and name not in self._visible and self._graph.elements[name].terms == size:
                found.append(maker)
        return max(found, default=None)

    def _kernel(self, ops: list[Op]) -> Kernel:
        made = {out for op in ops for out in op.outputs}
        inside = {op.name for op in ops}
        reads = _distinct(
            name for op in ops for name in map(self._shown, op.inputs) if name not in made
        )
        writes = tuple(
            name
            for name in _distinct(out for op in ops for out in op.outputs)
            if name in self._visible
            or any(user.name not in inside for user in self._users.get(name, ()))
        )
        first = ops[0]
        elements = self._graph.elements
        moved = Poly.total(elements[n] for n in (*(writes if first.partial else reads), *writes))
        return Kernel(
            name=first.name,
            kind=first.kind,
            ops=tuple(op.name for op in ops),
            reads=reads,
            writes=writes,
            macs=self._present(Poly.total(op.macs for op in ops), first.branch),
            channels=first.channels,
            weights=self._present(
                Poly.total(op.weights for op in ops if not op.partial), first.branch
            ),
            moved=self._present(moved, first.branch),
            branch=first.branch,
            label=first.label,
            fused=tuple(op.label for op in ops[1:]),
            sizes=first.sizes,
            written=Poly.total(elements[n] for n in writes),
        )

    def _present(self, amount: Poly, branch: int | None) -> Poly:
        if branch is None or branch not in self._scale:
            return amount
        return amount * self._scale[branch]

    def _live(self, kernels: list[Kernel]) -> Iterable[Poly]:
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
        for name in self._visible:
            dies[name] = end
        sizes = {name: self._present(self._graph.elements[name], branch.get(name)) for name in born}
        comes: dict[int, list[str]] = {}
        goes: dict[int, list[str]] = {}
        for name, step in born.items():
            if dies.get(name, -1) >= max(step, 0):
                comes.setdefault(max(step, 0), []).append(name)
                goes.setdefault(dies[name], []).append(name)
        held: dict[Monomial, float] = {}
        for step in range(end):
            for name in comes.get(step, ()):
                for monomial, amount in sizes[name].terms.items():
                    held[monomial] = held.get(monomial, 0.0) + amount
            yield Poly(held)
            for name in goes.get(step, ()):
                for monomial, amount in sizes[name].terms.items():
                    held[monomial] -= amount


class _OnnxRuntime(_Chains):
    """onnxruntime: convolutions take an addition, then an activation; a product takes its bias."""

    def _absorber(self, op: Op) -> int | None:
        if op.kind != "elementwise" or not op.outputs:
            return None
        found = [
            maker
            for name in map(self._shown, op.inputs)
            if (maker := self._maker.get(name)) is not None
            and len(self._users.get(name, ())) == 1
            and name not in self._visible
            and self._takes(self._kernels[maker], op)
        ]
        return max(found, default=None)

    def _kernel(self, ops: list[Op]) -> Kernel:
        made = super()._kernel(ops)
        if made.label == "Add" and made.fused == ("Gelu",):  # BiasGelu: the time is Gelu's
            return altered(made, label="Gelu", fused=())
        return made

    def _views(self) -> Iterable[Kernel]:
        for op in self._graph.ops:
            if op.kind == FREE and op.label in VIEWS:
                one = self._present(Poly.constant(1), op.branch)
                yield Kernel(
                    name=op.name,
                    kind="copy",
                    ops=(op.name,),
                    reads=(),
                    writes=(),
                    macs=_NONE,
                    channels=(),
                    weights=_NONE,
                    moved=one,
                    branch=op.branch,
                    label="View",
                )

    def _takes(self, kernel: list[Op], op: Op) -> bool:
        first, labels = kernel[0], [other.label for other in kernel[1:]]
        if first.kind in _CONVOLUTIONS:
            if any(label in ACTIVATIONS for label in labels):
                return False
            if op.label in ACTIVATIONS or (op.label == "BatchNormalization" and not labels):
                return True
            blocked = bool(first.sizes.get("block"))
            return op.label == "Add" and len(op.inputs) == 2 and blocked and "Add" not in labels
        if first.label in ("MatMul", "Gemm"):
            bias = op.label == "Add" and len(op.inputs) == 1
            if bias:
                return self._graph.static and not labels
            return op.label == "Relu" and first.label == "Gemm" and not labels
        if first.label == "Add" and op.label == "Gelu":
            return len(first.inputs) == 1 and not labels
        return False


def _without(graph: OpGraph, folded: Callable[[Op], bool]) -> OpGraph:
    """The graph with ops that the runtime makes part of their neighbours as views: multiplying a
    product's side or result by a number, transposing a side of it."""
    ops = (altered(op, kind=FREE, label="") if folded(op) else op for op in graph.ops)
    return altered(graph, ops=tuple(ops))


def _is_folded_side(op: Op) -> bool:
    return _flag(op, "swaps") and _flag(op, "feeds")


def _flag(op: Op, name: str) -> bool:
    return op.label == "Transpose" and bool(op.sizes.get(name, _NONE)({}))


@dataclass
class _Blocks:
    """Inserts a reordering wherever a tensor changes between rows of pixels and channel blocks."""

    graph: OpGraph
    block: int
    widths: Mapping[int, float]
    _ops: list[Op] = field(default_factory=list)
    _blocked: set[str] = field(default_factory=set)
    _other: dict[str, str] = field(default_factory=dict)  # a tensor in its other layout

    def run(self) -> OpGraph:
        self._elements = dict(self.graph.elements)
        self._readers: dict[str, list[Op]] = {}
        for op in self.graph.ops:
            for name in dict.fromkeys(op.inputs):
                self._readers.setdefault(name, []).append(op)
        self._makers: dict[str, Op] = {}
        for op in self.graph.ops:
            self._made(self._placed(op))
        outputs = tuple(map(self._plain, self.graph.outputs))
        return altered(self.graph, ops=tuple(self._ops), elements=self._elements, outputs=outputs)

    def _made(self, op: Op) -> None:
        self._ops.append(op)
        self._makers.update(dict.fromkeys(op.outputs, op))

    def _placed(self, op: Op) -> Op:
        """The op with its inputs in the layout that it reads."""
        if op.kind == FREE and op.label not in VIEWS:
            if any(name in self._blocked for name in op.inputs):
                self._blocked.update(op.outputs)
            return op
        if op.kind in _CONVOLUTIONS and self._convolves_blocks(op):
            stem = op.kind in ("conv", "pointwise") and self._size(op.sizes["cin"]) < self.block
            read = self._plain if stem else self._in_blocks
            self._blocked.update(op.outputs)
            form = {**op.sizes, "block": Poly.constant(self.block)}
            return altered(op, inputs=tuple(map(read, op.inputs)), sizes=form)
        if op.label in _POOLS and self._fills_blocks(op.inputs[0]):
            self._blocked.update(op.outputs)
            return altered(op, inputs=tuple(map(self._in_blocks, op.inputs)))
        if self._keeps_blocks(op):
            self._blocked.update(op.outputs)
            return op
        if self._scales_blocks(op):
            self._blocked.update(op.outputs)
            return self._as_convolution(op)
        if _flag(op, "to_pixels") and op.inputs[0] in self._blocked:
            # Reordering writes the channels last as well as first.
            return altered(op, label="ReorderOutput", sizes=self._reordering(op.inputs[0]))
        if _flag(op, "to_planes") and self._feeds_blocks(op.outputs[0]):
            self._blocked.update(op.outputs)
            return altered(op, label="ReorderInput", sizes=self._reordering(op.outputs[0]))
        inputs = tuple(map(self._plain, op.inputs))
        return op if inputs == op.inputs else altered(op, inputs=inputs)

    def _convolves_blocks(self, op: Op) -> bool:
        if not op.inputs or op.label != "Conv" or op.inputs[0] not in self.graph.channels:
            return False
        cin, cout = self._size(op.sizes["cin"]), self._size(op.sizes["cout"])
        if op.kind == "depthwise":
            return cout % _ALIGNMENT == 0
        if op.kind == "grouped":
            groups = self._size(op.sizes["groups"])
            return cin // groups % self.block == 0 and cout // groups % self.block == 0
        return cin < self.block or cin % _ALIGNMENT == 0

    def _keeps_blocks(self, op: Op) -> bool:
        blocked = [name in self._blocked for name in op.inputs]
        if not blocked or not all(blocked):
            return False
        if op.label == "Concat" and self._size(op.sizes["axis"]) == 1:
            return all(map(self._fills_blocks, op.inputs))
        if op.label in ACTIVATIONS and op.label not in _KEEP_BLOCKS:
            return self._made_by_convolution(op.inputs[0])
        if op.label == "BatchNormalization":
            return self._made_by_convolution(op.inputs[0])
        if op.label not in _KEEP_BLOCKS:
            return False
        sizes = {self._size(self._elements[name]) for name in op.inputs}
        weights = self._size(op.weights) if op.label in ("Add", "Mul") else 0
        return len(sizes) == 1 and not (len(op.inputs) == 1 and weights)

    def _fills_blocks(self, tensor: str) -> bool:
        """Whether a tensor is an image whose last block of channels is full."""
        channels = self.graph.channels.get(tensor)
        return channels is not None and self._size(channels) % self.block == 0

    def _scales_blocks(self, op: Op) -> bool:
        """Whether a batch norm stands by itself on a blocked tensor."""
        norm = op.label == "BatchNormalization" and op.inputs[0] in self._blocked
        return norm and not self._made_by_convolution(op.inputs[0])

    def _as_convolution(self, op: Op) -> Op:
        """A batch norm by itself is run as a depthwise 1x1 convolution."""
        channels, one = self.graph.channels[op.inputs[0]], Poly.constant(1)
        whole = self._size(self._elements[op.outputs[0]]) / max(self._size(channels), 1)
        sizes = {
            "cin": channels,
            "cout": channels,
            "pixels": Poly.constant(whole),
            "row": Poly.constant(round(whole**0.5)),
            **dict.fromkeys(("kh", "kw", "stride"), one),
            "groups": channels,
            "block": Poly.constant(self.block),
        }
        macs = self._elements[op.outputs[0]]
        return altered(op, kind="depthwise", label="Conv", macs=macs, sizes=sizes)

    def _feeds_blocks(self, tensor: str) -> bool:
        """Whether only convolutions in blocks read a tensor."""
        readers = self._readers.get(tensor, ())
        return bool(readers) and all(
            op.kind in _CONVOLUTIONS and self._convolves_blocks(op) for op in readers
        )

    def _made_by_convolution(self, tensor: str) -> bool:
        """Whether a convolution makes a tensor that one op alone reads: that op is fused."""
        maker = self._makers.get(tensor)
        alone = len(self._readers.get(tensor, ())) == 1
        return alone and maker is not None and maker.kind in _CONVOLUTIONS

    def _plain(self, tensor: str) -> str:
        return self._reordered(tensor, "ReorderOutput") if tensor in self._blocked else tensor

    def _in_blocks(self, tensor: str) -> str:
        return tensor if tensor in self._blocked else self._reordered(tensor, "ReorderInput")

    def _reordered(self, tensor: str, label: str) -> str:
        """The tensor in its other layout; made once, for all that read it."""
        if tensor not in self._other:
            out = f"{tensor}.{label}"
            self._elements[out] = self._elements[tensor]
            maker = self._makers.get(tensor)
            branch = maker.branch if maker else None
            sizes = self._reordering(tensor)
            reorder = Op(out, "copy", (tensor,), (out,), label=label, branch=branch, sizes=sizes)
            self._made(reorder)
            self._other[tensor] = out
        return self._other[tensor]

    def _reordering(self, image: str) -> dict[str, Poly]:
        """The sizes of a reordering of an image, planes or blocks."""
        channels = self.graph.channels.get(image, Poly.constant(1))
        pixels = Poly.constant(_pixels(self.graph, image, self.widths))
        return {"pixels": pixels, "channels": channels}

    def _size(self, amount: Poly) -> int:
        return round(amount(self.widths))


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
