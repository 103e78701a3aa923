"""What a graph that came from a file may call: operators that compute on tensors and numbers, and nothing else.

Refused are those of torch's that read or write files, that take memory or indices as they are told to, and those of
layouts (sparse, nested, quantised) whose parts have to fit together in ways that only their makers check.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload

from remixer.export.typed import TypedError

_NAME = re.compile(r"(aten|prims|remixer|_c10d_functional|_c10d_functional_autograd)\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)")
# Words in names of aten's operators that are refused.
_REFUSED = frozenset(
    (
        *("from", "file", "save", "warn", "print", "seed", "set", "data", "resize", "out"),
        *("sparse", "nested", "jagged", "dense", "coalesce", "coalesced", "indices", "values", "row", "col", "crow"),
        *("ccol", "coo", "csr", "csc", "bsr", "bsc", "hspmm", "smm", "sspaddmm"),
        *("quant", "quantize", "quantized", "dequantize", "qparams", "q", "int4pack", "moving", "repr", "qscheme"),
        *("backward", "jvp", "grad", "gradients", "renorm", "overrideable", "record", "pin", "pinned", "masked_index"),
        *("mkldnn", "fbgemm", "miopen", "cudnn", "mps", "vulkan", "thnn", "slow"),
        *("lu", "ldl", "ormqr", "orgqr", "geqrf", "householder", "ctc", "segment", "unpool2d", "unpool3d", "bag"),
    )
)
# Operators of aten that come out of captures, though they are not for the public or have one of these words.
_ALSO = {
    "__and__",
    "__or__",
    "__xor__",
    "__lshift__",
    "__rshift__",
    "_adaptive_avg_pool2d",
    "_assert_async",
    "_assert_scalar",
    "_assert_tensor_metadata",
    "_convolution",
    "_fft_c2c",
    "_fft_c2r",
    "_fft_r2c",
    "_fused_rms_norm",
    "_log_softmax",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "_prelu_kernel",
    "_safe_softmax",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_shape_as_tensor",
    "_softmax",
    "_to_copy",
    "_trilinear",
    "_unsafe_index",
    "_unsafe_view",
    "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "_weight_norm",
    "_weight_norm_interface",
    "max_pool1d_with_indices",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "tril_indices",
    "triu_indices",
}
_PRIMS = {"broadcast_in_dim", "convert_element_type", "iota", "view_of"}
_COLLECTIVES = {
    "all_gather_into_tensor",
    "all_reduce",
    "all_to_all_single",
    "broadcast",
    "reduce_scatter_tensor",
    "wait_tensor",
}
_HIGHER_ORDER = ("cond", "wrap_with_autocast", "wrap_with_set_grad_enabled")
_ARITHMETIC = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "getitem"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_", "lshift", "rshift", "invert"),
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _ARITHMETIC},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt", "log2", "log", "exp")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum", "_sym_sqrt")
        if hasattr(torch, name)
    },
    **{f"builtins.{each.__name__}": each for each in (abs, bool, float, int, max, min, pow, round)},
}
_NAMES = {id(function): name for name, function in FUNCTIONS.items()}


def name_of(target: Any) -> str:
    """The name of what a node calls.

    Raises:
        TypedError: no graph in a file may call it.
    """
    if isinstance(target, HigherOrderOperator):
        name = f"higher_order.{target.name()}"
    elif isinstance(target, OpOverload):
        name = str(target)
    else:
        name = _NAMES.get(id(target), "")
    if not name or called(name) is not target:
        told = getattr(target, "__name__", None) or str(target)
        raise TypedError(f"{name or told!r} is none of the operators that a file may hold")
    return name


def called(name: Any) -> Callable[..., Any]:
    """What a name stands for.

    Raises:
        TypedError: nothing, or nothing that a graph in a file may call.
    """
    return _found(name if isinstance(name, str) else "")


@functools.lru_cache(maxsize=4096)
def _found(name: str) -> Callable[..., Any]:
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    higher = name.removeprefix("higher_order.")
    if higher != name and higher in _HIGHER_ORDER:
        found = getattr(torch.ops.higher_order, higher, None)
        if isinstance(found, HigherOrderOperator):
            return found
    if (parts := _NAME.fullmatch(name)) and _allowed(*parts.groups()):
        packet = getattr(getattr(torch.ops, parts[1]), parts[2], None)
        found = getattr(packet, parts[3], None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
        if isinstance(found, OpOverload) and str(found) == name and _computes(found):
            return found
    raise TypedError(f"{name!r:.100} is none of the operators that a file may hold, or not known to this torch")


def _allowed(namespace: str, name: str, overload: str) -> bool:
    if namespace == "aten":
        words = {*name.rstrip("_").split("_"), *overload.split("_")}
        return name in _ALSO or not (name.startswith("_") or words & _REFUSED)
    if namespace == "prims":
        return name in _PRIMS
    return namespace == "remixer" or name in _COLLECTIVES


def _computes(found: OpOverload) -> bool:
    """Whether it is one of torch's dispatcher: its operators for text, lists and files are not."""
    return bool(torch._C._dispatch_has_kernel(found.name()))
