"""The stamp: a model is of the opset before once each of its nodes is valid there."""

from __future__ import annotations

import onnx_ir as ir

from edgeprune.export.opset.lowering import InexpressibleError, attribute, constant_of, opset_of
from edgeprune.export.opset.rules import (
    NEW_ATTRIBUTES,
    NEW_BEHAVIOUR,
    NEW_VALUES,
    ONE_SCALE_BEFORE_13,
)
from edgeprune.export.opset.schemas import STANDARD, misfit, standard_nodes


class Relabel(ir.passes.InPlacePass):
    """Stamps a model with the opset before `newer`.

    Requires a model of opset `newer`; ensures that every node is valid in the one before. Raises
    InexpressibleError for the first node that isn't.
    """

    def __init__(self, newer: int) -> None:
        self.newer = newer

    def requires(self, model: ir.Model) -> None:
        """The model is of opset `newer`."""
        if opset_of(model) != self.newer:
            raise ir.passes.PreconditionError(f"a model of opset {opset_of(model)}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Leaves out what says nothing new, and changes the stamp."""
        for node in standard_nodes(model):
            self._plain(node)
            if (why := misfit(node, self.newer - 1)) is not None:
                raise InexpressibleError(node, why)
        for domain in STANDARD:
            if domain in model.opset_imports:
                model.opset_imports[domain] = self.newer - 1
        return ir.passes.PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """No node is newer than the stamp."""
        for node in standard_nodes(model):
            if (why := misfit(node, opset_of(model))) is not None:
                raise ir.passes.PostconditionError(f"{node.name}: {why}")

    def _plain(self, node: ir.Node) -> None:
        """Drops attributes that are new and say what the op did before they were there."""
        key = node.op_type, self.newer
        for name, before in NEW_ATTRIBUTES.get(key, {}).items():
            stated = attribute(node, name, NEW_BEHAVIOUR.get(key, before))
            same = set(stated) <= {1} if isinstance(before, list) else stated == before
            if not same and not self._means_nothing(node, name):
                raise InexpressibleError(node, f"{name}={stated} is of opset {self.newer}")
            node.attributes.pop(name, None)
        for name, new in NEW_VALUES.get(key, {}).items():
            if (stated := attribute(node, name, None)) in new:
                raise InexpressibleError(node, f"{name}={stated} is of opset {self.newer}")
        if self.newer == 13 and node.op_type in ONE_SCALE_BEFORE_13:
            scale = constant_of(node.inputs[1])
            if scale is None or scale.size != 1:
                raise InexpressibleError(node, "a scale for each channel is of opset 13")
            node.attributes.pop("axis", None)

    @staticmethod
    def _means_nothing(node: ir.Node, name: str) -> bool:
        """Whether an attribute has nothing to act on: allowzero where no size is 0."""
        sizes = constant_of(node.inputs[1]) if name == "allowzero" else None
        return sizes is not None and 0 not in sizes
