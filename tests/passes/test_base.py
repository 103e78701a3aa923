"""What every pass keeps to, whatever it does."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.fx.passes.infra.pass_manager import PassManager

from remixer import SoftmaxConfig
from remixer.passes.base import Pass, Pipeline
from remixer.passes.canonicalise import Canonicalise
from remixer.passes.classify_masks import ClassifyMasks
from remixer.passes.errors import PreconditionError
from remixer.passes.pipelines import recognition
from remixer.passes.prove_sites import ProveSites
from remixer.passes.recognise_attention import RecogniseAttention
from remixer.passes.select import Selection
from remixer.passes.sites import sites_of
from remixer.passes.substitute import Substitute
from remixer.passes.sweep import Sweep
from remixer.rewrite.capture import capture
from remixer.rewrite.errors import PassError
from remixer.rewrite.program import Program
from remixer.testing import assert_close, graph_text

aten = torch.ops.aten


class Relu(nn.Module):
    def forward(self, x):
        return (x + 0).relu() * 2


@dataclass(frozen=True)
class Widen(Pass):
    """Replace relu by something else."""

    target: object = aten.sigmoid.default

    def run(self, editor):
        for node in editor.graph.find_nodes(op="call_function", target=aten.relu.default):
            with editor.rewriting("Widen", node):
                editor.replace(node, editor.call(self.target, *node.args, before=node))


@pytest.fixture
def program():
    return capture(Relu(), (torch.randn(2, 5),))


def test_the_program_that_was_given_is_untouched(program):
    before = graph_text(program.graph)
    result = Widen()(program)
    assert graph_text(program.graph) == before
    assert result.program is not program
    assert result.modified
    assert (result.name, len(result.rewrites), result.nodes) == (
        "Widen(target=<OpOverload(op='aten.sigmoid', overload='default')>)", 1, (5, 6),
    )  # fmt: skip
    x = torch.randn(3, 4)
    assert_close(result.graph_module(x), x.sigmoid() * 2)
    assert_close(program.graph_module(x), x.relu() * 2)


def test_a_pass_that_does_nothing_modifies_nothing(program):
    @dataclass(frozen=True)
    class Idle(Pass):
        def run(self, editor):
            pass

    assert not Idle()(program).modified


def test_outputs_keep_their_shapes_and_dtypes(program):
    @dataclass(frozen=True)
    class First(Pass):
        def run(self, editor):
            output = editor.graph.output_node()
            last = output.args[0][0]
            output.args = ((editor.call(aten.isnan.default, last, before=output),),)

    with pytest.raises(PassError, match=r"pass First changed the outputs' shapes or dtypes from .* to "):
        First()(program)


def test_nodes_are_replaced_by_nodes_of_their_shape_and_dtype(program):
    with pytest.raises(
        PassError, match=r"isnan_default, a 2-d torch\.bool, can't stand for relu, a 2-d torch\.float32"
    ):
        Widen(aten.isnan.default)(program)


def test_a_pass_asks_and_promises(program):
    @dataclass(frozen=True)
    class Strict(Widen):
        def requires(self, program):
            if len(program.graph.nodes) > 100:
                raise PreconditionError("too large")

        def ensures(self, before, after):
            raise PassError(f"{len(after.graph.nodes)} nodes")

    with pytest.raises(PassError, match="6 nodes"):
        Strict()(program)

    @dataclass(frozen=True)
    class Never(Strict):
        def requires(self, program):
            raise PreconditionError("not for me")

    with pytest.raises(PreconditionError, match="not for me"):
        Never()(program)


def test_a_pipeline_collects_its_steps(program):
    seen = []
    result = Pipeline((Canonicalise(), Widen(), Sweep()), watch=seen.append)(program)
    assert [step.name.split("(")[0] for step in result.steps] == ["Canonicalise", "Widen", "Sweep"]
    assert seen == list(result.steps)
    assert len(result.rewrites) == 1
    assert result.nodes == (5, 4)
    assert result.modified


def test_the_fx_pass_manager_takes_our_passes(one_attention):
    """torch.fx's own pass manager hands plain graph modules from pass to pass."""
    model = one_attention(lambda T, keep, m: torch.ones(T, T, dtype=torch.bool).tril()).eval()
    x = torch.randn(2, 9, 16)
    captured = capture(model, (x,)).graph_module
    selection = Selection.of({"*": SoftmaxConfig()})
    passes = [Canonicalise(), RecogniseAttention(), ClassifyMasks(), ProveSites(), Substitute(selection), Sweep()]
    result = PassManager(passes=passes, run_checks_after_each_pass=True)(captured)
    assert result.modified
    assert_close(result.graph_module(torch.randn(1, 4, 16)).shape, torch.Size([1, 4, 16]))
    assert_close(result.graph_module(x), model(x))
    (site,) = sites_of(Program.of(result.graph_module))
    assert site.spec.causal


def test_a_pipeline_takes_a_graph_module(one_attention):
    captured = capture(one_attention().eval(), (torch.randn(2, 9, 16),)).graph_module
    assert len(sites_of(recognition()(captured).program)) == 1


def test_recognising_twice_finds_nothing_new(one_attention, recognised):
    result, sites = recognised(one_attention())
    again = recognition()(result.program)
    assert len(sites_of(again.program)) == len(sites) == 1
