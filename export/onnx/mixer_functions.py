"""Mixers as functions of ONNX: those that are alike go through torch.export and torch.onnx once, whatever the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from remixer.export.errors import ExportError
from remixer.export.onnx.alike import alike
from remixer.export.onnx.convert import exported, to_graph
from remixer.export.onnx.islands import mark_island
from remixer.export.onnx.longer_operands import longer_operands
from remixer.export.onnx.lowered_toeplitz import LoweredToeplitz
from remixer.mixers.base import Mixer
from remixer.passes.streamed_site import AtOnce, Step
from remixer.rewrite.inputs import Call, tensors_in
from remixer.rewrite.program import expression

DOMAIN = "remixer.mixers"
_MIXERS = (Mixer, LoweredToeplitz, AtOnce, Step)
_Size = int | torch.SymInt


class Operands:
    """How a mixer is called: its tensors, the shape of the call around them, and which dimensions differ.

    Args:
        call: arguments of the mixer.
        other: those of a call of another batch and length; or the same in symbols.
    """

    def __init__(self, call: Call, other: Call) -> None:
        leaves, self.structure = pytree.tree_flatten(call)
        self.constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        self.tensors = [torch.zeros_like(leaf, memory_format=torch.contiguous_format) for leaf in tensors_in(call)]
        pairs = zip(self.tensors, tensors_in(other), strict=True)
        self.sizes = [tuple(map(_fixed, x.shape, y.shape)) for x, y in pairs]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Operands):
            return NotImplemented
        mine, theirs = (
            (each.structure, each.constants, each.sizes, [tensor.dtype for tensor in each.tensors])
            for each in (self, other)
        )
        return mine == theirs

    __hash__ = None  # type: ignore[assignment]

    def filled(self, tensors: Sequence[Tensor]) -> Call:
        """The call with these tensors."""
        given = iter(tensors)
        leaves = [next(given) if constant is None else constant[0] for constant in self.constants]
        call: Call = pytree.tree_unflatten(leaves, self.structure)
        return call


class _OfWeights(nn.Module):
    """A module as a function of its operands and its weights, which are no longer its own.

    Args:
        module: whose code is run; it is not registered as a child.
        operands: how it is called.
    """

    def __init__(self, module: nn.Module, operands: Operands) -> None:
        super().__init__()
        self.function = (module,)
        self.operands = operands
        # Each place once: where a module is found by two paths, torch would put back what it put there itself.
        order = {id(weight): place for place, weight in enumerate(_weights_of(module).values())}
        self.places = {
            f"{path}.{name}".lstrip("."): order[id(weight)]
            for path, part in module.named_modules()
            for name, weight in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        }

    def forward(self, *tensors: Tensor) -> Any:
        """What the module gives: operands first, then weights, in the order of _weights_of."""
        count = len(self.operands.tensors)
        args, kwargs = self.operands.filled(tensors[:count])
        weights = {path: tensors[count + place] for path, place in self.places.items()}
        return torch.func.functional_call(self.function[0], weights, args, kwargs, tie_weights=False)


@dataclass(frozen=True)
class MixerFunction:
    """One mixer in ONNX, and all that are like it.

    Attributes:
        name: of the function, in DOMAIN.
        module: the first of them.
        operands: how it is called.
        weights: names of its parameters and buffers: the function takes them behind the operands.
        source: what torch.export made of it.
        body: what torch.onnx made of that, an onnx_ir.Function.
    """

    name: str
    module: nn.Module
    operands: Operands
    weights: tuple[str, ...]
    source: ExportedProgram
    body: Any

    @classmethod
    def of(cls, name: str, module: nn.Module, operands: Operands) -> MixerFunction:
        """Through torch.export and torch.onnx."""
        named = _weights_of(module)
        flat = _OfWeights(module, operands)
        dynamic: list[Any] = [
            {dim: Dim.AUTO if size is None else Dim.STATIC for dim, size in enumerate(sizes)}
            for sizes in operands.sizes
        ]
        dynamic += [dict.fromkeys(range(weight.dim()), Dim.STATIC) for weight in named.values()]
        source = exported(flat, ((*operands.tensors, *named.values()), {}), {"tensors": tuple(dynamic)})
        inputs = [f"operand_{place}" for place in range(len(operands.tensors))]
        inputs += [f"weight_{place}" for place in range(len(named))]
        count = len(source.graph_signature.user_outputs)
        graph = to_graph(source, inputs, [f"output_{place}" for place in range(count)])
        mark_island(graph, module)
        return cls(name, module, operands, tuple(named), source, _body(graph, name))

    def call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A call of the function with the weights of a module that is like its own, in a graph to be exported."""
        given = tensors_in((args, kwargs))
        named = _weights_of(module)
        outputs = self._outputs()
        made = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{self.name}",
            [*given, *(named[name] for name in self.weights)],
            dtypes=[value.dtype for value in outputs],
            shapes=self._shapes(given, outputs),
            version=1,
        )
        return made[0] if self._single() else tuple(made)

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the function gives for operands and weights, in torch."""
        with torch.no_grad():
            return tensors_in(_OfWeights(self.module, self.operands)(*tensors))

    def _single(self) -> bool:
        spec = self.source.call_spec.out_spec
        return spec is not None and spec.is_leaf()

    def _outputs(self) -> list[Tensor]:
        (output,) = self.source.graph.find_nodes(op="output")
        return [node.meta["val"] for node in output.args[0]]

    def _shapes(self, given: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[list[_Size]]:
        """The sizes of what it gives, from those that it is given."""
        known: dict[sympy.Symbol, _Size] = {}
        own = {node.name: node for node in self.source.graph.find_nodes(op="placeholder")}
        placeholders = [own[str(name)] for name in self.source.graph_signature.user_inputs]  # others are constants
        for node, tensor in zip(placeholders, given, strict=False):
            for dim, (known_as, size) in enumerate(zip(node.meta["val"].shape, tensor.shape, strict=True)):
                found = expression(known_as)
                if isinstance(found, sympy.Symbol):
                    known.setdefault(found, size)
                elif found.is_Integer and not _is(size, int(found)):
                    raise ExportError(
                        f"cannot export {type(self.module).__name__}: torch.export makes size {dim} of "
                        f"{node.name} always {found}, which is {size} in the whole model"
                    )
        return [[_evaluated(expression(size), known) for size in value.shape] for value in outputs]


class Called(nn.Module):
    """Stands where a mixer was.

    Args:
        module: the mixer, whose weights are given to the function.
        function: what it and its like became.
    """

    def __init__(self, module: nn.Module, function: MixerFunction) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See MixerFunction.call."""
        return self.function.call(self.module, args, kwargs)


