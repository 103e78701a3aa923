"""Mixers that are alike become one function, with the weights of each site."""

import copy

import pytest
import torch
from small_model import Model, inputs
from torch import nn

from remixer import LongShort, Toeplitz
from remixer.export import ExportError, to_onnx
from remixer.export.examples import example_for_export
from remixer.export.onnx import mixer_functions
from remixer.export.onnx.lower_mixers import lower_mixers
from remixer.export.onnx.mixer_functions import MixerFunction, with_functions
from remixer.export.onnx.runtime import Session
from remixer.export.onnx.verify import feeds_of
from remixer.export.reexport import as_module
from remixer.rewrite.program import Program


def functions_of(small):
    program = Program.of(small.eval())
    return with_functions(as_module(lower_mixers(program)), example_for_export(program, 40))


@pytest.fixture(scope="module")
def deep():
    torch.manual_seed(0)
    return Model(layers=3, causal=True).eval()


@pytest.fixture(scope="module")
def toeplitz_functions(deep, captured_once):
    return functions_of(captured_once.remix(deep, Toeplitz(), inputs()))


def test_one_function_for_all_layers(toeplitz_functions):
    assert [function.name for function in toeplitz_functions] == ["mixer_0"]


def test_a_module_in_two_places_keeps_its_weights(deep, captured_once):
    """LoweredToeplitz has the gate of the mixer that it also has."""
    small = captured_once.remix(deep, Toeplitz(gate="value", weigh="key"), inputs())
    before = {name: (weight, weight.clone()) for name, weight in small.named_parameters()}
    (function,) = functions_of(small)
    assert len(list(function.module.named_modules(remove_duplicate=False))) > len(list(function.module.modules()))
    after = dict(small.named_parameters())
    assert all(after[name] is weight and torch.equal(weight, copy) for name, (weight, copy) in before.items())


def test_one_function_for_each_kind(deep, captured_once):
    small = captured_once.remix(deep, {"blocks.1": Toeplitz(), "*": "softmax"}, inputs())
    assert [type(function.module).__name__ for function in functions_of(small)] == ["Softmax", "LoweredToeplitz"]


def test_each_site_keeps_its_own_weights(deep, captured_once, tmp_path):
    """At their start the mixers of all layers are equal, and so are many weights of one mixer."""
    small = captured_once.remix(deep, LongShort(window=8, segment=4, rank=2, dual_norm="per_head"), inputs())
    torch.manual_seed(1)
    for name, parameter in small.named_parameters():
        if "mixer" in name or "blocks" in name:
            nn.init.normal_(parameter, std=0.2)
    to_onnx(small, tmp_path / "other.onnx")
    call = ((), inputs(33, 2))
    (hidden, _), expected = Session(tmp_path / "other.onnx", "cpu")(feeds_of(call)), small(**inputs(33, 2))
    torch.testing.assert_close(hidden, expected["hidden"], rtol=1e-4, atol=1e-4)


def test_no_call_is_left_in_the_file(deep, captured_once, tmp_path):
    import onnx

    to_onnx(captured_once.remix(deep, "softmax", inputs()), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "com.microsoft"}
    assert not model.functions


def test_a_size_that_the_whole_leaves_free_has_to_be_free(deep, captured_once):
    program = Program.of(captured_once.remix(deep, "softmax", inputs()))
    call = example_for_export(program, 40)
    module = as_module(lower_mixers(program))
    with_functions(module, call, call)  # as if nothing could differ
    with pytest.raises(ExportError, match=r"always \d+, which is s\d+ in the whole model"):
        mixer_functions.exported(
            module, call, {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in call[1]}
        )


def test_weights_that_nothing_gives_are_an_error(toeplitz_functions):
    (function,) = toeplitz_functions
    assert isinstance(function, MixerFunction)
    other = copy.deepcopy(function.module)
    assert function.weights == tuple(name for name, _ in (*other.named_parameters(), *other.named_buffers()))
