"""Whether a captured graph computes what its model does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from remixer.rewrite.inputs import Call, without_cache
from remixer.rewrite.slices import one_thread
from remixer.rewrite.tolerance import error_and_limit

_ADVICE = "What to try: keep what torch.export can't record, such as torch.func.grad, out of the model's forward"


@contextlib.contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or eval mode for a while.

    Normalisation by batch statistics stays in eval. Torch's fused path for `nn.TransformerEncoder` is off: it
    gives zeros, or nothing, for padded tokens, and no graph of it can be taken.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    before = [(module, module.training) for module in model.modules()]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        model.train(training)
        for module, _ in before:
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, flag in before:
            module.training = flag


def difference(model: nn.Module, graph_module: fx.GraphModule, call: Call) -> str | None:
    """Where the graph's outputs differ from the model's in eval, both with the same random seed, or None."""
    asked = without_cache(model, call)
    with torch.no_grad(), mode(model, False), one_thread():  # small runs: threads would wait for each other
        expected = pytree.tree_leaves(_seeded(model, asked))
        try:
            actual = pytree.tree_leaves(_seeded(graph_module, call))
        except Exception as error:  # a graph that was wrongly recorded may raise anything
            first = (str(error).splitlines() or [""])[0]
            return f"it raises {type(error).__name__}: {first[:200]}. {_ADVICE}"
    if len(actual) != len(expected):
        return f"{len(actual)} outputs for {len(expected)}"
    for index, (got, want) in enumerate(zip(actual, expected, strict=True)):
        told = _one_difference(got, want)
        if told is not None:
            return f"output {index} {told}"
    return None


def _seeded(module: nn.Module, call: Call) -> Any:
    args, kwargs = call
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return module(*args, **kwargs)


def _one_difference(got: Any, want: Any) -> str | None:
    if not isinstance(want, torch.Tensor):
        return None if not isinstance(got, torch.Tensor) and got == want else f"is {got!r}, not {want!r}"
    if not isinstance(got, torch.Tensor) or (got.shape, got.dtype) != (want.shape, want.dtype):
        return "has another shape or dtype"
    if isinstance(got, FakeTensor):
        return f"has no values. {_ADVICE}"
    if not want.is_floating_point():
        return None if torch.equal(got, want) else "has other values"
    error, limit = error_and_limit(got.nan_to_num(), want.nan_to_num())
    if error <= 10 * limit:  # through the whole depth of a model, rounding adds up
        return None
    return f"differs by {error:.3g}, allowed {10 * limit:.3g}"
