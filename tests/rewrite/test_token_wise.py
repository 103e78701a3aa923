"""Runs of token-wise operators, and models that go over their tokens in parts."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import remixer
from remixer import remixed as remixed_module
from remixer.mixers import memory_pool
from remixer.rewrite import token_wise
from remixer.rewrite.capture import capture
from remixer.rewrite.token_wise import by_parts, runs


class Block(nn.Module):
    """What follows an attention, and what precedes the next."""

    def __init__(self, width=16):
        super().__init__()
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 40), nn.Linear(40, width)
        self.gate, self.dropout = nn.Linear(width, 40), nn.Dropout(0.1)
        self.norm, self.last = nn.LayerNorm(width), nn.RMSNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, mixed, x):
        x = self.norm(x + self.dropout(self.out(mixed)))
        x = self.last(x + self.down(F.silu(self.gate(x)) * self.up(x)) / 2.0)
        return self.query(x), self.key(x)


def captured(function, *inputs):
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 16))

        def forward(self, *inputs):
            return function(self, *inputs)

    return capture(Module().eval(), inputs).graph_module


@pytest.fixture
def small_parts(monkeypatch):
    """Everything counts as long, and a part has few tokens."""
    monkeypatch.setattr(remixed_module, "LONG", 0)
    monkeypatch.setattr(token_wise, "WORTH", 0)
    monkeypatch.setattr(token_wise, "PART", 1000)


def x(*shape):
    return torch.randn(*shape)


def test_one_run_reaches_from_one_mixer_to_the_next():
    module = capture(Block().eval(), (x(2, 9, 16), x(2, 9, 16))).graph_module
    found = by_parts(module)
    assert found is not None
    without = copy.deepcopy(module.graph)
    for node in without.find_nodes(op="call_module"):
        node.replace_all_uses_with(node.args[0])
        without.erase_node(node)
    *alone, run = sorted(runs(without), key=len)
    assert [[node.target for node in each] for each in alone] == [[torch.ops.aten.linear.default]] * 2, "query and key"
    assert len(run) == 11, "two norms, four linear layers, two residuals, silu, a product, a quotient"
    assert "rms_norm" in str(run[-1].target), "two read what it gives"


@pytest.mark.parametrize("shape", [(1, 1), (1, 101), (2, 9), (3, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parts_give_what_the_whole_gives(shape, dtype, small_parts):
    block = Block().eval().to(dtype)
    module = capture(block, (x(2, 9, 16).to(dtype), x(2, 9, 16).to(dtype))).graph_module
    inputs = x(*shape, 16).to(dtype), x(*shape, 16).to(dtype)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    with torch.no_grad():
        for given, wanted in zip(by_parts(module)(module, *inputs), block(*inputs), strict=True):
            torch.testing.assert_close(given, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("function", "count"), [
    (lambda self, a: torch.tanh(torch.relu(a)), 1),
    (lambda self, a: torch.relu(a).cumsum(1), 0),
    (lambda self, a: torch.relu(F.layer_norm(a, (9, 16))), 0),
    (lambda self, a: torch.relu(a.mean(1, keepdim=True)), 0),
    (lambda self, a: torch.relu(a.mean(-1, keepdim=True)), 1),
    (lambda self, a: torch.relu(a.mean(-1)), 0),
    (lambda self, a: torch.relu(torch.tanh(a)) + torch.tanh(a).cumsum(1), 1),
    (lambda self, a: F.linear(torch.relu(a), torch.tanh(torch.relu(self.weight))), 2),
    (lambda self, a: F.linear(*(torch.relu(a[0]),) * 2), 0),
    (lambda self, a: torch.relu(a.transpose(1, 2)) + 1.0, 1),
])  # fmt: skip
def test_what_is_a_run_and_what_is_not(function, count, small_parts):
    module = captured(function, x(2, 9, 16))
    found = by_parts(module)
    assert len(runs(module.graph)) == count
    assert (found is not None) == (count > 0)
    if found is not None:
        given = x(2, 9, 16)
        torch.testing.assert_close(found(module, given), module(given))


@pytest.mark.parametrize("place", ["in between", "behind"])
def test_what_is_written_to_in_between_is_read_before(place, small_parts):
    aten = torch.ops.aten
    graph = fx.Graph()
    given = graph.placeholder("given")
    changed = graph.call_function(aten.clone.default, (given,))
    read = graph.call_function(aten.tanh.default, (changed,))
    if place == "in between":
        graph.call_function(aten.add_.Tensor, (changed, 1.0))
    end = graph.call_function(aten.relu.default, (read,))
    if place == "behind":
        graph.call_function(aten.add_.Tensor, (changed, 1.0))
    graph.output((end, changed))
    module = fx.GraphModule({}, graph)
    assert len(runs(graph)) == (place == "behind")
    value = x(2, 9, 16)
    given, wanted = (by_parts(module) or type(module).forward)(module, value), module(value)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("other", [(1, 1, 16), (2, 1, 16), (9, 16), (16,), (2, 9, 1), (2, 1, 1)])
def test_what_is_broadcast(other, small_parts):
    module = captured(lambda self, a, b: torch.relu(torch.tanh(a) * b + self.weight[0]), x(2, 9, 16), x(*other))
    given = x(2, 9, 16), x(*other)
    torch.testing.assert_close(by_parts(module)(module, *given), module(*given))


def test_a_length_is_no_tensor(small_parts):
    module = captured(lambda self, a: torch.relu(a / a.shape[1]) * a.shape[1], x(2, 9, 16))
    given = x(2, 31, 16)
    torch.testing.assert_close(by_parts(module)(module, given), torch.relu(given))


def test_a_weight_that_is_also_added_stays_whole(small_parts):
    module = captured(lambda self, a: torch.relu(F.linear(a, self.weight) + self.weight), x(2, 16, 16))
    given = x(2, 16, 16)
    torch.testing.assert_close(by_parts(module)(module, given), module(given))


@pytest.mark.parametrize("shape", [(1, 61), (2, 61), (3, 1)])
def test_embeddings_are_looked_up_in_parts(shape, small_parts):
    class Embeddings(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places, self.norm = nn.Embedding(50, 16), nn.Embedding(64, 16), nn.LayerNorm(16)

        def forward(self, ids):
            return self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))

    def ids(*shape):
        return torch.randint(50, shape)

    module = capture(Embeddings().eval(), (ids(2, 9),)).graph_module
    made = []

    def empty(shape, dtype):
        made.append(shape)
        return torch.empty(shape, dtype=dtype)

    given = ids(*shape)
    torch.testing.assert_close(by_parts(module, empty)(module, given), module(given))
    assert made == ([] if shape[1] == 1 else [(*shape, 16)]), "one tensor has them all, and nothing else does"


def test_a_table_that_is_also_added_stays_whole(small_parts):
    module = captured(
        lambda self, ids: torch.relu(F.embedding(ids, self.weight) + self.weight), torch.randint(16, (16,))
    )
    assert len(runs(module.graph)[0]) == 3
    given = torch.randint(16, (16,))
    torch.testing.assert_close(by_parts(module)(module, given), module(given))


@pytest.mark.parametrize("end", ["linear", "linear without bias", "sum", "sum with a number", "difference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 61), (2, 61)])
def test_what_ends_a_run_is_written_where_it_belongs(end, dtype, shape, small_parts):
    def function(self, a):
        return {
            "linear": lambda: F.linear(torch.tanh(a), self.weight, self.weight[0]),
            "linear without bias": lambda: F.linear(torch.tanh(a), self.weight),
            "sum": lambda: torch.add(torch.tanh(a), self.weight[0], alpha=3),
            "sum with a number": lambda: torch.tanh(a) + 1.5,
            "difference": lambda: torch.tanh(a) - a,
        }[end]()

    module = captured(function, x(2, 9, 16)).to(dtype)
    given = x(*shape, 16).to(dtype)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    with torch.no_grad():
        torch.testing.assert_close(by_parts(module)(module, given), module(given), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 61), (2, 61)])
def test_autocast_counts_in_parts(shape, small_parts):
    module = captured(lambda self, a: F.linear(torch.tanh(a), self.weight), x(2, 9, 16))
    given = x(*shape, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made, wanted = by_parts(module)(module, given), module(given)
    assert made.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(made, wanted, rtol=2e-2, atol=2e-2)


def encoder():
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 64, batch_first=True, dropout=0.1), 2, enable_nested_tensor=False
    ).eval()


def test_a_rewritten_model_goes_over_long_inputs_in_parts(small_parts, monkeypatch):
    small = remixer.remix(encoder(), "long_short", x(2, 30, 16))
    given = x(1, 61, 16)
    with torch.no_grad():
        by_halves = small(given)
        assert small._by_parts is not None
        monkeypatch.setattr(remixed_module, "LONG", 10**9)
        torch.testing.assert_close(by_halves, small(given))


def test_what_a_model_gave_stays_when_it_runs_again(small_parts, monkeypatch):
    monkeypatch.setattr(memory_pool, "LARGE", 0)
    small = remixer.remix(encoder(), "long_short", x(2, 30, 16))
    long, other = x(1, 61, 16), x(1, 61, 16)
    with torch.no_grad():
        first = small(long)
        kept = first.clone()
        second = small(other)
        torch.testing.assert_close(first, kept, rtol=0, atol=0)
        monkeypatch.setattr(remixed_module, "LONG", 10**9)
        torch.testing.assert_close(first, small(long))
        torch.testing.assert_close(second, small(other))


def test_each_output_has_memory_of_its_own(small_parts, monkeypatch):
    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = encoder().layers

        def forward(self, given):
            states = [given]
            for layer in self.layers:
                states.append(layer(states[-1]))
            return states

    monkeypatch.setattr(memory_pool, "LARGE", 0)
    for inference in (torch.no_grad, torch.inference_mode):
        small = remixer.remix(All().eval(), "toeplitz", x(2, 30, 16))
        given = x(2, 61, 16)
        with inference():
            in_parts = small(given)
            assert small._by_parts is not None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(remixed_module, "LONG", 10**9)
                torch.testing.assert_close(in_parts, small(given))


@pytest.mark.parametrize("shape", [(1, 61), (2, 61)])
def test_parts_of_linear_layers_round_as_the_whole_does(shape, small_parts):
    block = Block().eval().bfloat16()
    module = capture(block, (x(2, 9, 16).bfloat16(), x(2, 9, 16).bfloat16())).graph_module
    inputs = x(*shape, 16).bfloat16(), x(*shape, 16).bfloat16()
    with torch.no_grad():
        for given, wanted in zip(by_parts(module)(module, *inputs), module(*inputs), strict=True):
            torch.testing.assert_close(given, wanted, rtol=0, atol=0)


def test_weights_loaded_later_count(small_parts):
    small, other = (remixer.remix(encoder(), "long_short", x(2, 30, 16)) for _ in range(2))
    given = x(1, 61, 16)
    with torch.no_grad():
        small(given)
        small.load_state_dict(other.state_dict())
        torch.testing.assert_close(small(given), other(given))
        torch.testing.assert_close(small.double()(given.double()).float(), other(given), rtol=1e-4, atol=1e-4)


def test_copies_and_pickles_go_over_long_inputs_too(small_parts):
    small = remixer.remix(encoder(), "long_short", x(2, 30, 16))
    given = x(1, 61, 16)
    with torch.no_grad():
        wanted = small(given)
        for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            assert "_by_parts" not in other.__dict__
            torch.testing.assert_close(other(given), wanted)
            assert other._by_parts is not None


def test_a_changed_graph_is_looked_at_again(small_parts):
    small = remixer.remix(encoder(), "long_short", x(2, 30, 16))
    given = x(1, 61, 16)
    with torch.no_grad():
        before = small(given)
        (output,) = small.graph.find_nodes(op="output")
        with small.graph.inserting_before(output):
            doubled = small.graph.call_function(torch.add, (output.args[0][0], output.args[0][0]))
        output.args = ((doubled,),)
        small.recompile()
        torch.testing.assert_close(small(given), 2.0 * before)


@pytest.mark.parametrize("how", ["training", "gradients", "hook", "short"])
def test_where_a_model_runs_in_one_piece(how, small_parts, monkeypatch):
    small = remixer.remix(encoder(), "long_short", x(2, 30, 16))
    if how == "training":
        small.train()
    if how == "hook":
        small.register_forward_hook(lambda module, given, out: out * 0.0)
    if how == "short":
        monkeypatch.setattr(remixed_module, "LONG", 61 * 16 // remixed_module.FEATURES + 1)
    with torch.set_grad_enabled(how == "gradients"):
        out = small(x(1, 61, 16))
    assert "_by_parts" not in small.__dict__
    assert how != "hook" or not out.any()
    assert how != "gradients" or out.requires_grad


def test_compiled_and_exported_graphs_are_whole_and_take_any_length():
    small = remixer.remix(encoder(), "toeplitz", x(2, 30, 16))
    given = x(1, 4 * remixed_module.LONG + 1, 16)  # as long as what goes in parts
    with torch.no_grad():
        wanted = small(given)
        compiled = torch.compile(small, backend="eager", dynamic=True, fullgraph=True)
        dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        exported = torch.export.export(small, (x(2, 30, 16),), dynamic_shapes=(dynamic,)).module()
        for run in (compiled, exported):
            run(x(2, 30, 16))
            torch.testing.assert_close(run(given), wanted, rtol=1e-4, atol=1e-4)
