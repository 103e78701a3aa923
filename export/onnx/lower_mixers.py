"""Mixers whose own operators no ONNX provider runs well, replaced by the same numbers in operators that all run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from remixer.export.errors import ExportError
from remixer.export.onnx.cached_toeplitz import CachedToeplitz
from remixer.export.onnx.lowered_long_short import LoweredLongShort
from remixer.export.onnx.lowered_toeplitz import LoweredToeplitz
from remixer.mixers.base import Mixer
from remixer.mixers.frequency_toeplitz import FrequencyToeplitzMixer
from remixer.mixers.long_short.mixer import LongShortMixer
from remixer.mixers.toeplitz import ToeplitzMixer
from remixer.rewrite.program import Program


def lower_mixers(program: Program, *, steps: bool = False) -> Program:
    """The program with every mixer in a form that ONNX can take; weights are shared, nothing given is changed.

    Args:
        program: with mixers.
        steps: whether they are to go token by token.

    Raises:
        ExportError: a mixer has no such form.
    """
    lowered = program.copy()
    module = lowered.graph_module
    for node in module.graph.find_nodes(op="call_module"):
        mixer = module.get_submodule(str(node.target))
        if isinstance(mixer, Mixer):
            lower = (_STEPPING if steps else _LOWERED).get(type(mixer))
            module.set_submodule(str(node.target), mixer if lower is None else lower(mixer, node, lowered))
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default  # files have no strides, and nothing says which a mixer gives
    module.recompile()
    module.eval()
    return lowered


def _toeplitz(mixer: Mixer, node: fx.Node, program: Program) -> nn.Module:
    assert isinstance(mixer, ToeplitzMixer)
    return LoweredToeplitz(mixer, _fixed_length(node))


def _frequency_toeplitz(mixer: Mixer, node: fx.Node, program: Program) -> nn.Module:
    assert isinstance(mixer, FrequencyToeplitzMixer)
    tokens = _fixed_length(node)
    if tokens is None:
        raise ExportError(
            f"cannot export {node.target} to ONNX: the coefficients of 'frequency_toeplitz' at each length take a "
            "transform of just that length, which no ONNX operator gives with enough digits. Fix the length of the "
            "captured inputs, or replace this attention by 'toeplitz'"
        )
    return LoweredToeplitz(mixer, tokens)


def _long_short(mixer: Mixer, node: fx.Node, program: Program) -> nn.Module:
    assert isinstance(mixer, LongShortMixer)
    return LoweredLongShort.of(mixer)


def _fixed_length(node: fx.Node) -> int | None:
    """How many tokens a mixer sees, or None if that differs from run to run."""
    value = node.meta.get("val")
    tokens = value.shape[2] if isinstance(value, torch.Tensor) else None
    return tokens if isinstance(tokens, int) else None


_LOWERED: dict[type[Mixer], Callable[[Mixer, fx.Node, Program], nn.Module]] = {
    ToeplitzMixer: _toeplitz,
    FrequencyToeplitzMixer: _frequency_toeplitz,
    LongShortMixer: _long_short,
}


def _cached_toeplitz(mixer: Mixer, node: fx.Node, program: Program) -> nn.Module:
    assert isinstance(mixer, ToeplitzMixer)
    return CachedToeplitz.of(mixer)


def _stepping_long_short(mixer: Mixer, node: fx.Node, program: Program) -> nn.Module:
    assert isinstance(mixer, LongShortMixer)
    if mixer.retrieve:
        raise ExportError(
            f"cannot export {node.target} token by token: with retrieve={mixer.retrieve} it takes tokens in one by "
            "one, which the graph of a prompt can't. Replace this attention by a LongShort with retrieve=0"
        )
    return LoweredLongShort.of(mixer)


def _no_steps(mixer: Mixer, node: fx.Node, program: Program) -> nn.Module:
    raise ExportError(
        f"cannot export {node.target} token by token: the coefficients of 'frequency_toeplitz' depend on the length, "
        "and so does what it gives for the first tokens. Replace this attention by 'toeplitz'"
    )


_STEPPING: dict[type[Mixer], Callable[[Mixer, fx.Node, Program], nn.Module]] = {
    ToeplitzMixer: _cached_toeplitz,
    FrequencyToeplitzMixer: _no_steps,
    LongShortMixer: _stepping_long_short,
}
