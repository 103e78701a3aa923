"""Programs over whole sequences as graphs that go token by token, and what can't be one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import remixer
from remixer import LongShort, Toeplitz
from remixer.passes.errors import StreamError
from remixer.passes.prove_stream import pieces, prove_stream, run, sequence
from remixer.passes.stream import stream
from remixer.rewrite import elsewhere
from remixer.rewrite.program import Program


class Decoder(nn.Module):
    """One causal attention between what `position` adds and what `after` does."""

    def __init__(self, position=None, after=None, bias=None):
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.table = nn.Embedding(64, 16)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.head = nn.Linear(16, 30)
        self.slopes = nn.Parameter(torch.tensor([0.5, 0.25]))
        self.register_buffer("rows", torch.randn(1, 64, 16))
        self.position, self.after, self.bias = position, after, bias

    def forward(self, ids, mask):
        hidden = self.embedding(ids)
        if self.position is not None:
            hidden = hidden + self.position(self, ids, mask)
        query, key, value = (
            each(hidden).unflatten(-1, (-1, 8)).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        place = torch.arange(ids.shape[1])
        seen = (place <= place[:, None]) & mask.bool()[:, None, None]
        added = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        if self.bias == "offset":
            added = added + torch.tensor([0.5, 0.25])[:, None, None] * (place - place[:, None])
        if self.bias == "dense":
            added = added + place * place[:, None] / 100
        mixed = F.scaled_dot_product_attention(query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), added)
        hidden = hidden + mixed.transpose(1, 2).flatten(2)
        return {"logits": self.head(hidden if self.after is None else self.after(hidden))}


POSITIONS = {
    "none": None,
    "counted": lambda self, ids, mask: self.table(torch.arange(ids.shape[1])),
    "counted_from_two": lambda self, ids, mask: self.table(torch.arange(2, ids.shape[1] + 2)),
    "rows_of_a_table": lambda self, ids, mask: self.rows[:, : ids.shape[1]],
    "later_rows_of_a_table": lambda self, ids, mask: self.rows[:, 3 : ids.shape[1] + 3],
    "existing": lambda self, ids, mask: self.table((mask.cumsum(1) * mask - 1).clamp(min=0)),
    "angles": lambda self, ids, mask: torch.cos(torch.arange(ids.shape[1])[:, None] * torch.linspace(0, 1, 16)),
}
MIXERS = ["softmax", LongShort(window=8, segment=4, memory=3), Toeplitz()]


def remixed(model, mixer="softmax"):
    torch.manual_seed(0)
    ids = torch.randint(0, 30, (2, 20))
    return remixer.remix(model.eval(), mixer, {"ids": ids, "mask": torch.ones_like(ids)})


def streamed(model, mixer="softmax", length=50):
    return stream(Program.of(remixed(model, mixer)), length)


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: str(mixer)[:20])
@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
def test_positions_go_on_from_the_tokens_before(position, mixer):
    prove_stream(streamed(Decoder(position), mixer))


def test_a_prompt_gives_the_outputs_of_its_last_token():
    streaming = streamed(Decoder())
    call = sequence(streaming, 3, 20)
    (piece,) = pieces(streaming, call, 20)
    logits, *state = streaming.prefill(*piece.inputs)
    whole = streaming.program.graph_module(**call[1])["logits"]
    torch.testing.assert_close(logits, whole[:, -1:])
    assert len(state) == len(streaming.state)
    (last,) = [node for node in streaming.prefill.graph.nodes if "last_of" in node.name]
    assert [user.target for user in last.users] == [torch.ops.aten.linear.default]  # the head reads one token


def test_a_bias_by_offset_is_that_of_the_greatest_length():
    streaming = streamed(Decoder(bias="offset"))
    prove_stream(streaming)
    assert any(buffer.shape == (2, 99) for buffer in streaming.step.buffers())


def test_the_state_says_where_it_belongs():
    (site,) = remixed(Decoder(POSITIONS["counted"])).report.sites
    own = {f"{site.name}.{entry}" for entry in ("exist", "key", "value")}
    assert set(streamed(Decoder(POSITIONS["counted"])).state) == own | {"position"}


class Two(nn.Module):
    """Two attentions that read the same mask."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Decoder(), Decoder()

    def forward(self, ids, mask):
        mask = mask.bool()
        return self.first(ids, mask)["logits"] + self.second(ids, mask)["logits"]


def test_mixers_alike_share_what_tells_which_tokens_exist():
    streaming = streamed(Two())
    prove_stream(streaming)
    assert sum(name.endswith("exist") for name in streaming.state) == 1
    assert sum(name.endswith("key") for name in streaming.state) == 2


def test_a_mixer_writes_nothing_that_the_next_one_has_to_read_as_it_was():
    streaming = streamed(Two(), LongShort(window=8, segment=4, memory=3))
    prove_stream(streaming)
    assert sum(name.endswith("count") for name in streaming.state) == 1


def test_many_tokens_at_once_are_many_by_one():
    streaming = streamed(Decoder(POSITIONS["counted"]), LongShort(window=8, segment=4, memory=3))
    call = sequence(streaming, 2, 40, padded=True)
    ends = [list(run(streaming, call, first))[-1][1][0] for first in (1, 7, 39)]
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0])


class Shift(nn.Module):
    """Every token reads the one before it, which no mixer's state knows."""

    def forward(self, hidden):
        return hidden + F.pad(hidden, (0, 0, 1, 0))[:, :-1]


def test_other_ties_between_tokens_are_found_by_the_proof():
    with pytest.raises(StreamError, match=r"gives something else than at once, by .* The first node that differs is"):
        prove_stream(streamed(Decoder(after=Shift())))


def bidirectional():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    return remixer.remix(layer, "softmax", torch.randn(2, 20, 16))


def test_what_stands_at_hidden_tokens_is_not_tried_as_tokens(monkeypatch):
    model = Decoder(after=lambda hidden: F.rms_norm(hidden, (16,), eps=1e-36))
    with torch.no_grad():
        model.embedding.weight[0] = 0.0  # and what is made of it, but for rounding errors, which the norm makes large
        for linear in (model.query, model.key, model.value):
            linear.bias.zero_()
    ids = torch.randint(1, 30, (2, 20))
    ids[0, :6] = 0
    rewritten = remixer.remix(model.eval(), Toeplitz(), {"ids": ids, "mask": (ids > 0).long()})
    streaming = stream(Program.of(rewritten), 50)
    prove_stream(streaming)
    monkeypatch.setattr(elsewhere, "_without_hidden", lambda inputs: inputs)
    with pytest.raises(StreamError, match="at token 0"):
        prove_stream(streaming)


def test_what_has_no_stream():
    with pytest.raises(StreamError, match=r"cannot stream the attention at .*sees tokens to come"):
        stream(Program.of(bidirectional()), 50)
    with pytest.raises(StreamError, match=r"cannot stream the attention at .*whole sequences only"):
        streamed(Decoder(bias="dense"))


def test_kept_attentions_have_no_stream():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Decoder(), Decoder()

        def forward(self, ids, mask):
            return self.first(ids, mask)["logits"] + self.second(ids, mask)["logits"]

    with pytest.raises(StreamError, match="give remix 'softmax' for it"):
        streamed(Two(), {"first*": "softmax", "*": None})
