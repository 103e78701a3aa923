"""What `remix` gives back: an ordinary torch.fx graph module that knows its report."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from remixer.mixers.eager import plain_inference
from remixer.mixers.memory_pool import empty, pooled_memory
from remixer.pickled import PickledGraph
from remixer.rewrite.devices import move_constants
from remixer.rewrite.dropout import Dropout
from remixer.rewrite.modules import device_of, keep_persistence
from remixer.rewrite.token_wise import by_parts

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from remixer.distillation.transfer_report import TransferReport
    from remixer.passes.original import Original
    from remixer.report import Report
    from remixer.rewrite.program import Program

# A batch of fewer tokens is run in one piece; of features, about so many make a token.
LONG, FEATURES = 2**14, 64
# What a module consists of, its graph and its hooks aside.
KEPT = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")


class Remixed(fx.GraphModule):
    """A rewritten model. It has the call signature and output structure of the model it was made from.

    Weights that were kept have their old names; mixers hang where the attention was. It trains, saves its
    state_dict, moves between devices, and can be copied, pickled, compiled and exported like any module. Long inputs
    go over what lies between mixers in parts, on CPUs and without gradients: see `rewrite.token_wise`.
    """

    _by_parts: Callable[..., Any] | None

    @property
    def report(self) -> Report:
        """What was done, per site and per pass."""
        report: Report = self.meta["report"]
        return report

    @property
    def original(self) -> Program | None:
        """The model it was made from, in eval, its attentions as sites of the exact mixer; None if nobody kept it."""
        original: Original | None = self.meta.get("original")
        return None if original is None else original.program

    @property
    def transfers(self) -> tuple[TransferReport, ...]:
        """What it has learned since, see `remixer.transfer`."""
        return self.meta.get("transfers", ())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it.

        Raises:
            ValueError: an input has another size than the graph is fixed to.
        """
        fixed = self.meta["program"]["static"]
        if fixed and not torch.compiler.is_compiling():
            given = inspect.signature(self.forward).bind(*args, **kwargs).arguments
            for one in fixed:
                value = given.get(one.input)
                if isinstance(value, torch.Tensor) and value.dim() > one.dim and value.shape[one.dim] != one.size:
                    raise ValueError(f"got {value.shape[one.dim]} in dim {one.dim} of {one.input}. {one}")
        in_parts = self._in_parts(*args, *kwargs.values())
        if in_parts is None:
            return super().__call__(*args, **kwargs)
        with pooled_memory():
            return in_parts(self, *args, **kwargs)

    def recompile(self) -> fx.graph.PythonCode:
        """See torch.fx.GraphModule.recompile."""
        self.__dict__.pop("_by_parts", None)
        return super().recompile()

    def _in_parts(self, *inputs: Any) -> Callable[..., Any] | None:
        """What runs long inputs, if these are, and nothing looks at what it leaves out."""
        tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
        if not plain_inference(*tensors):  # first: a comparison of sizes would bind a graph that is traced to them
            return None
        tokens = (each.numel() // (FEATURES if each.is_floating_point() else 1) for each in tensors)
        if max(tokens, default=0) < LONG:
            return None
        dropping = any(module.training for module in self.modules() if isinstance(module, Dropout))
        if dropping or self._forward_hooks or self._forward_pre_hooks:
            return None
        if "_by_parts" not in self.__dict__:
            self._by_parts = by_parts(self, empty)
        return self._by_parts

    def __reduce__(self) -> tuple[Any, ...]:
        """What a pickle or `torch.save` holds: all but the original, and the values recorded of the graph's nodes."""
        root = nn.Module()
        root.__dict__.update({name: self.__dict__[name] for name in KEPT})
        return _unpickled, (root, PickledGraph.of(self.graph), self.meta)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        device, dtypes = device_of(self), _dtypes(self)
        super()._apply(fn, recurse)
        if device_of(self) != device:
            move_constants(self, device_of(self))
        if any(now.itemsize < 4 <= before.itemsize for before, now in zip(dtypes, _dtypes(self), strict=True)):
            warnings.warn(
                "this graph was captured in higher precision and casts as it did then: in lower precision, what the "
                "original computes in float32 on purpose, such as norms, no longer is, and dtypes may clash. What to "
                "do: cast the original, then remix it",
                stacklevel=3,
            )
        return self


def _unpickled(root: nn.Module, graph: PickledGraph, meta: dict[str, Any]) -> Remixed:
    remixed = Remixed(root, graph.graph())
    remixed.meta = meta | {"unpickled": True}
    keep_persistence(root, remixed)
    return remixed


def _dtypes(module: nn.Module) -> list[torch.dtype]:
    return [parameter.dtype for parameter in module.parameters()]


def own_weights(module: fx.GraphModule) -> None:
    """Give a module its own copy of every parameter and buffer, and of every module that it calls; tied ones stay tied.

    Mixers and dropouts have a mode, which is not to change with that of another model.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    for path in {str(node.target) for node in module.graph.find_nodes(op="call_module")}:
        module.set_submodule(path, copy.deepcopy(module.get_submodule(path), dict(shared)))
    copies: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                if id(parameter) not in copies:
                    own = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
                    copies[id(parameter)] = own
                owner._parameters[name] = copies[id(parameter)]  # type: ignore[assignment]
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                if id(buffer) not in copies:
                    copies[id(buffer)] = buffer.detach().clone()
                owner._buffers[name] = copies[id(buffer)]
