"""What each op is: how its dimensions belong together, what it costs, what ONNX calls it.

The one registry of ops. Coupling reads `labels`; the cost model `kernel`, `onnx` and `partial`, for
graphs and for files; training reads `training_flag`. It holds names alone and needs no torch, since
`edgeprune check` prices files by it.

To teach an op: add its ATen name to a family below, or a family of its own, and one case to
tests/coupling/test_ops.py. CONTRIBUTING.md shows it with an example. Only two kinds of op need code
besides: one whose dimensions no line describes (a function in coupling/rules/), and one with
arithmetic of its own (a function in cost/fx_arithmetic.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Kernels that the cost model tells apart. "free": no kernel, its output is its input under another
#: shape. "computed": by a function of cost/fx_arithmetic.py, from the op's own sizes.
KernelKind = Literal["free", "copy", "elementwise", "pool", "norm", "softmax", "computed"]

SAME = "same"  # one tensor in, and out the same one, element for element
POINTWISE = "pointwise"  # element-wise over several tensors, with broadcasting


@dataclass(frozen=True)
class Family:
    """Ops that are alike.

    names: ATen's, without overload; an in-place op goes by the same name without its underscore.
    labels: what it does to dimensions: SAME, POINTWISE or a line for `coupling.einsum`. Empty: a
    function in coupling/rules/ says it, or nothing does, and what it touches freezes.
    kernel: what it costs. onnx: the ONNX ops that it becomes, the usual one first; empty: its own
    name with a capital. partial: it reads only as much as it writes.
    training_flag: the place of the argument that says whether the op trains.
    """

    names: str
    labels: str = ""
    kernel: KernelKind = "elementwise"
    onnx: str = ""
    partial: bool = False
    training_flag: int | None = None


FAMILIES = (
    # -- products and convolutions --------------------------------------------------------------
    Family("conv1d conv2d conv3d", kernel="computed", onnx="Conv"),
    Family("conv_transpose1d conv_transpose2d conv_transpose3d", "", "computed", "ConvTranspose"),
    Family("linear", "*i,oi,o->*o", "computed", "Gemm MatMul"),
    Family("matmul addmm baddbmm", kernel="computed", onnx="MatMul"),
    Family("mm", "mk,kn->mn", "computed", "MatMul"),
    Family("bmm", "bmk,bkn->bmn", "computed", "MatMul"),
    Family("mv", "mk,k->m", "computed", "MatMul"),
    Family("bilinear", "*i,*j,oij,o->*o", "computed", "MatMul"),
    Family("einsum", kernel="computed"),
    Family("scaled_dot_product_attention", kernel="computed", onnx="Attention"),
    Family("lstm", kernel="computed", onnx="LSTM", training_flag=6),
    Family("gru", kernel="computed", onnx="GRU", training_flag=6),
    Family("rnn_tanh rnn_relu", kernel="computed", onnx="RNN", training_flag=6),
    Family("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", kernel="computed"),
    Family("_weight_norm"),
    # -- norms and softmax ----------------------------------------------------------------------
    Family("batch_norm", onnx="BatchNormalization", training_flag=5),
    Family("layer_norm", kernel="norm", onnx="LayerNormalization SkipLayerNormalization"),
    Family("rms_norm", kernel="norm", onnx="RMSNormalization"),
    Family("group_norm", kernel="norm", onnx="GroupNormalization"),
    Family("instance_norm", kernel="norm", onnx="InstanceNormalization"),
    Family("softmax _softmax", kernel="softmax", onnx="Softmax"),
    Family("log_softmax _log_softmax", kernel="softmax", onnx="LogSoftmax"),
    # -- element-wise ---------------------------------------------------------------------------
    Family("relu6 clamp clip clamp_min clamp_max", POINTWISE, onnx="Clip"),
    Family("hardtanh", SAME, onnx="Clip"),
    Family("hardswish", POINTWISE, onnx="HardSwish"),
    Family("hardsigmoid", POINTWISE, onnx="HardSigmoid"),
    Family("leaky_relu", POINTWISE, onnx="LeakyRelu"),
    Family("gelu", POINTWISE, onnx="Gelu BiasGelu FastGelu QuickGelu"),
    Family("silu mish selu celu elu softplus threshold log_sigmoid logsigmoid relu", POINTWISE),
    Family("add sub mul div square sigmoid tanh rsub copy", POINTWISE),
    Family("addcmul addcdiv lerp true_divide divide multiply subtract floor_divide", POINTWISE),
    Family("remainder maximum minimum pow exp log sqrt rsqrt reciprocal abs neg", POINTWISE),
    Family("erf sin cos nan_to_num isnan isinf expand_as", POINTWISE),
    Family("masked_fill where eq ne lt le gt ge logical_and logical_or logical_not", POINTWISE),
    Family("bitwise_and bitwise_or bitwise_not __and__ __or__ __xor__", POINTWISE),
    Family("bool half int long double bernoulli cpu constant_pad_same", SAME),
    Family("zeros_like ones_like full_like empty_like rand_like randn_like fill zero", SAME),
    Family("lift_fresh", SAME),
    Family("prelu", onnx="PRelu"),
    Family("glu"),
    Family("cumsum cumprod logcumsumexp cummax", onnx="CumSum"),
    # -- pools and reductions -------------------------------------------------------------------
    Family("max_pool1d max_pool2d max_pool3d", "", "pool", "MaxPool"),
    Family("max_pool2d_with_indices", "nc~~->nc~~;nc~~", "pool", "MaxPool"),
    Family("avg_pool1d avg_pool2d avg_pool3d", "", "pool", "AveragePool GlobalAveragePool"),
    Family("adaptive_avg_pool1d", "nc~->nc~", "pool", "ReduceMean"),
    Family("adaptive_avg_pool2d", "nc~~->nc~~", "pool", "ReduceMean"),
    Family("adaptive_avg_pool3d", "nc~~~->nc~~~", "pool", "ReduceMean"),
    Family("adaptive_max_pool1d", "nc~->nc~;nc~", "pool", "GlobalMaxPool"),
    Family("adaptive_max_pool2d", "nc~~->nc~~;nc~~", "pool", "GlobalMaxPool"),
    Family("mean", kernel="pool", onnx="ReduceMean"),
    Family("sum", kernel="pool", onnx="ReduceSum"),
    Family("amax max any", kernel="pool", onnx="ReduceMax"),
    Family("amin min all", kernel="pool", onnx="ReduceMin"),
    Family("prod", kernel="pool", onnx="ReduceProd"),
    Family("linalg_vector_norm var std", kernel="pool", onnx="ReduceL2"),
    Family("logsumexp", kernel="pool", onnx="ReduceLogSumExp"),
    Family("argmax", kernel="pool", onnx="ArgMax"),
    Family("argmin", kernel="pool", onnx="ArgMin"),
    Family("topk sort argsort kthvalue", kernel="pool", onnx="TopK"),
    # -- resizing -------------------------------------------------------------------------------
    Family("upsample_nearest1d upsample_linear1d", "nc~->nc~", "pool", "Resize Upsample"),
    Family(
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d",
        "nc~~->nc~~",
        "pool",
        "Resize",
    ),
    Family("upsample_nearest3d upsample_trilinear3d", "nc~~~->nc~~~", "pool", "Resize"),
    Family("grid_sampler", "nc~~,nHWT->nc~~", "pool", "GridSample"),
    # -- views ----------------------------------------------------------------------------------
    Family("view reshape _unsafe_view view_as reshape_as flatten unflatten", "", "free", "Reshape"),
    Family("squeeze", kernel="free"),
    Family("unsqueeze", kernel="free"),
    Family("getitem", kernel="free"),
    Family("contiguous clone detach alias lift_fresh_copy", SAME, "free", "Identity"),
    Family("to _to_copy type_as float", SAME, "free", "Cast"),
    Family("enter leave", kernel="free"),  # of states whose width is open: coupling/states.py
    Family("dropout feature_dropout alpha_dropout", SAME, "free", "Dropout", training_flag=2),
    Family("", kernel="free", onnx="Flatten Shape Constant ConstantOfShape Size Range"),
    # -- moves ----------------------------------------------------------------------------------
    Family("permute transpose t movedim numpy_T swapaxes", kernel="copy", onnx="Transpose"),
    Family("cat concat", kernel="copy", onnx="Concat"),
    Family("stack", kernel="copy"),
    Family("split_with_sizes unbind", kernel="copy", onnx="Split"),
    Family("pad constant_pad_nd", kernel="copy", onnx="Pad"),
    Family("reflection_pad1d replication_pad1d", "nc~->nc~", "copy", "Pad"),
    Family("reflection_pad2d replication_pad2d", "nc~~->nc~~", "copy", "Pad"),
    Family("expand", kernel="copy"),
    Family("repeat repeat_interleave", kernel="copy", onnx="Tile"),
    Family("pixel_shuffle", kernel="copy", onnx="DepthToSpace"),
    Family("pixel_unshuffle", kernel="copy", onnx="SpaceToDepth"),
    Family("channel_shuffle", "nCHW->nCHW", "copy", "Transpose"),
    Family("roll flip im2col col2im unfold", kernel="copy"),
    Family("slice narrow", kernel="copy", onnx="Slice", partial=True),
    Family("select index index_select", kernel="copy", onnx="Gather GatherND", partial=True),
    Family("embedding", "Ve,*->*e", "copy", "Gather", partial=True),
    Family("gather", kernel="copy", onnx="GatherElements", partial=True),
    Family("scatter index_put", kernel="copy", onnx="ScatterElements ScatterND"),
    # -- tensors made from nothing --------------------------------------------------------------
    Family("zeros ones full new_zeros new_ones new_full empty"),
    Family("arange linspace logspace eye tril_indices triu_indices scalar_tensor"),
    Family("rand randn hann_window"),
    # -- of ONNX alone --------------------------------------------------------------------------
    Family("", kernel="norm", onnx="LpNormalization"),
    Family("", onnx="QLinearAdd QuantizeLinear DequantizeLinear"),
)

#: By ATen name.
OPS = {name: family for family in FAMILIES for name in family.names.split()}

#: The kernel of each ONNX op that isn't computed.
ONNX_KERNELS = {
    name: family.kernel
    for family in FAMILIES
    if family.kernel != "computed"
    for name in family.onnx.split()
}

#: ONNX ops that read only as much as they write.
ONNX_PARTIAL = frozenset(n for family in FAMILIES if family.partial for n in family.onnx.split())


def family_of(name: str) -> Family | None:
    """The family of an ATen op, in place or not; None for one that nobody taught."""
    found = OPS.get(name)
    return found if found is not None or not name.endswith("_") else OPS.get(name[:-1])


def onnx_name(name: str) -> str:
    """What ONNX calls an ATen op."""
    family = family_of(name)
    if family is not None and family.onnx:
        return family.onnx.split()[0]
    return name[:1].upper() + name[1:]
