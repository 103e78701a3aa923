"""What torch.onnx leaves behind."""

import onnx_ir as ir

from remixer.export.onnx.tidy import tidy

# In the whole, t is what x has; in the function, where it is what y has, m is a half of that.
MODEL = """
<ir_version: 9, opset_import: ["" : 20, "own" : 1]>
graph (float[b, t] x) => (int64[1] first, int64[1] second, int64[1] third, int64[2] both) {
    y = Sigmoid(x)
    first = Shape<start: int = 1, end: int = 2>(y)
    second, third = own.Half(y)
    both = Shape(y)
}
<domain: "own", opset_import: ["" : 20]>
Half (given) => (size, half_size) {
    half = AveragePool<kernel_shape: ints = [2], strides: ints = [2]>(given)
    size = Shape<start: int = 1, end: int = 2>(given)
    half_size = Shape<start: int = 1, end: int = 2>(half)
}
"""


def measured(size):
    """The tensor that a size is read from."""
    while size.producer().op_type == "Identity":
        size = size.producer().inputs[0]
    return size.producer().inputs[0]


def test_sizes_are_read_from_inputs_and_those_of_functions_mean_what_they_meant():
    model = ir.from_onnx_text(MODEL)
    for node in model.graph:
        if node.op_type == "Sigmoid":
            node.outputs[0].shape = ir.Shape(["b", "t"])
    (function,) = model.functions.values()
    for node in function:
        if node.op_type == "AveragePool":
            node.outputs[0].shape = ir.Shape(["b", "t"])
    tidy(model)
    first, second, third, both = (measured(output) for output in model.graph.outputs)
    assert first is second is model.graph.inputs[0]
    assert third.producer().op_type == "AveragePool"
    assert both.producer().op_type == "Sigmoid"
    assert third.shape is None or "t" not in map(str, third.shape)  # onnxruntime would take it for what x has
