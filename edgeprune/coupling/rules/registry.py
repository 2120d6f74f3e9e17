"""The table of ops. Most are one line; the rest are small functions in the neighbouring modules.

To teach an op: add a line to SPECS (an einsum-like rule), to SAME or POINTWISE, or a function in
one of the `rules_*.py` under its ATen name, and one test in tests/coupling/.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from edgeprune.coupling.einsum import einsum_rule
from edgeprune.coupling.propagate import Labels, Rule, Walk
from edgeprune.coupling.rules.compute import COMPUTE
from edgeprune.coupling.rules.layout import LAYOUT
from edgeprune.coupling.rules.recurrent import RECURRENT

SPECS = {
    "linear": "*i,oi,o->*o",
    "bmm": "bmk,bkn->bmn",
    "mm": "mk,kn->mn",
    "mv": "mk,k->m",
    "embedding": "Ve,*->*e",
    "bilinear": "*i,*j,oij,o->*o",
    "max_pool1d": "nc~->nc~",
    "max_pool2d": "nc~~->nc~~",
    "max_pool3d": "nc~~~->nc~~~",
    "max_pool2d_with_indices": "nc~~->nc~~;nc~~",
    "avg_pool1d": "nc~->nc~",
    "avg_pool2d": "nc~~->nc~~",
    "avg_pool3d": "nc~~~->nc~~~",
    "adaptive_avg_pool1d": "nc~->nc~",
    "adaptive_avg_pool2d": "nc~~->nc~~",
    "adaptive_avg_pool3d": "nc~~~->nc~~~",
    "adaptive_max_pool1d": "nc~->nc~;nc~",
    "adaptive_max_pool2d": "nc~~->nc~~;nc~~",
    "upsample_nearest1d": "nc~->nc~",
    "upsample_nearest2d": "nc~~->nc~~",
    "upsample_nearest3d": "nc~~~->nc~~~",
    "_upsample_nearest_exact2d": "nc~~->nc~~",
    "upsample_bilinear2d": "nc~~->nc~~",
    "upsample_bicubic2d": "nc~~->nc~~",
    "upsample_linear1d": "nc~->nc~",
    "upsample_trilinear3d": "nc~~~->nc~~~",
    "grid_sampler": "nc~~,nHWT->nc~~",
    "reflection_pad1d": "nc~->nc~",
    "reflection_pad2d": "nc~~->nc~~",
    "replication_pad1d": "nc~->nc~",
    "replication_pad2d": "nc~~->nc~~",
    "channel_shuffle": "nCHW->nCHW",
}

# One tensor in, the same one out, element for element.
SAME = (
    "dropout dropout_ feature_dropout alpha_dropout contiguous clone detach detach_ alias to "
    "_to_copy lift_fresh_copy lift_fresh type_as float double half bool int long cpu "
    "bernoulli zeros_like ones_like full_like empty_like rand_like randn_like fill_ zero_ "
    "hardtanh hardtanh_ constant_pad_same"
).split()

# Element-wise over several tensors, but without torch.Tag.pointwise in some release.
POINTWISE = (
    "hardswish hardswish_ hardsigmoid hardsigmoid_ log_sigmoid logsigmoid relu6 relu6_ silu "
    "silu_ mish mish_ selu selu_ celu celu_ elu elu_ leaky_relu leaky_relu_ gelu gelu_ "
    "softplus threshold threshold_ masked_fill masked_fill_ where clamp clamp_ clip add_ sub_ "
    "mul_ div_ relu_ sigmoid_ tanh_ square square_ rsub copy_ addcmul addcdiv lerp "
    "true_divide divide multiply subtract floor_divide remainder logical_and logical_or "
    "logical_not bitwise_and bitwise_or bitwise_not eq ne lt le gt ge maximum minimum pow exp "
    "__and__ __or__ __xor__ "
    "log sqrt rsqrt reciprocal abs neg erf sin cos nan_to_num isnan isinf expand_as"
).split()


def _pointwise(walk: Walk, node: Node) -> Labels:
    tensors = [a for a in _flat(node) if isinstance(a, Node) and a.name in walk.labels]
    return walk.broadcast([t for t in tensors if walk.labels[t.name] is not None], node)


def _same(walk: Walk, node: Node) -> Labels:
    return list(walk.of(node.args[0]))


def _flat(node: Node) -> list[Any]:
    """The arguments of a node, lists opened."""
    out: list[Any] = []
    for value in [*node.args, *node.kwargs.values()]:
        out.extend(value) if isinstance(value, list | tuple) else out.append(value)
    return out


RULES: dict[str, Rule] = {
    **{name: _pointwise for name in POINTWISE},
    **{name: _same for name in SAME},
    **{name: einsum_rule(spec) for name, spec in SPECS.items()},
    **LAYOUT,
    **COMPUTE,
    **RECURRENT,
}


def rule_for(target: Any) -> Rule | None:
    """The rule of an ATen op (any overload), or None for one that nobody taught."""
    if not isinstance(target, torch._ops.OpOverload):
        return None
    namespace, _, name = target._schema.name.partition("::")
    if namespace != "aten":
        return None
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in target.tags:
        return _pointwise
    return None
