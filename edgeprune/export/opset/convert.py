"""A model at an older opset: the passes of each step, then the stamp."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes.common import (
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)

from edgeprune.core.errors import UserError
from edgeprune.export.opset.lowering import InexpressibleError, Lowering, opset_of
from edgeprune.export.opset.passes.activations import Celu, Gelu, HardSwish, Mish
from edgeprune.export.opset.passes.arithmetic import CastLike, Comparisons, ExponentOfPow
from edgeprune.export.opset.passes.axes import AxesOfReduceSum, AxesOfReductions, AxesOfViews
from edgeprune.export.opset.passes.constant import NumbersOfConstant
from edgeprune.export.opset.passes.dropout import Dropout
from edgeprune.export.opset.passes.group_normalization import (
    GroupNormalizationByChannel,
    GroupNormalizationByGroup,
)
from edgeprune.export.opset.passes.layer_normalization import LayerNormalization
from edgeprune.export.opset.passes.pad import AxesOfPad
from edgeprune.export.opset.passes.sampling import AxesOfResize, InputsOfResize, ModesOfGridSample
from edgeprune.export.opset.passes.shape import PartOfShape
from edgeprune.export.opset.passes.softmax import Softmax
from edgeprune.export.opset.passes.split import SizesOfSplit, SplitIntoEqualParts
from edgeprune.export.opset.passes.trilu import Trilu
from edgeprune.export.opset.relabel import Relabel
from edgeprune.export.opset.schemas import schema_at, standard_nodes

#: One for each op that another opset gave another form.
PASSES: tuple[type[Lowering], ...] = (
    GroupNormalizationByChannel,
    Gelu,
    ModesOfGridSample,
    AxesOfReductions,
    SplitIntoEqualParts,
    AxesOfPad,
    AxesOfResize,
    GroupNormalizationByGroup,
    Mish,
    LayerNormalization,
    PartOfShape,
    CastLike,
    HardSwish,
    Trilu,
    Softmax,
    AxesOfReduceSum,
    AxesOfViews,
    SizesOfSplit,
    InputsOfResize,
    Comparisons,
    ExponentOfPow,
    Celu,
    Dropout,
    NumbersOfConstant,
)

_SMALL = 256  # elements: what passes make more than once


def at_opset(
    model: onnx.ModelProto,
    version: int,
    layers: Mapping[str, str] | None = None,
    operators: Collection[str] | None = None,
) -> onnx.ModelProto:
    """A model of the standard's opset `version`, with the IR version that belongs to it.

    layers: the module that a node is of, by the node's name, for what is said of one that has no
    form there. operators: those that the runtime has: what it lacks is written with older ones
    where there is a pass for it. A model of this opset, or an older one, without such ops is
    returned as it is.
    Raises UserError, in one line, for a node that has no form in the opset.
    """
    converted = ir.from_proto(model)
    lacking = _lacking(converted, operators)
    if opset_of(converted) <= version and not lacking:
        return model
    ShapeInferencePass()(converted)
    try:
        for newer in range(opset_of(converted), version, -1):
            for each in PASSES:
                if each.newer == newer:
                    each()(converted)
            Relabel(newer)(converted)
        for each in PASSES:
            if each.newer <= opset_of(converted) and each.ops & lacking:
                each(lacking)(converted)
    except InexpressibleError as error:
        raise UserError(_refusal(error, version, layers or {})) from error
    RemoveUnusedNodesPass()(converted)
    DeduplicateInitializersPass(size_limit=_SMALL)(converted)
    converted.ir_version = helper.find_min_ir_version_for(
        [helper.make_opsetid(domain, v) for domain, v in converted.opset_imports.items()],
        ignore_unknown=True,
    )
    return ir.to_proto(converted)


def _lacking(model: ir.Model, operators: Collection[str] | None) -> frozenset[str]:
    """The ops of a model that a runtime hasn't got, and that were written with others once."""
    if operators is None:
        return frozenset()
    used = {node.op_type for node in standard_nodes(model)} - set(operators)
    return frozenset(
        op for p in PASSES for op in p.ops & used if schema_at(op, p.newer - 1) is None
    )


def _refusal(error: InexpressibleError, version: int, layers: Mapping[str, str]) -> str:
    name = error.node.name or ""
    layer = next((layers[n] for n in (name, *_origins(name)) if n in layers), "")
    where = f" (layer {layer})" if layer else f" (node {name})" if name else ""
    return (
        f"{error.node.op_type}{where} has no form in opset {version}: {error.why}: write it with "
        "other ops, or give a newer --opset if the device's runtime reads it"
    )


def _origins(name: str) -> list[str]:
    """The names of the nodes that a rewritten one came from: it has theirs as its beginning."""
    parts = name.split("_")
    return ["_".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
