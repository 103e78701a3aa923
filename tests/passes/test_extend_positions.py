import pytest
import torch
from torch import nn

import remixer
from remixer.passes.errors import ExtendError
from remixer.passes.extend_positions import ExtendPositions
from remixer.rewrite.capture import capture
from remixer.testing import assert_close

OLD, LONG, WIDTH = 16, 37, 8


class Toy(nn.Module):
    """Tokens plus what `add(self, ids, mask)` gives."""

    def __init__(self, add, rows=OLD, **held):
        super().__init__()
        self.tokens = nn.Embedding(50, WIDTH)
        self.table = nn.Embedding(rows, WIDTH)
        self.free = nn.Parameter(torch.randn(1, rows, WIDTH))
        self.add = add
        for name, buffer in held.items():
            self.register_buffer(name, buffer)

    def forward(self, ids, mask):
        return self.tokens(ids) + self.add(self, ids, mask)


def inputs(length=7):
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length - length // 3 :] = 0
    return {"ids": torch.randint(5, 50, (2, length)), "mask": mask}


def counted(model, ids, mask):
    return model.table(torch.arange(ids.shape[1]))[None]


def behind_two(model, ids, mask):
    return model.table(mask.cumsum(1) * mask + 1)


def by_comparison(model, ids, mask):
    exists = ids.ne(1).int()
    return model.table(exists.cumsum(1) * exists + 1)


def from_buffers(model, ids, mask):
    types = torch.gather(model.types.expand(ids.shape[0], -1), 1, model.places[:, : ids.shape[1]].expand_as(ids))
    return model.table(model.places[:, : ids.shape[1]]) + model.tokens(types)


def sliced(model, ids, mask):
    return model.free[:, : ids.shape[1]]


def behind_one(model, ids, mask):
    return model.free[:, 1 : ids.shape[1] + 1]


def in_band(model, ids, mask):
    length = ids.shape[1]
    seen = model.band[:, :, :length, :length].float()
    return (seen @ model.tokens(ids)[:, None])[:, 0]


def places():
    return {"places": torch.arange(OLD)[None], "types": torch.zeros(1, OLD, dtype=torch.long)}


def lower():
    return {"band": torch.ones(OLD, OLD, dtype=torch.bool).tril()[None, None]}


def window():
    return {"band": (torch.ones(OLD, OLD).tril() - torch.ones(OLD, OLD).tril(-3))[None, None]}


CASES = [
    (counted, {}, OLD, 0),
    (behind_two, {}, OLD + 2, 2),
    (by_comparison, {}, OLD + 2, 2),
    (from_buffers, places, OLD, 0),
    (sliced, {}, OLD, 0),
    (behind_one, {}, OLD + 1, 1),
    (in_band, lower, OLD, 0),
    (in_band, window, OLD, 0),
]


def made(add, held, rows):
    torch.manual_seed(3)
    return Toy(add, rows, **(held() if held else {})).eval()


def by_hand(model, first, length):
    """The same model with its tables and buffers written out for a length."""
    longer = made(model.add, None, first + length)
    longer.tokens = model.tokens
    with torch.no_grad():
        for new, old in ((longer.table.weight, model.table.weight), (longer.free[0], model.free[0])):
            rows = old[first:]
            new[:first] = old[:first]
            new[first:] = rows[torch.arange(length) % len(rows)]
    for name, old in model.named_buffers():
        if name == "band":
            distance = torch.arange(length)[:, None] - torch.arange(length)
            most = 2 if old.dtype is not torch.bool else length
            new = ((distance >= 0) & (distance <= most)).to(old.dtype)[None, None]
        else:
            new = torch.arange(length)[None] * (name == "places")
        longer.register_buffer(name, new)
    return longer


@pytest.mark.parametrize(("add", "held", "rows", "first"), CASES)
def test_what_ends_goes_on(add, held, rows, first):
    model = made(add, held, rows)
    result = ExtendPositions(LONG)(capture(model, inputs()))
    small, expected = result.graph_module, by_hand(model, first, LONG)
    for length in (1, 7, OLD):
        torch.manual_seed(length)
        shorter = inputs(length)
        assert_close(small(**shorter), model(**shorter))
    longer = inputs(LONG)
    with pytest.raises((RuntimeError, IndexError)):
        model(**longer)
    assert_close(small(**longer), expected(**longer))
    assert any(f"up to {OLD} before, up to {LONG} now" in line for line in result.program.extended)
    assert LONG in {largest for _, largest in result.program.limits.values()}


def test_special_rows_stay_and_position_rows_repeat():
    model = made(behind_two, {}, OLD + 2)
    found = ExtendPositions(LONG)(capture(model, inputs())).graph_module.table.weight
    old = model.table.weight
    assert found.shape == (LONG + 2, WIDTH)
    assert isinstance(found, nn.Parameter)
    assert found.requires_grad
    assert torch.equal(found[: OLD + 2], old)
    assert torch.equal(found[OLD + 2 : 2 * OLD + 2], old[2:])


def test_interpolation_stretches_the_rows_and_says_that_short_inputs_change():
    model = made(behind_two, {}, OLD + 2)
    with torch.no_grad():
        model.table.weight[2:] = torch.arange(OLD)[:, None].float()
    result = ExtendPositions(2 * OLD - 1, "interpolate")(capture(model, inputs()))
    found = result.graph_module.table.weight
    assert torch.equal(found[:2], model.table.weight[:2])
    assert_close(found[2:, 0], torch.arange(2 * OLD - 1) / 2)
    assert "changes what shorter inputs give" in result.program.extended[0]


