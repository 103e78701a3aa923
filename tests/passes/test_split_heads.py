import pytest
import torch
from torch import nn

import remixer
from remixer import LongShort, Toeplitz
from remixer.passes.errors import SelectionError
from remixer.passes.pipelines import recognition, replacement
from remixer.passes.select import Selection
from remixer.passes.sites import sites_of
from remixer.passes.split_heads import SplitHeads, part_name


class Grouped(nn.Module):
    """Six query heads on three key/value heads, with padding and a bias by offset or none."""

    def __init__(self, causal=True, bias=False):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(24, 48), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(48, 24)
        self.causal = causal
        self.slopes = nn.Parameter(torch.rand(6)) if bias else None

    def forward(self, x, mask):
        T = x.shape[1]
        q = self.q(x).unflatten(2, (6, 8)).transpose(1, 2)
        k, v = (p(x).unflatten(2, (3, 8)).transpose(1, 2).repeat_interleave(2, 1) for p in (self.k, self.v))
        scores = q @ k.transpose(2, 3) / 8**0.5
        places = torch.arange(T)
        if self.slopes is not None:
            scores = scores - self.slopes[:, None, None] * (places[:, None] - places).abs()
        if self.causal:
            scores = scores.masked_fill(places > places[:, None], float("-inf"))
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def inputs(tokens=11):
    return {"x": torch.randn(3, tokens, 24), "mask": torch.arange(tokens) < torch.tensor([[tokens], [7], [1]])}


def recognised(**options):
    model = Grouped(**options).eval()
    program = recognition()(remixer.capture(model, inputs())).program
    return model, program


@pytest.mark.parametrize("groups", [((0,), (1, 2)), ((0, 2), (1,)), ((0,), (1,), (2,)), ((2, 0, 1),)])
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"causal": False, "bias": True}])
def test_parts_together_are_the_whole(groups, options):
    model, program = recognised(**options)
    name = sites_of(program)[0].name
    result = SplitHeads({name: groups})(program)
    assert len(result.rewrites) == (len(groups) > 1)
    sites = sites_of(result.program)
    assert [site.spec.kv_heads for site in sites] == [len(group) for group in groups]
    for tokens in (1, 11, 30):
        given = inputs(tokens)
        torch.testing.assert_close(result.graph_module(**given), model(**given))


def test_what_is_not_named_stays():
    _, program = recognised()
    assert not SplitHeads({})(program).modified
    assert not SplitHeads({sites_of(program)[0].name: ((0, 1, 2),)})(program).modified


@pytest.mark.parametrize("groups", [((0,), (1,)), ((0, 1), (1, 2)), ((0, 1, 2), ()), ((0, 1, 2, 3), (4,))])
def test_groups_that_do_not_hold_every_head_once_are_refused(groups):
    _, program = recognised()
    with pytest.raises(SelectionError, match="each of its 3 key/value heads once"):
        SplitHeads({sites_of(program)[0].name: groups})(program)
    with pytest.raises(SelectionError, match="no attention 'other'"):
        SplitHeads({"other": groups})(program)


def test_each_part_takes_a_mixer_of_its_own_and_what_is_left_stays_exact():
    model, program = recognised()
    name = sites_of(program)[0].name
    split = SplitHeads({name: ((0, 2), (1,))})(program).program
    toeplitz, kept = part_name(name, (0, 2)), part_name(name, (1,))
    result = replacement(Selection.of({toeplitz: Toeplitz(), kept: None}))(split)
    (site,) = sites_of(result.program)
    assert (site.name, site.spec.heads, site.spec.kv_heads) == (toeplitz, 4, 2)
    exact = replacement(Selection.of({toeplitz: LongShort(window=64), kept: LongShort(window=64)}))(split)
    given = inputs(30)
    torch.testing.assert_close(exact.graph_module(**given), model(**given))
    values = [node.meta["val"].shape[1] for node in result.program.graph.find_nodes(op="call_module")]
    assert sorted(values) == [2, 4]
