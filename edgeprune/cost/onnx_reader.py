"""The ops of an ONNX file, with sizes as numbers. Needs onnx, not torch."""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, inliner, shape_inference

from edgeprune.core.errors import UserError
from edgeprune.core.large.onnx_file import read_light
from edgeprune.core.loop import Loop
from edgeprune.core.polynomial import Poly
from edgeprune.cost.composites import Composites, Part
from edgeprune.cost.fusion import fuse
from edgeprune.cost.kernels import (
    FREE,
    KernelGraph,
    Op,
    OpGraph,
    convolution_kind,
    convolution_sizes,
    transposes,
    unmoved,
)
from edgeprune.graph.ops import ONNX_KERNELS, ONNX_PARTIAL
from edgeprune.profiles.profile import Fusion
from edgeprune.sparse.initializers import densified

# The key under which `export` writes the shapes that costs are counted at.
INPUT_SHAPES_KEY = "edgeprune.input_shapes"

# Where an op has its input and its weight.
_CONVOLUTIONS = dict.fromkeys("Conv ConvTranspose ConvInteger FusedConv".split(), (0, 1))
_CONVOLUTIONS["QLinearConv"] = (0, 3)
_PRODUCTS = dict.fromkeys("MatMul Gemm MatMulInteger FusedMatMul FusedGemm".split(), (0, 1))
_PRODUCTS["QLinearMatMul"] = (0, 3)
_OWN = ("", "ai.onnx")  # the domains of the standard's own ops
_KNOWN = {*ONNX_KERNELS, *_CONVOLUTIONS, *_PRODUCTS}
_UNPRICED = "Attention DeformConv If Loop Scan SequenceMap DFT STFT Det".split()
_SIZED_BY_DATA = {"NonZero", "Unique", "NonMaxSuppression", "Compress"}
_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_LONGEST_FORMULA = 500
_LARGEST_KEPT = 256  # larger weights stay out of shape inference: no shape is computed from them


def load_onnx(path: str | Path, name: str | None = None, weights: bool = True) -> onnx.ModelProto:
    """A file's model, or UserError. name: for errors. weights: or large ones stay in the file."""
    path, name = Path(path), name or str(path)
    if not path.is_file():
        raise UserError(f"{name}: no such file")
    try:
        model = densified(onnx.load(str(path)) if weights else read_light(path))
        if not model.graph.node:
            raise ValueError("it has no nodes")
        _check_connected(model.graph)
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"{name}: not an ONNX model ({first}); export one with edgeprune"
        raise UserError(message) from error
    return model


def _check_connected(graph: onnx.GraphProto) -> None:
    """Raises ValueError for a tensor that is read before anything makes it."""
    made = {"", *(x.name for x in graph.input), *(x.name for x in graph.initializer)}
    made |= {x.values.name for x in graph.sparse_initializer}
    for node in graph.node:
        for name in node.input:
            if name not in made:
                raise ValueError(f"{node.op_type} reads {name!r}, which nothing makes")
        made.update(node.output)
    for output in graph.output:
        if output.name not in made:
            raise ValueError(f"the output {output.name!r} isn't made by anything")


def kernel_graph(model: onnx.ModelProto, fusion: Fusion | None = None) -> KernelGraph:
    """The kernels of an ONNX model at its recorded input shapes (free dimensions count as 1).

    fusion: how the device's runtime fuses ops (`Profile.fusion`).
    Raises UserError for a tensor whose size can't be inferred. What `unpriced_ops` names is counted
    with the bytes that it moves, but without arithmetic.
    """
    return fuse(replace(_Reader(model).run(), loop=Loop.recorded(model)), fusion=fusion)