def test_the_pass_leaves_the_program_it_was_given():
    model = made(from_buffers, places, OLD)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    program = capture(model, inputs())
    ExtendPositions(LONG)(program)
    assert_close(model.state_dict(), before)
    assert program.extended == ()
    assert program.graph_module.places.shape == (1, OLD)


def distances(model, ids, mask):
    places = torch.arange(ids.shape[1])
    return model.table(places[:, None] - places + OLD - 1).mean(0)[None]


def random_buffer(model, ids, mask):
    return model.noise[:, : ids.shape[1]]


def of_a_norm(model, ids, mask):
    return nn.functional.layer_norm(model.table.weight, (WIDTH,))[None, : ids.shape[1]]


def guarded(model, ids, mask):
    return model.tokens(ids) * (2 if ids.shape[1] > OLD else 1)


def fixed(model, ids, mask):
    return model.free


@pytest.mark.parametrize(("add", "held", "rows", "word"), [
    (distances, {}, 2 * OLD - 1, "by distance, not by position"),
    (random_buffer, lambda: {"noise": torch.randn(1, OLD, WIDTH)}, OLD, "neither a constant, nor numbers that rise"),
    (of_a_norm, {}, OLD, "computed from table.weight"),
    (guarded, {}, OLD, "the model's own code allows T up to 16 only"),
    (in_band, lambda: {"band": torch.rand(1, 1, OLD, OLD) > 0.5}, OLD, "no band along its diagonal"),
])  # fmt: skip
def test_what_cannot_go_on_is_refused_with_the_reason(add, held, rows, word):
    program = capture(made(add, held, rows), inputs())
    with pytest.raises(ExtendError, match=word):
        ExtendPositions(LONG)(program)


def test_one_length_only_is_refused_before_any_work():
    program = capture(made(fixed, {}, OLD), inputs(OLD))
    with pytest.raises(ExtendError, match=r"inputs of one length only are taken .*fixed at 16"):
        ExtendPositions(LONG)(program)


@pytest.mark.parametrize(("options", "word"), [
    ({"max_length": 1}, "2 or more"),
    ({"max_length": 9, "how": "copy"}, "'repeat' or 'interpolate', got 'copy'"),
    ({"max_length": 9, "rotary": "yarn"}, "'interpolate' or 'ntk', got 'yarn'"),
    ({"max_length": 9, "rotary": "ntk", "trained_length": 9}, "between 2 and max_length"),
])  # fmt: skip
def test_wrong_options_are_refused(options, word):
    with pytest.raises(ExtendError, match=word):
        ExtendPositions(**options)


def clipped(model, ids, mask):
    places = torch.arange(ids.shape[1])
    return model.table((places[:, None] - places).clamp(-8, 7) + 8).mean(0)[None]


def nothing(model, ids, mask):
    return model.tokens(ids)


@pytest.mark.parametrize("add", [clipped, nothing])
def test_what_does_not_end_is_left_alone(add):
    model = made(add, {}, OLD)
    result = ExtendPositions(LONG)(capture(model, inputs()))
    assert "nothing: 37 is taken already" in result.program.extended[0]
    assert result.graph_module.tokens.weight is model.tokens.weight
    longer = inputs(LONG)
    assert_close(result.graph_module(**longer), model(**longer))


def test_a_table_that_an_input_counts_for_is_named():
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(OLD, WIDTH)

        def forward(self, x, position_ids):
            return x + self.table(position_ids)

    given = {"x": torch.randn(2, 7, WIDTH), "position_ids": torch.arange(7).expand(2, -1)}
    (told, _) = ExtendPositions(LONG)(capture(Given(), given)).program.extended
    assert "table.weight is read by the values of input 'position_ids'" in told


def test_tied_names_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Embedding(OLD, WIDTH)
            self.other = self.one

        def forward(self, x):
            places = torch.arange(x.shape[1])
            return x + self.one(places) + self.other(places)

    found = ExtendPositions(LONG)(capture(Tied(), torch.randn(2, 7, WIDTH))).graph_module
    assert found.one.weight is found.other.weight
    assert found.one.weight.shape == (LONG, WIDTH)


class Attends(nn.Module):
    """Learned positions, and causal attention whose mask is a buffer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(OLD, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.register_buffer("seen", torch.ones(OLD, OLD, dtype=torch.bool).tril(), persistent=False)

    def forward(self, x):
        length = x.shape[1]
        x = x + self.table(torch.arange(length))
        query, key, value = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = query @ key.transpose(-2, -1) / 2
        scores = scores.masked_fill(~self.seen[:length, :length], float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("mixer", ["toeplitz", "softmax", None])
def test_remix_takes_the_longer_input_and_reports_it(mixer):
    model = Attends().eval()
    small = remixer.remix(model, mixer, torch.randn(2, 7, WIDTH), max_length=LONG)
    told = " ".join(small.report.extended)
    assert "table.weight (16, 8) to (37, 8): rows 0 to 15 repeated" in told
    assert ("seen (16, 16) to (37, 37): band" in told) is (mixer is None)  # no other reads it any more
    assert small.report.extended[0] in small.report.to_json()
    assert "extended: table.weight" in str(small.report)
    x = torch.randn(2, LONG, WIDTH)
    assert small(x).shape == (2, LONG, WIDTH)
    if mixer != "toeplitz":
        assert_close(small(x[:, :OLD]), model(x[:, :OLD]))
        model.table.weight = nn.Parameter(model.table.weight[torch.arange(LONG) % OLD])
        model.seen = torch.ones(LONG, LONG, dtype=torch.bool).tril()
        assert_close(small(x), model(x))
    small(x).sum().backward()
    assert small.table.weight.grad[OLD:].abs().sum() > 0
