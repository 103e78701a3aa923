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

_LARGE = 10**7  # parameters from which on a run is worth all threads
_ADVICE = "What to try: keep what torch.export can't record, such as torch.func.grad, out of the model's forward"


class NotRunError(Exception):
    """The model itself raises on an input."""


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
    """Where the graph's outputs differ from the model's in eval, both with the same random seed, or None.

    Raises:
        NotRunError: the model raises on this call.
    """
    expected = pytree.tree_leaves(run(model, call))
    with _in_eval(model):
        try:
            actual = pytree.tree_leaves(_seeded(graph_module, call))
        except Exception as error:  # a graph that was wrongly recorded may raise anything
            return f"it raises {first_line(error)}. {_ADVICE}"
    if len(actual) != len(expected):
        return f"{len(actual)} outputs for {len(expected)}"
    for index, (got, want) in enumerate(zip(actual, expected, strict=True)):
        told = _one_difference(got, want)
        if told is not None:
            return f"output {index} {told}"
    return None


def run(model: nn.Module, call: Call) -> Any:
    """What a model gives in eval, without a cache, from a fixed random seed.

    Raises:
        NotRunError: the model raises; the message is what.
    """
    with _in_eval(model):
        try:
            return _seeded(model, without_cache(model, call))
        except Exception as error:  # the model's own code may raise anything
            raise NotRunError(first_line(error)) from error


@contextlib.contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    large = sum(parameter.numel() for parameter in model.parameters()) > _LARGE
    threads = contextlib.nullcontext() if large else one_thread()  # in small runs threads would wait for each other
    with torch.no_grad(), mode(model, False), threads:
        yield


def first_line(error: Exception) -> str:
    """The kind of an error, and the first line of its message, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


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
