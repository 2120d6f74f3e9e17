"""What the passes share: how a node is found, rewritten and refused."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from edgeprune.export.opset.schemas import STANDARD, standard_nodes, wrong_form


class InexpressibleError(Exception):
    """An op that an opset has no form for. node: which; why: in a few words."""

    def __init__(self, node: ir.Node, why: str) -> None:
        super().__init__(f"{node.op_type} ({node.name}): {why}")
        self.node, self.why = node, why


class Lowering(ir.passes.InPlacePass):
    """Rewrites ops of opset `newer` into what the one before it has, with the same arithmetic.

    newer: the opset that gave `ops` another form. Requires a model of that opset; ensures that each
    of the ops is valid in the opset before. Raises InexpressibleError where one can't be.

    lacking: ops that a runtime hasn't got, whatever the opset: those alone are rewritten, in a
    model of any opset from `newer` on, and none of them is left.
    """

    newer: ClassVar[int]
    ops: ClassVar[frozenset[str]]

    def __init__(self, lacking: frozenset[str] | None = None) -> None:
        self._lacking = lacking
        self._ops = self.ops if lacking is None else self.ops & lacking

    @abstractmethod
    def lower(self, node: ir.Node, rewrite: Rewrite) -> bool:
        """Brings a node into its older form; returns whether it changed."""

    def requires(self, model: ir.Model) -> None:
        """The model is of the opset that this pass leads away from, or of a newer one where it only
        spares a runtime an op."""
        stamp = opset_of(model)
        if stamp < self.newer or (self._lacking is None and stamp != self.newer):
            raise ir.passes.PreconditionError(
                f"{type(self).__name__} is for opset {self.newer}, not {opset_of(model)}"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lowers each of the ops."""
        found = [node for node in standard_nodes(model) if node.op_type in self._ops]
        changed = [self.lower(node, Rewrite(model, node)) for node in found]
        return ir.passes.PassResult(model, any(changed))

    def ensures(self, model: ir.Model) -> None:
        """None of the ops is left in a form that the older opset, or the runtime, hasn't got."""
        for node in standard_nodes(model):
            if node.op_type not in self._ops:
                continue
            why = wrong_form(node, self.newer - 1)
            if why is not None or self._lacking is not None:
                raise ir.passes.PostconditionError(f"{node.name}: {why or 'it is still there'}")


class Rewrite:
    """New ops in the place of a node; each has the node's name and its own."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self._model, self._node = model, node
        self._stem = node.name or f"{node.outputs[0].name}_{node.op_type}"
        self._made = 0

    def constant(self, values: Any, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer of these values. dtype: int64 where left out."""
        kind = ir.DataType.INT64 if dtype is None else dtype
        array = np.asarray(values, kind.numpy())
        self._made += 1
        name = f"{self._stem}_constant_{self._made}"
        taken = self._model.graph.initializers
        while name in taken:
            name += "_"
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self._model.graph.register_initializer(value)
        return value

    def number(self, value: float, like: ir.Value) -> ir.Value:
        """A lone number of the element type of `like`."""
        return self.constant(value, ir.DataType.FLOAT if like.dtype is None else like.dtype)

    def op(
        self, op: str, *inputs: ir.Value | None, like: ir.Value | None = None, **attributes: Any
    ) -> ir.Value:
        """What a new op makes. like: a value of the same element type and shape."""
        self._made += 1
        node = ir.node(op, inputs, attributes, name=f"{self._stem}_{op}_{self._made}")
        graph = self._node.graph
        assert graph is not None
        graph.insert_before(self._node, node)
        made = node.outputs[0]
        made.name = node.name
        if like is not None:
            made.type, made.shape = like.type, like.shape
        return made

    def mean(self, x: ir.Value, axes: Sequence[int]) -> ir.Value:
        """The mean over some dimensions, which are kept, in the form of the model's opset."""
        if opset_of(self._model) >= 18:
            return self.op("ReduceMean", x, self.constant(list(axes)), keepdims=1)
        return self.op("ReduceMean", x, axes=list(axes), keepdims=1)

    def replace(self, *values: ir.Value | None) -> bool:
        """Puts `values` in the place of the node's outputs, which keep their names; None for one
        that nobody reads. The node is gone then."""
        graph = self._node.graph
        assert graph is not None
        for old, new in zip(self._node.outputs, values, strict=False):
            if new is None:
                continue
            made = new.producer()
            if made is None or made.graph is not graph or new.is_graph_output():
                new = self.op("Identity", new)
            name = old.name
            new.type, new.shape = old.type, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name = f"{name}_before"
            new.name = name
        graph.remove(self._node, safe=True)
        return True


def is_read(value: ir.Value) -> bool:
    """Whether anything reads a value, or the model gives it out."""
    return bool(value.uses()) or value.is_graph_output()


def opset_of(model: ir.Model) -> int:
    """The opset of the standard's ops that a model is stamped with."""
    return max(model.opset_imports.get(domain, 0) for domain in STANDARD)


def constant_of(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """A value's numbers where the file holds them: an initializer's or a Constant's."""
    found = None if value is None else ir.convenience.get_const_tensor(value)
    return None if found is None else found.numpy()


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute, or `default` where the node doesn't state it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def second_input_as(name: str, node: ir.Node, what: str) -> bool:
    """Makes the whole numbers that a node reads as its second input its attribute `name`, if there
    are any; returns whether that input is left out. Raises InexpressibleError where they are
    computed. what: they, for that."""
    stated = node.inputs[1] if len(node.inputs) > 1 else None
    numbers = constant_of(stated)
    if stated is not None and numbers is None:
        raise InexpressibleError(node, f"{what} computed")
    if numbers is not None and numbers.size:
        node.attributes[name] = ir.AttrInt64s(name, [int(number) for number in numbers.ravel()])
    node.resize_inputs(1)
    return stated is None


def rank_of(node: ir.Node, value: ir.Value | None) -> int:
    """The number of dimensions of a value. Raises InexpressibleError where nobody knows."""
    if value is None or value.shape is None:
        raise InexpressibleError(node, "how many dimensions it has isn't known")
    return value.shape.rank()


def sizes_of(value: ir.Value | None) -> Sequence[int | None]:
    """The sizes of a value, None for one that is free; () where nothing is known."""
    if value is None or value.shape is None:
        return ()
    return [dim if isinstance(dim, int) else None for dim in value.shape]