def with_functions(module: fx.GraphModule, call: Call, other: Call | None = None) -> list[MixerFunction]:
    """Put a call of a function in the place of every mixer of a graph module, in place.

    Args:
        module: in eval mode, of lowered mixers, which are left as they are.
        call: example inputs.
        other: of another batch and length: where they differ, sizes are free. If there is none, the graph's nodes say
            which are.

    Returns:
        The functions, one for each kind.

    Raises:
        ExportError: torch.export or torch.onnx refuses a mixer.
    """
    first = _calls(module, call)
    second = _recorded(module) if other is None else _calls(module, other)
    if other is None:
        first = {path: longer_operands(each, second[path]) for path, each in first.items()}
    functions: list[MixerFunction] = []
    for path in first:
        mixer, operands = module.get_submodule(path), Operands(first[path], second[path])
        like = (each for each in functions if each.operands == operands and alike(each.module, mixer))
        function = next(like, None)
        if function is None:
            function = MixerFunction.of(f"mixer_{len(functions)}", mixer, operands)
            functions.append(function)
        module.set_submodule(path, Called(mixer, function))
    return functions


def is_call(node: fx.Node) -> bool:
    """Whether a node of what torch.export made calls a function."""
    return str(node.target) == "onnx_symbolic._symbolic_multi_out.default"


def _weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers, each once, by the first of its names."""
    return dict((*module.named_parameters(), *module.named_buffers()))


def _calls(module: fx.GraphModule, call: Call) -> dict[str, Call]:
    """What each mixer is given when the whole is called, by its path."""
    found: dict[str, Call] = {}
    handles = []
    for path in dict.fromkeys(str(node.target) for node in module.graph.find_nodes(op="call_module")):
        if isinstance(mixer := module.get_submodule(path), _MIXERS):

            def keep(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                found[path] = (args, kwargs)

            handles.append(mixer.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        with torch.no_grad():
            module(*call[0], **call[1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _recorded(module: fx.GraphModule) -> dict[str, Call]:
    """What each mixer is given, in symbols."""
    return {
        str(node.target): map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
        for node in module.graph.find_nodes(op="call_module")
        if isinstance(module.get_submodule(str(node.target)), _MIXERS)
    }


def _fixed(size: int, other: _Size) -> int | None:
    """A size that is always the same, or None."""
    return size if isinstance(other, int) and size == other else None


def _is(size: _Size, number: int) -> bool:
    """Whether a size is a number: as far as symbols can tell. What is wrong then shows where the file is tried."""
    if isinstance(size, int) or isinstance(expression(size), sympy.Symbol):
        return bool(statically_known_true(size == number))
    return bool(size.node.hint == number)  # such as (4 (T B // B)) // T, of a view that reckoned with two batches


def _evaluated(size: sympy.Expr, known: dict[sympy.Symbol, _Size]) -> _Size:
    if size.is_Integer:
        return int(size)
    value: _Size = sympy_interp(PythonReferenceAnalysis, known, size)
    return value


def _body(model: Any, name: str) -> Any:
    """A model as a function: functions have no initializers, but constants."""
    import onnx_ir as ir

    graph = model.graph
    for value in list(graph.initializers.values()):
        attribute = ir.AttrTensor("value", value.const_value)
        constant = ir.Node("", "Constant", [], [attribute], num_outputs=1)
        constant.outputs[0].name, constant.outputs[0].type = value.name, value.type
        constant.outputs[0].shape = value.shape
        ir.convenience.replace_all_uses_with(value, constant.outputs[0])
        graph.insert_before(graph[0], constant)
    graph.initializers.clear()
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])
