"""Weights in eight bits for the CPU, by onnxruntime's own quantiser; activations are rounded as they come.

Measured on MiniLM: with one scale per output channel a sentence's embedding keeps a cosine of 0.99 to the original's,
with one scale per weight as little as 0.72. Signed weights are faster than unsigned ones (119 and 136 ms for 500
tokens on one thread). Seven of the eight bits are used, since processors without VNNI add pairs of products in sixteen
bits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from remixer.export.onnx.islands import in_island
from remixer.export.onnx.write import too_large, write

PRODUCTS = ["MatMul", "Gemm"]


def quantise(model: Any, path: Path) -> None:
    """Write an onnx_ir.Model to a file with weights of products in int8, one scale per output channel.

    Only products with a weight on the right are quantised: products of two activations, such as attention scores, and
    transforms, whose matrices are on the left, stay in float32, and so does all of a Toeplitz mixer.

    Args:
        model: is not changed.
        path: to write to. Where the float32 weights are too many for one file, the quantised ones go to `path` with
            ".data" behind it too.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kept = [node.name for node in model.graph if node.op_type in PRODUCTS and in_island(node)]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "float32.onnx"
        write(_transposed(model), source)
        prepared = onnx.load(source, load_external_data=False)
        # The quantiser infers shapes itself, and stumbles over those that what it has changed doesn't have any more;
        # types it needs, since behind onnxruntime's own operators it infers none.
        for value in prepared.graph.value_info:
            value.type.tensor_type.ClearField("shape")
        onnx.helper.set_model_props(prepared, {"onnx.quant.pre_process": "onnxruntime.quant"})  # or it warns
        onnx.save(prepared, source)
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=PRODUCTS,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            # A Gemm becomes a MatMul of this name before it is quantised.
            nodes_to_exclude=[*kept, *(f"{name}_MatMul" for name in kept)],
            use_external_data_format=too_large(model),
            extra_options={"MatMulConstBOnly": True},
        )


def _transposed(model: Any) -> Any:
    """A copy in which no Gemm transposes its weight.

    The quantiser would do so in place, once for each Gemm, and give what two of them share another meaning.
    """
    import numpy as np
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    copy = model.clone()
    made: dict[Any, Any] = {}
    for node in copy.graph:
        flag = node.attributes.get("transB")
        if node.op_type != "Gemm" or flag is None or not flag.as_int() or not node.inputs[1].is_initializer():
            continue
        weight = node.inputs[1]
        if weight not in made:
            turned = ir.tensor(np.ascontiguousarray(weight.const_value.numpy().T), name=f"{weight.name}_transposed")
            shape = ir.Shape(turned.shape.numpy())
            made[weight] = ir.Value(name=turned.name, shape=shape, type=ir.TensorType(turned.dtype), const_value=turned)
            copy.graph.register_initializer(made[weight])
        node.replace_input_with(1, made[weight])
        node.attributes["transB"] = ir.AttrInt64("transB", 0)
    common.RemoveUnusedNodesPass()(copy)
    return copy
