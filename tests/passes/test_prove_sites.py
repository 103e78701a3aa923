"""A site that isn't what it was read from has to go back, whatever was misread."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from remixer.mixers import Softmax
from remixer.passes.base import Pass, Pipeline
from remixer.passes.canonicalise import Canonicalise
from remixer.passes.classify_masks import ClassifyMasks
from remixer.passes.prove_sites import ProveSites
from remixer.passes.recognise_attention import RecogniseAttention
from remixer.passes.sites import sites_of
from remixer.passes.sweep import Sweep
from remixer.rewrite.capture import capture
from remixer.testing import graph_text


@dataclass(frozen=True)
class Tamper(Pass):
    """Misread every site: change its spec, or its operands."""

    spec: Any = ()
    swapped: tuple[str, str] | None = None
    dropped: str | None = None

    def run(self, editor):
        for site in sites_of(editor.program):
            wrong = Softmax(replace(site.spec, **dict(self.spec))).eval()
            editor.graph_module.set_submodule(str(site.node.target), wrong)
            operands = dict(site.node.kwargs)
            if self.swapped:
                first, second = self.swapped
                operands[first], operands[second] = operands[second], operands[first]
            operands.pop(self.dropped, None)
            editor.set_operands(site.node, operands)


def window(T, keep, model):
    offset = torch.arange(T) - torch.arange(T)[:, None]
    return (offset <= 0) & (offset > -60) & keep[:, None, None, :]


def flat(q, k, v, mask, model):
    q, k, v = (x.reshape(-1, x.shape[2], 8) for x in (q, k, v))
    return torch.bmm(torch.softmax(torch.bmm(q, k.mT), -1), v).unflatten(0, (-1, 2))


def written_out(q, k, v, mask, model):
    return torch.softmax((q @ k.mT).masked_fill(~mask, -torch.inf), -1) @ v


WRONG = {
    "scale": {"spec": (("scale", 0.36),)},
    "not causal": {"spec": (("causal", False), ("window", (59, None)))},
    "no window": {"spec": (("window", (None, 0)),)},
    "a shorter window": {"spec": (("window", (58, 0)),)},
    "softcap": {"spec": (("softcap", 50.0),)},
    "key and value exchanged": {"swapped": ("key", "value")},
    "padding lost": {"dropped": "padding"},
}


@pytest.mark.parametrize("mix", [None, written_out])
@pytest.mark.parametrize("name", WRONG)
def test_a_misread_site_goes_back_and_is_a_miss(name, mix, one_attention, padded):
    model, inputs = one_attention(window, mix).eval(), padded()
    program = capture(model, inputs)
    if mix is None and name == "softcap":
        pytest.skip("softcap of scores near zero; covered written out")
    steps = (Canonicalise(), RecogniseAttention(), ClassifyMasks(), Tamper(**WRONG[name]), ProveSites())
    result = Pipeline(steps)(program)
    assert sites_of(result.program) == []
    (miss,) = result.misses
    assert "differs from what it was read from" in miss.reason
    swept, before = Sweep()(result.program), Pipeline((Canonicalise(), Sweep()))(program)
    assert graph_text(swept.program.graph) == graph_text(before.program.graph)
    assert swept.graph_module.state_dict().keys() == program.graph_module.state_dict().keys()
    assert not any(isinstance(module, Softmax) for module in swept.graph_module.modules())
    assert torch.equal(swept.graph_module(**inputs), program.graph_module(**inputs))


def every(T, keep, model):
    return keep[:, None, None, :].expand(-1, 1, T, -1)


def queries_too(T, keep, model):
    return window(T, keep, model) & keep[:, None, :, None]


def lowest(mask):
    return lambda T, keep, m: torch.zeros(()).where(mask(T, keep, m), torch.finfo(torch.float32).min)


def two_masks(T, keep, model):
    near = torch.arange(T) <= torch.arange(T)[:, None]
    seen, hidden = torch.zeros(()), torch.finfo(torch.float32).min
    return torch.where(near, seen, hidden) + torch.where(keep[:, None, None], seen, hidden)


MISREAD = {
    "padded queries served": (queries_too, {"pads_queries": False}),
    "padded queries taken away": (window, {"pads_queries": True}),
    "dead rows mean, not 0": (window, {"dead_rows": "mean"}),
    "dead rows 0, not the mean": (lowest(window), {"dead_rows": "zero"}),
    "dead rows over all keys, not the mean": (lowest(window), {"dead_rows": "all"}),
    "dead rows mean, not of those hidden once": (two_masks, {"dead_rows": "mean"}),
    "dead rows of the past, not of those hidden once": (two_masks, {"dead_rows": "past"}),
    "rows of nothing but padding, the mean, not 0": (every, {"dead_rows": "mean"}),
    "rows of nothing but padding, 0, not the mean": (lowest(every), {"dead_rows": "zero"}),
    "a longer window": (window, {"window": (60, 0)}),
}


@pytest.mark.parametrize("name", MISREAD)
def test_a_misread_mask_goes_back(name, one_attention, padded):
    mask, changes = MISREAD[name]
    model, inputs = one_attention(mask).eval(), padded()
    program = capture(model, inputs)
    steps = (Canonicalise(), RecogniseAttention(), ClassifyMasks())
    assert [site.record.note for site in sites_of(Pipeline((*steps, ProveSites()))(program).program)] == [""]
    result = Pipeline((*steps, Tamper(spec=tuple(changes.items())), ProveSites()))(program)
    assert sites_of(result.program) == []
    assert "differs from what it was read from" in result.misses[0].reason
    assert torch.equal(result.graph_module(**inputs), program.graph_module(**inputs))


@pytest.mark.parametrize("right", ["start", "end"])
def test_a_misread_alignment_goes_back(right):
    class Two(nn.Module):
        def forward(self, x, memory):
            T, S = x.shape[1], memory.shape[1]
            mask = torch.ones(T, S, dtype=torch.bool).tril(S - T if right == "end" else 0)
            q, k = x.unflatten(-1, (2, 8)).transpose(1, 2), memory.unflatten(-1, (2, 8)).transpose(1, 2)
            return nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask)

    program = capture(Two(), (torch.randn(2, 5, 16), torch.randn(2, 9, 16)))
    steps = (Canonicalise(), RecogniseAttention(), ClassifyMasks())
    assert len(sites_of(Pipeline((*steps, ProveSites()))(program).program)) == 1
    wrong = Tamper(spec=(("alignment", "start" if right == "end" else "end"),))
    result = Pipeline((*steps, wrong, ProveSites()))(program)
    assert "differs from what it was read from" in result.misses[0].reason


def test_a_table_at_zero_hides_no_misreading(one_attention):
    """Tables of biases are random in a proof: at zero any reading of them would be right."""

    def bias(T, keep, model):
        offset = torch.arange(T) - torch.arange(T)[:, None]
        return model.table(offset.clamp(-8, 8) + 8).permute(2, 0, 1)[None]

    model = one_attention(bias)
    model.table = nn.Embedding(17, 2)
    nn.init.zeros_(model.table.weight)
    program = capture(model.eval(), {"x": torch.randn(2, 9, 16)})
    read = Pipeline((Canonicalise(), RecogniseAttention(), ClassifyMasks()))(program).program
    (site,) = sites_of(read)
    assert ProveSites()(read).misses == ()
    read.graph_module.get_submodule(str(site.operand("bias").target)).first += 1
    assert "differs from what it was read from" in ProveSites()(read).misses[0].reason


def test_a_misread_three_dimensional_attention_goes_back(one_attention):
    model, x = one_attention(mix=flat).eval(), torch.randn(2, 9, 16)
    program = capture(model, (x,))
    wrong = Tamper(spec=(("scale", 3.0),))
    steps = (Canonicalise(), RecogniseAttention(), ClassifyMasks(), wrong, ProveSites())
    result = Pipeline(steps)(program)
    assert "differs" in result.misses[0].reason
    assert torch.equal(Sweep()(result.program).graph_module(x), program.graph_module(x))


def test_only_the_misread_site_goes_back(one_attention, padded):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = one_attention(window), one_attention(window)

        def forward(self, x, keep):
            return self.second(self.first(x, keep), keep)

    @dataclass(frozen=True)
    class First(Tamper):
        def run(self, editor):
            site = sites_of(editor.program)[0]
            wrong = Softmax(replace(site.spec, scale=9.0)).eval()
            editor.graph_module.set_submodule(str(site.node.target), wrong)

    model, inputs = Two().eval(), padded()
    steps = (Canonicalise(), RecogniseAttention(), ClassifyMasks(), First(), ProveSites(), Sweep())
    result = Pipeline(steps)(capture(model, inputs))
    assert [site.name for site in sites_of(result.program)] == ["second"]
    assert [miss.site for miss in result.misses] == ["first"]
    torch.testing.assert_close(result.graph_module(**inputs), model(**inputs))


def test_what_is_right_keeps_its_error(one_attention, recognised):
    _, (site,) = recognised(one_attention(mix=flat))
    assert 0.0 <= site.record.error < 1e-4


def test_an_error_inside_is_a_reason_not_a_crash(one_attention, padded):
    @dataclass(frozen=True)
    class Break(Pass):
        def run(self, editor):
            (site,) = sites_of(editor.program)
            broken = {**site.node.kwargs, "key": site.operand("query").args[0]}
            editor.set_operands(site.node, broken)

    steps = (Canonicalise(), RecogniseAttention(), ClassifyMasks(), Break(), ProveSites())
    result = Pipeline(steps)(capture(one_attention(window).eval(), padded()))
    assert result.misses[0].reason.startswith("can't be run alone: ")
