"""Models whose tokens are spread: every process is played in this one, and what it gives is what the whole gives."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import remixer
from remixer import LongShort
from remixer.passes.errors import ShardError
from remixer.passes.prove_sharding import prove_sharding
from remixer.passes.shard_sequence import SPREAD, ShardSequence
from remixer.passes.sharded_sites import layout_for
from remixer.passes.spread_tokens import HeadsMixer, OwnMixer, SpreadAttention, WholeMixer
from remixer.rewrite.program import Program


class Layer(nn.Module):
    def __init__(self, width, heads, causal, rotary):
        super().__init__()
        self.heads, self.causal, self.rotary = heads, causal, rotary
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden, table, seen):
        B, T, C = hidden.shape
        query, key, value = self.qkv(self.first(hidden)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.rotary:
            query, key = (self.turn(each, *table) for each in (query, key))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        mixed = torch.softmax(scores, -1) @ value
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(B, T, C))
        return hidden + self.down(F.gelu(self.up(self.second(hidden))))

    def turn(self, each, cos, sin):
        first, second = each.chunk(2, -1)
        return each * cos + torch.cat([-second, first], -1) * sin


class Reader(nn.Module):
    """A decoder or encoder with positions of several kinds, and outputs of several kinds."""

    def __init__(self, causal=False, rotary=False, counted=False, mixing=False, flat=False):
        super().__init__()
        self.causal, self.rotary, self.counted, self.mixing, self.flat = causal, rotary, counted, mixing, flat
        self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.layers = nn.ModuleList(Layer(32, 4, causal, rotary) for _ in range(2))
        self.head, self.router = nn.Linear(32, 50), nn.Linear(32, 3)

    def forward(self, ids, mask):
        B, T = ids.shape
        place = torch.arange(T, device=ids.device)
        hidden, table = self.tokens(ids), None
        if self.rotary:
            angle = place[:, None] * 0.3 ** torch.arange(4, device=ids.device)
            table = (torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin())
        else:
            hidden = hidden + self.places((mask.cumsum(1) * mask) if self.counted else place)
        seen = mask[:, None, None, :].bool()
        if self.causal:
            seen = seen & (place <= place[:, None])
        for layer in self.layers:
            hidden = layer(hidden, table, seen)
        if self.mixing:
            hidden = hidden + hidden.cumsum(1)
        if self.flat:
            flat = hidden.reshape(-1, 32)
            best = self.router(flat).softmax(-1).topk(2, -1)
            hidden = (flat * best.values.sum(-1, keepdim=True)).view(B, T, 32)
        weight = mask[..., None].to(hidden.dtype)
        return {
            "logits": self.head(hidden),
            "first": hidden[:, 0],
            "last": hidden[:, -1:],
            "mean": (hidden * weight).sum(1) / weight.sum(1),
            "plain": hidden.mean(1),
        }


def inputs(T=12, B=2):
    torch.manual_seed(T)
    return {"ids": torch.randint(0, 50, (B, T)), "mask": torch.ones(B, T, dtype=torch.long)}


def program_of(mixer="distributed", **options):
    torch.manual_seed(0)
    return Program.of(remixer.remix(Reader(**options).eval(), mixer, inputs()))


@pytest.mark.parametrize("scheme", ["ring", "ulysses"])  # which spread tokens differently
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"causal": True, "rotary": True}, {"counted": True}, {"flat": True, "rotary": True}],
    ids=str,
)
def test_every_process_gives_what_the_whole_gives(options, scheme):
    program = program_of(**options)
    result = ShardSequence(scheme)(program)
    assert prove_sharding(program, result.program) < 1e-4
    assert not result.misses  # nothing was gathered
    calls = [str(node.target) for node in result.program.graph.nodes if node.op == "call_function"]
    assert sum("token_of" in call for call in calls) == 2
    assert sum("sum_of" in call for call in calls) == 2


def test_in_one_process_it_is_the_model():
    program = program_of(causal=True, rotary=True)
    sharded = ShardSequence("ring")(program).program
    with torch.no_grad():
        for name, want in program.graph_module(**inputs(9)).items():
            torch.testing.assert_close(sharded.graph_module(**inputs(9))[name], want)


def test_what_needs_all_tokens_gets_them_and_is_told():
    program = program_of(mixing=True)
    result = ShardSequence("all_gather")(program)
    assert prove_sharding(program, result.program) < 1e-4
    assert ["cumsum" in str(miss) and "gathered" in str(miss) for miss in result.misses] == [True]
    with pytest.raises(ShardError, match=r"cumsum.* needs all tokens.*strict=True"):
        ShardSequence("all_gather", strict=True)(program)


def test_long_short_goes_by_halo():
    program = program_of({"layers.1": LongShort(window=4, segment=2, rank=2), "*": "distributed"}, causal=True)
    result = ShardSequence("all_gather")(program)
    assert prove_sharding(program, result.program) < 1e-4
    assert not result.misses
    kinds = {type(module) for module in result.program.graph_module.modules()}
    assert kinds >= {OwnMixer, SpreadAttention}
    assert not kinds & {HeadsMixer, WholeMixer}
    assert layout_for(program, "all_gather") == "contiguous"  # though causal attention alone would have it zigzag
    assert layout_for(program_of(causal=True), "all_gather") == "zigzag"


def test_other_mixers_run_on_the_whole_sequence():
    program = program_of({"layers.1": LongShort(window=4, segment=2, retrieve=1), "*": "distributed"}, causal=True)
    result = ShardSequence("all_gather")(program)
    assert prove_sharding(program, result.program) < 1e-4
    told = "'long_short' runs on the whole sequence, on every process: 'long_short' retrieves tokens from anywhere"
    assert any(told in str(miss) for miss in result.misses)
    by_heads = ShardSequence("all_gather", ranks=2)(program)
    assert not by_heads.misses
    assert layout_for(program, "all_gather") == "zigzag"


def test_outputs_may_stay_spread():
    program = program_of(causal=True)
    result = ShardSequence("ring", gather=False)(program)
    assert prove_sharding(program, result.program) < 1e-4
    leaves = {node.name: node.meta.get(SPREAD) for node in result.program.graph.output_node().all_input_nodes}
    assert list(leaves.values()).count(1) == 1  # the logits
    assert not any("whole_of" in str(node.target) for node in result.program.graph.nodes)


def test_a_wrong_operator_is_named(monkeypatch):
    from remixer.passes import sharded_operators

    program = program_of(mixing=True)
    rules = {**sharded_operators._RULES, torch.ops.aten.cumsum.default: sharded_operators._same}
    monkeypatch.setattr(sharded_operators, "_RULES", rules)
    sharded = ShardSequence("all_gather")(program).program
    with pytest.raises(ShardError, match=r"spread over 2 processes .* The first node that differs is cumsum"):
        prove_sharding(program, sharded)


def test_hidden_states_may_come_in():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Layer(32, 4, False, False)

        def forward(self, hidden, mask):
            return self.layer(hidden, None, mask[:, None, None, :].bool())

    torch.manual_seed(0)
    given = {"hidden": torch.randn(2, 9, 32), "mask": torch.ones(2, 9, dtype=torch.long)}
    program = Program.of(remixer.remix(Encoder().eval(), "softmax", given))
    result = ShardSequence("ulysses")(program)
    assert prove_sharding(program, result.program) < 1e-4
    assert not result.misses


def test_a_fixed_length_is_refused():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.place = Layer(32, 4, False, False), nn.Parameter(torch.randn(9, 32))

        def forward(self, hidden):
            return self.layer(hidden + self.place, None, torch.ones(1, 1, 1, 9, dtype=torch.bool))

    program = Program.of(remixer.remix(Fixed().eval(), "softmax", torch.randn(2, 9, 32)))
    with pytest.raises(ShardError, match=r"a length that is not free: 9 at layer.*strategy='replicated'"):
        ShardSequence("all_gather")(program)
    with pytest.raises(ShardError, match="no attention was replaced"):
        ShardSequence("all_gather")(remixer.capture(Fixed().eval(), torch.randn(2, 9, 32)))
