"""Operators that a stranger's program may call: those that compute with tensors and sizes alone.

A program names its operators as text. What is allowed is listed here, by namespace and name;
whether an operator exists, and reads a tensor, is asked of torch's own registry.
"""

from __future__ import annotations

import re
from typing import Any

import torch

#: ATen operators that make tensors from numbers; all others must read one.
_FACTORIES = frozenset(
    "arange empty empty_permuted empty_strided eye full hann_window hamming_window kaiser_window "
    "blackman_window bartlett_window linspace logspace ones rand randint randn randperm "
    "scalar_tensor tril_indices triu_indices zeros sym_size sym_numel sym_stride "
    "sym_constrain_range sym_constrain_range_for_size _assert_scalar".split()
)

#: ATen operators that take storage apart, keep it from being freed or make tensors whose parts
#: nobody checked; and such as reach beyond tensors.
_NEVER = re.compile(
    r"from_file|set_|set_data|resize.*|record_stream|pin_memory|_?pin_memory|data|retain_grad"
    r"|.*unsafe.*(coo|csr|csc|bsr|bsc|compressed).*|sparse_.*|to_sparse.*|to_mkldnn.*|mkldnn_.*"
    r"|.*storage.*|.*file.*|.*save.*|.*load.*|.*print.*|.*quantize.*|q_.*|fbgemm.*"
)

#: Private ATen operators that torch.export and its decompositions write.
_PRIVATE = re.compile(
    r"_to_copy|_(log_)?softmax|_unsafe_(view|index|index_put|masked_index)|_native_batch_norm_.*"
    r"|_assert_(tensor_metadata|async|scalar)|_scaled_dot_product_.*|_(fused|efficient|flash)_.*"
    r"|_adaptive_avg_pool[123]d|_weight_norm(_interface)?|_upsample_.*|_convolution(_mode)?"
    r"|_fft_.*|_trilinear|_native_multi_head_attention|_reshape_alias|_embedding_bag.*"
    r"|_local_scalar_dense|_cdist_forward|_pdist_forward|_thnn_fused_.*|_conj|_neg_view"
    r"|_linalg_.*|_prelu_kernel|_stack|_cat|_unique2?|_transformer_encoder_layer_fwd"
    r"|_shape_as_tensor|_is_all_true|_is_any_true|_euclidean_dist|_amp_.*|_addmm_activation"
)

#: Operators of sizes.
_NUMBERS = {
    "_operator": frozenset(
        "add sub mul floordiv truediv mod neg pow eq ne lt le gt ge and_ or_ not_ getitem "
        "abs pos lshift rshift index".split()
    ),
    "math": frozenset("ceil floor trunc sqrt log log2 exp pow".split()),
    "torch": frozenset(
        "sym_int sym_float sym_max sym_min sym_not sym_ite sym_sum sym_fresh_size sym_sqrt "
        "_check _check_is_size _sym_sqrt _sym_floor _sym_ceil".split()
    ),
    "builtins": frozenset("max min round float int bool abs".split()),
}

_TORCHVISION = frozenset("nms roi_align roi_pool ps_roi_align ps_roi_pool deform_conv2d".split())
_HIGHER_ORDER = frozenset("cond wrap_with_set_grad_enabled wrap_with_autocast".split())
_DECOMPOSED = re.compile(r"(de)?quantize_per_(tensor|channel|token)(_dynamic)?|choose_qparams_.*")

_OPERATOR = re.compile(r"torch\.ops\.([a-z_]+)\.(?!__)(\w+)(?:\.(\w+))?")
_FUNCTION = re.compile(r"(_operator|math|torch|builtins)\.(\w+)")


def is_allowed(target: str) -> bool:
    """Whether a program may call the operator `target` ("torch.ops.aten.relu.default")."""
    if function := _FUNCTION.fullmatch(target):
        return function[2] in _NUMBERS[function[1]]
    match = _OPERATOR.fullmatch(target)
    if match is None:
        return False
    namespace, name, overload = match[1], match[2], match[3]
    if namespace == "higher_order":
        return name in _HIGHER_ORDER and overload is None
    if namespace == "torchvision":
        return name in _TORCHVISION
    if namespace == "quantized_decomposed":
        return bool(_DECOMPOSED.fullmatch(name))
    return namespace == "aten" and _aten(name, overload)


def _aten(name: str, overload: str | None) -> bool:
    plain = name.removesuffix("_")
    if _NEVER.fullmatch(plain) or _NEVER.fullmatch(name):
        return False
    if name.startswith("_") and not _PRIVATE.fullmatch(name):
        return False
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    wanted = "" if overload in (None, "default") else overload
    found = [s for s in schemas if s.overload_name == wanted]
    return bool(found) and (plain in _FACTORIES or any(map(_reads_tensor, found)))


def _reads_tensor(schema: Any) -> bool:
    return any("Tensor" in str(argument.type) for argument in schema.arguments)
