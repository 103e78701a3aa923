"""Pipeline stages: graphs that together are the program."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import remixer
from remixer.passes.errors import StageError
from remixer.passes.prove_stages import independent_rows, prove_stages, run_stages
from remixer.passes.shard_sequence import ShardSequence
from remixer.passes.split_stages import split_stages
from remixer.rewrite.program import Program
from remixer.testing import assert_close


class Decoder(nn.Module):
    """Layers with a wide feed-forward, a table of positions that all of them read, and a tied head."""

    def __init__(self, layers=4, width=16):
        super().__init__()
        self.tokens = nn.Embedding(40, width)
        self.slopes = nn.Parameter(torch.tensor([0.5, 0.1]))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, 8 * width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(8 * width, width) for _ in range(layers))
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids, mask):
        B, T = ids.shape
        hidden = first = self.tokens(ids)
        place = torch.arange(T)
        seen = mask[:, None, None, :].bool() & (place <= place[:, None])
        offset = self.slopes[:, None, None] * (place - place[:, None])
        for qkv, up, down in zip(self.qkv, self.up, self.down, strict=True):
            query, key, value = (each.view(B, T, 2, -1).transpose(1, 2) for each in qkv(hidden).chunk(3, -1))
            scores = (query @ key.transpose(-1, -2) * 0.3 + offset).masked_fill(~seen, -1e9)
            hidden = hidden + (scores.softmax(-1) @ value).transpose(1, 2).reshape(B, T, -1)
            hidden = hidden + down(F.gelu(up(hidden)))
        return {"logits": self.head(hidden), "first": first, "mask": mask}


def inputs(T=10, B=2):
    torch.manual_seed(T)
    mask = torch.ones(B, T, dtype=torch.long)
    mask[0, : T // 3] = 0
    return {"ids": torch.randint(0, 40, (B, T)), "mask": mask}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return remixer.remix(Decoder().double().eval(), "distributed", inputs())


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_stages_are_the_program(small, count, sharded):
    program = Program.of(small)
    if sharded:
        program = ShardSequence("all_gather", ranks=2)(program).program
    stages = split_stages(program, count)
    assert len(stages) == count
    assert prove_stages(Program.of(small), stages) <= 1e-10
    for T, B in [(1, 2), (7, 1), (10, 2)]:
        small.zero_grad()
        wanted = small(**inputs(T, B))
        (wanted["logits"].square().mean() + wanted["first"].sum()).backward()
        gradients = {name: each.grad for name, each in small.named_parameters()}
        small.zero_grad()
        got = run_stages(stages, ((), inputs(T, B)))
        assert_close(dict(got), dict(wanted))
        (got["logits"].square().mean() + got["first"].sum()).backward()
        assert_close({name: each.grad for name, each in small.named_parameters()}, gradients)


def test_only_activations_cross_and_as_few_as_balance_allows(small):
    stages = split_stages(Program.of(small), 4, tokens=64)
    work = [stage.flops for stage in stages]
    assert max(work) < 1.3 * sum(work) / 4
    for stage in stages[1:]:
        # The hidden state and an output that is ready already, and, but for the last, the table of offsets, which is
        # trained; never the mask, and never what is inside of a feed-forward.
        hidden = [each for each in stage.receives if len(each.shape) == 3 and each.shape[-1] == 16]
        assert len(hidden) == 2
        assert len(stage.receives) - len(hidden) <= 1
        B, T, _ = hidden[0].shape
        assert hidden[0].bytes == 8 * 16 * B * T


def test_tied_weights_are_in_all_stages_that_read_them(small):
    first, *middle, last = split_stages(Program.of(small), 3)
    tied = set(first.weights.values()) & set(last.weights.values())
    assert len(tied) == 1
    assert not any(tied & set(stage.weights.values()) for stage in middle)


def test_a_wrong_stage_is_found(small):
    stages = split_stages(Program.of(small), 2)
    gelu = next(node for node in stages[1].graph_module.graph.nodes if node.target is torch.ops.aten.gelu.default)
    gelu.target = torch.ops.aten.relu.default
    stages[1].graph_module.recompile()
    with pytest.raises(StageError, match="in 2 stages the output 0 differs by"):
        prove_stages(Program.of(small), stages)


def test_what_can_not_be_split_is_refused(small):
    with pytest.raises(StageError, match=r"cannot split into 200 stages: number .* would have nothing to do"):
        split_stages(Program.of(small), 200)
    with pytest.raises(ValueError, match="stages must be at least 1, got 0"):
        split_stages(Program.of(small), 0)


def test_whether_rows_are_independent_is_tried(small):
    assert independent_rows(Program.of(small)) == ("ids", "mask")

    class Centred(Decoder):
        def forward(self, ids, mask):
            found = super().forward(ids, mask)
            return {"logits": found["logits"] - found["logits"].mean(0, keepdim=True)}

    other = remixer.remix(Centred(1).eval(), "distributed", inputs())
    assert independent_rows(Program.of(other)) == ()
