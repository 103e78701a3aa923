"""Where onnxruntime puts each node of a graph when it has the CUDA provider, and what it copies in between.

This follows what onnxruntime 1.31 does: a node runs on the GPU if there is a kernel for its operator, version and
dtypes; but nodes that compute with sizes alone (what `Shape` gives, which lies on the CPU, numbers in the file and
inputs) stay on the CPU, on purpose: they are a few numbers each, that kernels such as Reshape read there. What is
computed on one side and read on the other is copied, and nothing can be done meanwhile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from remixer.export.errors import ExportError
from remixer.export.onnx.cuda_kernels import CudaKernels, operator

SIZES = ("Shape", "Size")  # CUDA kernels whose outputs lie on the CPU
SMALL = 100  # elements of a constant that doesn't keep a node on the GPU
HALF = ("float16", "bfloat16")  # dtypes that do


class Copy(NamedTuple):
    """A value that is computed on one side and read on the other.

    Attributes:
        value: its name.
        to_host: whether it goes from the GPU to the CPU.
        reader: name of a node that reads it.
    """

    value: str
    to_host: bool
    reader: str


class Placement(NamedTuple):
    """What goes where.

    Attributes:
        missing: of each node without a CUDA kernel, a sentence that says so.
        host: names of the nodes that compute with sizes on the CPU.
        copies: one for each value that goes from one side to the other.
    """

    missing: list[str]
    host: list[str]
    copies: list[Copy]


def place(model: Any, kernels: CudaKernels) -> Placement:
    """Where the nodes of an onnx_ir.Model go.

    Raises:
        ExportError: the dtypes of a node's inputs aren't known.
    """
    missing: list[str] = []
    host: list[str] = []
    on_host: set[Any] = set()  # values
    host_nodes: set[Any] = set()
    inputs = set(model.graph.inputs)
    for node in model.graph:
        name = operator(node.domain, node.op_type)
        if name == "Constant":
            continue
        wrong = _missing(node, name, model.opset_imports, kernels)
        missing += [wrong] if wrong else []
        missing += _missing_inside(node, model.opset_imports, kernels)
        sizes_only = not wrong and name not in SIZES and _computes_with_sizes(node, name, on_host, inputs, kernels)
        if sizes_only:
            host.append(node.name)
        if sizes_only or wrong:
            host_nodes.add(node)
        if sizes_only or wrong or name in SIZES:
            on_host.update(node.outputs)
    return Placement(missing, host, _copies(model, on_host, host_nodes, inputs, kernels))


def _missing(node: Any, name: str, opsets: Any, kernels: CudaKernels) -> str | None:
    """A sentence if there is no kernel."""
    where = f"{name} {node.name}"
    known = kernels.kernels.get(name)
    if not known:
        return f"{where}: CUDA has no kernel for this operator"
    schema = _schema(node, opsets)
    if schema is None:
        return None  # an operator of onnxruntime's own, of one version
    version = schema.since_version
    known = [each for each in known if each.runs(version)]
    if not known:
        return f"{where}: CUDA has no kernel for version {version} of this operator"
    types = _types(node, schema)
    if any(all(types[each] in some for each, some in kernel.types.items() if each in types) for kernel in known):
        return None
    told = ", ".join(sorted(set(types.values())))
    return f"{where}: CUDA has no kernel for this operator on {told}"


def _missing_inside(node: Any, opsets: Any, kernels: CudaKernels) -> list[str]:
    """The same for the graphs that a node has, as of loops and branches."""
    found = []
    for attribute in node.attributes.values():
        for inner in getattr(attribute.value, "all_nodes", list)() if "GRAPH" in str(attribute.type) else ():
            name = operator(inner.domain, inner.op_type)
            wrong = None if name == "Constant" else _missing(inner, name, opsets, kernels)
            found += [wrong] if wrong else []
    return found


def _schema(node: Any, opsets: Any) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return None


def _types(node: Any, schema: Any) -> dict[str, str]:
    """The dtypes of a node's values by type parameter and by name of an input or output."""
    found: dict[str, str] = {}
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is None or not formal:
                continue
            if value.dtype is None:
                raise ExportError(
                    f"cannot tell where {node.op_type} {node.name} would run: the dtype of {value.name} is not in the "
                    "file. What to do: run onnx.shape_inference on it first"
                )
            parameter = formal[min(index, len(formal) - 1)]
            dtype = str(value.dtype).lower()
            found[parameter.type_str] = found[parameter.name] = dtype
    return found


def _computes_with_sizes(node: Any, name: str, on_host: set[Any], inputs: set[Any], kernels: CudaKernels) -> bool:
    """Whether all that a node reads lies on the CPU or is small, so that onnxruntime leaves it there."""
    reads = kernels.host_inputs.get(name, frozenset())
    if not any(value in on_host for value in node.inputs):
        return False
    for index, value in enumerate(node.inputs):
        if value is None or str(value.dtype).lower() in HALF:
            return False
        if value in inputs or _is_small(value):
            continue
        if value not in on_host or index in reads:
            return False
    return True


def _is_small(value: Any) -> bool:
    return _is_constant(value) and value.shape is not None and _elements(value.shape) <= SMALL


def _is_constant(value: Any) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant" and not producer.domain)


def _elements(shape: Any) -> int:
    found = 1
    for size in shape:
        found *= size if isinstance(size, int) else SMALL + 1
    return found


def _copies(model: Any, on_host: set[Any], host_nodes: set[Any], inputs: set[Any], kernels: CudaKernels) -> list[Copy]:
    found: dict[tuple[str, bool], Copy] = {}
    sides: dict[Any, set[bool]] = {value: set() for value in inputs}
    for node in model.graph:
        name = operator(node.domain, node.op_type)
        reads = kernels.host_inputs.get(name, frozenset())
        for index, value in enumerate(node.inputs):
            if value is None or _is_constant(value) or name in SIZES:
                continue
            here = node in host_nodes or index in reads
            if value in inputs:
                sides[value].add(here)
                if len(sides[value]) == 2:  # read on both sides
                    found.setdefault((value.name, here), Copy(value.name, here, node.name))
            elif here != (value in on_host):
                found.setdefault((value.name, here), Copy(value.name, here, node.name))
    return list(found.values())