def unpriced_ops(model: onnx.ModelProto) -> list[str]:
    """The ops of a model whose arithmetic the cost model doesn't know, each name once, sorted."""
    found = set()
    for node in _light(model).graph.node:
        foreign = node.domain not in _OWN and node.op_type not in _KNOWN
        if foreign or node.op_type in _UNPRICED:
            found.add(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
    return sorted(found)


def decided_by_data(model: onnx.ModelProto) -> list[str]:
    """The ops of a model whose outputs are as large as the data say, each name once, sorted."""
    return sorted({node.op_type for node in model.graph.node} & _SIZED_BY_DATA)


def pricing_remarks(model: onnx.ModelProto) -> list[str]:
    """What a reader of the predicted latency should know: nothing, or what is guessed at."""
    ops, sized = unpriced_ops(model), decided_by_data(_light(model))
    remarks = [f"arithmetic not priced, only memory traffic: {', '.join(ops)}"] if ops else []
    if sized:
        remarks.append(
            f"what {', '.join(sized)} picks is as large as the data say: priced as if all of it"
        )
    return remarks


@dataclass(frozen=True)
class _Cost:
    """A node's kind, MACs, tiled dimensions, and the sizes that `Op.sizes` names."""

    kind: str
    macs: float = 0
    channels: tuple[int, ...] = ()
    shape: Mapping[str, int] = field(default_factory=dict)


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        light = _light(model)
        self._graph = light.graph
        self._weights = _weights(model, light)
        self._shapes = _shapes(model, light)
        self._inputs = tuple(i.name for i in model.graph.input if i.name not in self._weights)
        # What a constant is made of: an initializer of itself, what is folded of its inputs.
        self._roots = {name: frozenset([name]) for name in self._weights}
        self._held: set[str] = set()
        self._users: dict[str, list[Any]] = {}
        for node in self._graph.node:
            for name in filter(None, node.input):  # "" is an input that is left out
                self._users.setdefault(name, []).append(node)
        self._composites = Composites(self._graph, self._weights, self._shapes)
        self._static = all(
            dim.dim_value > 0
            for info in model.graph.input
            for dim in info.type.tensor_type.shape.dim
        )

    def run(self) -> OpGraph:
        ops = []
        outputs = tuple(o.name for o in self._graph.output)
        composites = self._composites.find()
        for node in self._graph.node:
            names = [name for name in node.input if name]
            if node.op_type in ("Constant", "Shape", "Size"):
                self._roots.update({out: self._roots.get(out, frozenset()) for out in node.output})
            elif all(name in self._roots for name in names):
                roots = frozenset().union(*(self._roots[name] for name in names))
                self._roots.update(dict.fromkeys(node.output, roots))
            elif node.output[0] in composites:
                ops += self._part(node, composites[node.output[0]])
            else:
                ops.append(self._read(node, outputs))
        made = [out for op in ops if op.kind != FREE or not op.inputs for out in op.outputs]
        sizes = {name: Poly.constant(prod(self._shape(name))) for name in (*self._inputs, *made)}
        tensors = {*self._inputs, *(out for op in ops for out in op.outputs)}
        shapes = {name: self._shapes[name] for name in tensors if name in self._shapes}
        sizes = {n: Poly.constant(prod(s)) for n, s in shapes.items()} | sizes
        channels = {n: Poly.constant(s[1]) for n, s in shapes.items() if len(s) == 4}
        return OpGraph(tuple(ops), sizes, self._inputs, outputs, channels, self._static)

    def _part(self, node: Any, part: Part) -> list[Op]:
        """A node of an op that the file writes out in parts: its last one stands for all of it."""
        if not part.label:
            return []
        new = set(part.weights) - self._held
        self._held |= new
        norm = part.kind == "norm"
        whole = Op(
            node.name or node.output[0],
            part.kind,
            (part.source,),
            (node.output[0],),
            weights=Poly.constant(sum(prod(self._shape(n)) for n in part.weights)),
            held=Poly.constant(sum(prod(self._shape(n)) for n in new)),
            label=part.label,
            sizes={"last": Poly.constant(self._shape(node.output[0])[-1])} if norm else {},
        )
        return [whole]

    def _read(self, node: Any, outputs: tuple[str, ...]) -> Op:
        cost = self._cost(node)
        weights = {root for name in node.input for root in self._roots.get(name, ())}
        new = weights - self._held
        self._held |= new
        read = tuple(out for out in node.output if out in self._users or out in outputs)
        return Op(
            node.name or node.output[0],
            cost.kind,
            tuple(n for n in node.input if n and n not in self._roots),
            read or (node.output[0],),
            Poly.constant(cost.macs),
            tuple(map(Poly.constant, cost.channels)),
            Poly.constant(sum(prod(self._weights[n]) for n in weights)),
            partial=node.op_type in ONNX_PARTIAL,
            held=Poly.constant(sum(prod(self._weights[n]) for n in new)),
            label="Scale" if self._scales(node) else node.op_type,
            sizes={name: Poly.constant(size) for name, size in cost.shape.items()},
        )

    def _scales(self, node: Any) -> bool:
        """Whether a node multiplies one side, or the result, of a product by a number."""
        if node.op_type not in ("Mul", "Div"):
            return False
        data = [name for name in node.input if name not in self._roots]
        if len(data) != 1 or prod(self._shape(node.input[1])) != 1:
            return False
        users = self._users.get(node.output[0], [])
        feeds = bool(users) and all(user.op_type == "MatMul" for user in users)
        return feeds or self._composites.lone(data[0], "MatMul") is not None

    def _cost(self, node: Any) -> _Cost:
        """What a node costs."""
        op = node.op_type
        if op in _CONVOLUTIONS:
            return self._convolution(node)
        if op in _PRODUCTS:
            return self._product(node)
        if op == "Einsum":
            return self._einsum(node)
        if op in ("LSTM", "GRU", "RNN"):
            steps = prod(self._shape(node.input[0])[:2])
            matrices = [self._shape(n) for n in node.input[1:3]]
            shape = self._recurrent(self._shape(node.input[0]), *matrices)
            return _Cost("linear", steps * sum(map(prod, matrices)), shape=shape)
        if op == "Transpose":
            return self._transpose(node)
        shape = {}
        if op == "Concat":
            axis = _attribute(node, "axis", 1) % len(self._shape(node.output[0]))
            shape = {"axis": axis, "count": len(node.input)}
        kind = ONNX_KERNELS.get(op, "elementwise")
        if kind in ("norm", "softmax"):
            shape = {"last": self._shape(node.input[0])[-1]}
        return _Cost(kind, shape=shape)

    @staticmethod
    def _recurrent(
        x: tuple[int, ...], learnt: tuple[int, ...], hidden: tuple[int, ...]
    ) -> dict[str, int]:
        """A recurrent layer as a product: at each step, inputs and state meet their matrices.

        x: (steps, batch, features); learnt, hidden: the matrices, (directions, gates, features).
        """
        directions, gates, features = learnt
        return {
            "batch": x[0] * directions,
            "rows": x[1],
            "inner": features + hidden[-1],
            "cols": gates,
        }

    def _transpose(self, node: Any) -> _Cost:
        x = self._shape(node.input[0])
        order = _attribute(node, "perm", list(reversed(range(len(x)))))
        feeds = all(user.op_type in _PRODUCTS for user in self._users.get(node.output[0], ()))
        return _Cost("copy", shape={"run": unmoved(x, order), **transposes(order, feeds)})

    def _convolution(self, node: Any) -> _Cost:
        x, weight = (self._shape(node.input[i]) for i in _CONVOLUTIONS[node.op_type])
        out = self._shape(node.output[0])
        groups, area = _attribute(node, "group", 1), prod(weight[2:])
        made = x if node.op_type == "ConvTranspose" else out
        macs = prod(made) * weight[1] * area
        stride = max(_attribute(node, "strides", [1]))
        kind = convolution_kind(groups, weight[1], area)
        channels = (out[1],) if kind == "depthwise" else (x[1] // groups, out[1] // groups)
        return _Cost(kind, macs, channels, convolution_sizes(x, out, weight[2:], stride, groups))

    def _product(self, node: Any) -> _Cost:
        left, right = (node.input[i] for i in _PRODUCTS[node.op_type])
        a, out = self._shape(left), self._shape(node.output[0])
        inner = a[0 if _attribute(node, "transA", 0) else -1]
        cols = out[-1] if out else 1
        learnt = left in self._roots or right in self._roots
        batch = 1 if learnt else prod(out[:-2])
        shape = {"batch": batch, "rows": prod(out) // (cols * batch), "inner": inner, "cols": cols}
        if learnt:
            return _Cost("linear", prod(out) * inner, (inner, cols), shape)
        return _Cost("matmul", prod(out) * inner, shape=shape)

    def _einsum(self, node: Any) -> _Cost:
        """Each entry of the output sums over the letters that the output lacks."""
        equation = _attribute(node, "equation", b"").decode().replace(" ", "")
        terms, _, made = equation.partition("->")
        if "->" not in equation:
            made = "".join(c for c in set(terms) if terms.count(c) == 1)
        sizes: dict[str, int] = {}
        for term, name in zip(terms.split(","), node.input, strict=True):
            before, _, after = term.partition("...")
            shape = self._shape(name)
            sizes.update(zip(before, shape, strict=False))
            sizes.update(zip(reversed(after), reversed(shape), strict=False))
        if len(node.input) == 1:
            return _Cost("copy")
        summed = prod(size for letter, size in sizes.items() if letter not in made)
        learnt = any(name in self._roots for name in node.input)
        macs = prod(self._shape(node.output[0])) * summed
        return _Cost("linear" if learnt else "matmul", macs)

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self._weights.get(name, self._shapes.get(name))
        if shape is None:
            raise UserError(
                f"{self._graph.name or 'this ONNX model'}: the size of tensor {name!r} can't be "
                "inferred: run onnx.shape_inference on it, or re-export it with static shapes"
            )
        return shape


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large weights are inputs without data, local functions are written out."""
    graph = onnx.GraphProto(name=model.graph.name, output=model.graph.output)
    given = {t.name for t in model.graph.initializer}
    graph.input.extend(info for info in model.graph.input if info.name not in given)
    large: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        (large if _is_large(tensor) else graph.initializer).append(tensor)
    for node in model.graph.node:
        value = _constant_tensor(node)
        if value is not None and _is_large(value):
            large.append(onnx.TensorProto(name=node.output[0], dims=value.dims))
            large[-1].data_type = value.data_type
        else:
            graph.node.append(node)
    graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, tuple(t.dims)) for t in large
    )
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.functions.extend(model.functions)
    light.graph.CopyFrom(graph)
    return inliner.inline_local_functions(light) if model.functions else light


def _is_large(tensor: onnx.TensorProto) -> bool:
    return prod(tensor.dims) > _LARGEST_KEPT


def _constant_tensor(node: Any) -> onnx.TensorProto | None:
    """The tensor of a Constant node."""
    if node.op_type != "Constant":
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def _weights(model: onnx.ModelProto, light: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of each initializer and each Constant node's tensor, by name."""
    found = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for node in (*model.graph.node, *light.graph.node):
        if node.op_type == "Constant":
            value = _constant_tensor(node)
            lists = [a for a in node.attribute if a.name in ("value_floats", "value_ints")]
            count = [len(a.floats) + len(a.ints) for a in lists]
            found[node.output[0]] = tuple(value.dims) if value is not None else tuple(count)
    return found


def _shapes(model: onnx.ModelProto, light: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that is known: inferred, or else as the file states it.

    Raises UserError for an input whose rank isn't stated.
    """
    symbols, batch = _settle_inputs(light.graph, recorded_shapes(model))
    for info in light.graph.output:
        info.type.tensor_type.ClearField("shape")
    # onnx knows nothing of foreign ops: there the file's own word is what goes on from.
    foreign = {out for n in light.graph.node if n.domain not in _OWN for out in n.output}
    stated = [*model.graph.value_info, *model.graph.output]
    for info in stated:
        shape = info.type.tensor_type
        # Nor does it follow all that a shape is computed by, where two sizes are free.
        computed = any(not d.dim_param.isidentifier() for d in shape.shape.dim if d.dim_param)
        if (info.name in foreign or computed) and shape.HasField("shape"):
            sizes = _sizes(shape.shape.dim, symbols, batch)
            if info.name in foreign or None not in sizes:
                light.graph.value_info.append(info)
                dims = light.graph.value_info[-1].type.tensor_type.shape.dim
                for dim, size in zip(dims, sizes, strict=True):
                    dim.Clear() if size is None else setattr(dim, "dim_value", size)
    inferred = shape_inference.infer_shapes(light, data_prop=True).graph
    if decided_by_data(light):  # at most as many rows as came in
        first = [info.type.tensor_type.shape.dim for info in light.graph.input][:1]
        rows = first[0][0].dim_value if first and first[0] else 1
        for info in (*inferred.value_info, *inferred.output):
            for dim in info.type.tensor_type.shape.dim:
                if not dim.HasField("dim_value") and dim.dim_param not in symbols:
                    dim.dim_value = rows
    found: dict[str, tuple[int, ...]] = {}
    own = [*inferred.input, *inferred.value_info, *inferred.output]
    for info, said in [*((i, False) for i in own), *((i, True) for i in stated)]:
        shape = info.type.tensor_type
        if info.name in found or not shape.HasField("shape"):
            continue
        dims = shape.shape.dim
        # An exporter that writes 0 or -1 doesn't know; what onnx infers may be empty.
        sizes = _sizes(dims, symbols, batch) if said else [_inferred(d, symbols) for d in dims]
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes):
            found[info.name] = tuple(known)
    return found


def _settle_inputs(
    graph: onnx.GraphProto, recorded: Mapping[str, list[int]]
) -> tuple[dict[str, int], int | None]:
    """Gives each input of a graph all its sizes, and returns those of the dimensions that have a
    name, and of the batch where it stands open. What nobody knows counts as 1."""
    symbols: dict[str, int] = {}
    batch: int | None = None
    for info in graph.input:
        wanted = recorded.get(info.name, [])
        tensor = info.type.tensor_type
        if not tensor.HasField("shape") and info.name not in recorded:
            raise UserError(
                f"{graph.name or 'this ONNX model'}: the shape of input {info.name!r} isn't stated:"
                " export it with the input's sizes"
            )
        dims = tensor.shape.dim
        if not dims and wanted:
            dims.extend(onnx.TensorShapeProto.Dimension() for _ in wanted)
        for i, dim in enumerate(dims):
            if dim.dim_value > 0:
                continue
            size = int(wanted[i]) if i < len(wanted) else symbols.get(dim.dim_param, 1)
            if dim.dim_param:
                symbols.setdefault(dim.dim_param, size)
            if i == 0 and batch is None:
                batch = size
            dim.dim_value = size
    return symbols, batch


def _sizes(dims: Any, symbols: Mapping[str, int], batch: int | None) -> list[int | None]:
    """Sizes as a file states them: None for one that it leaves open and no input tells, but for the
    first of all, which is the batch's if that stands open as well."""
    found: list[int | None] = []
    for i, dim in enumerate(dims):
        size = _number(dim.dim_param, symbols) if dim.dim_param else dim.dim_value
        found.append(size if size and size > 0 else batch if i == 0 else None)
    return found


def _number(text: str, symbols: Mapping[str, int]) -> int | None:
    """A size by its name or in the arithmetic of names that torch.onnx writes ("2*batch*(H//4)");
    None for what isn't known."""
    if text.isidentifier() or len(text) > _LONGEST_FORMULA:
        return symbols.get(text)
    try:
        return _computed(ast.parse(text, mode="eval").body, symbols)
    except (SyntaxError, KeyError, ZeroDivisionError, ValueError):
        return None


def _computed(term: ast.expr, symbols: Mapping[str, int]) -> int:
    """Raises KeyError for what is neither known nor such arithmetic."""
    if isinstance(term, ast.Constant) and type(term.value) is int:
        return term.value
    if isinstance(term, ast.Name):
        return symbols[term.id]
    if isinstance(term, ast.UnaryOp) and isinstance(term.op, ast.USub):
        return -_computed(term.operand, symbols)
    if isinstance(term, ast.BinOp):
        return _ARITHMETIC[type(term.op)](
            _computed(term.left, symbols), _computed(term.right, symbols)
        )
    raise KeyError(type(term).__name__)


def _inferred(dim: Any, symbols: Mapping[str, int]) -> int | None:
    return dim.dim_value if dim.HasField("dim_value") else symbols.get(dim.dim_param)


def recorded_shapes(model: onnx.ModelProto) -> Mapping[str, list[int]]:
    """The input shapes that the file was made for, by name; empty for a foreign file."""
    found = (entry.value for entry in model.metadata_props if entry.key == INPUT_SHAPES_KEY)
    return dict(json.loads(next(found, "{}")))


def _attribute(node: Any, name: str, default: Any) -> Any:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)
