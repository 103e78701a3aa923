"""From models of every kind to a Program: what is dynamic, what is kept, and what is refused with a reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from remixer.rewrite.capture import capture
from remixer.rewrite.dropout import Dropout, DropoutProbability
from remixer.rewrite.errors import CaptureError
from remixer.testing import assert_close


class Small(nn.Module):
    """A bit of everything: tied weights, both kinds of buffers, dropout, an in-place operator, a cast."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((8,), 2.0))
        self.register_buffer("shift", torch.full((8,), 3.0), persistent=False)

    def forward(self, ids, mask=None):
        x = self.embed(ids).mul_(self.scale).add_(self.shift)
        if mask is not None:
            x = x * mask[..., None].to(x.dtype)
        return {"logits": self.head(self.drop(x)), "x": x}


class Attention(nn.Module):
    def __init__(self, p=0.25):
        super().__init__()
        self.p, self.project = p, nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.project(x)[:, None].chunk(3, -1)
        p = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)[:, 0]


def ids(batch=2, length=7):
    return torch.arange(batch * length).view(batch, length) % 20


def test_batch_and_length_are_dynamic():
    model = Small().eval()
    program = capture(model, {"ids": ids(), "mask": torch.ones(2, 7, dtype=torch.long)})
    assert program.static == ()
    assert program.batch
    assert program.length
    assert not program.batch & program.length
    for shape in ((1, 1), (1, 7), (3, 1), (5, 33)):
        inputs = {"ids": ids(*shape), "mask": torch.ones(shape, dtype=torch.long)}
        assert_close(program.graph_module(**inputs), model(**inputs))


@pytest.mark.parametrize("inputs", [ids(), (ids(),), [ids()], {"ids": ids()}, ((ids(),), {})])
def test_inputs_come_as_a_tensor_a_tuple_or_a_dict(inputs):
    program = capture(Small().eval(), inputs)
    result = program.graph_module(*program.args, **program.kwargs)
    assert set(result) == {"logits", "x"}


def test_a_batch_of_one_is_doubled_and_stays_dynamic():
    model = Small().eval()
    program = capture(model, (ids(1),))
    assert program.static == ()
    assert_close(program.graph_module(ids(4, 9)), model(ids(4, 9)))


def test_a_length_of_one_is_reported_as_static():
    program = capture(Small().eval(), (ids(2, 1),))
    (static,) = program.static
    assert str(static).startswith("ids dim 1 is fixed at 1: the example's size 1 can't be told from a constant")


def test_a_size_that_the_model_fixes_is_reported():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.view(x.shape[0], 6, 2)

    (static,) = capture(Fixed(), torch.zeros(3, 12)).static
    assert str(static) == "x dim 1 is fixed at 12: the model's own code allows this size only"


def test_names_ties_and_buffers_stay_as_they_are():
    model = Small().eval()
    captured = capture(model, (ids(),)).graph_module
    assert captured.state_dict().keys() == model.state_dict().keys()
    assert captured.embed.weight is captured.head.weight
    assert captured.embed.weight is model.embed.weight
    assert "shift" in dict(captured.named_buffers())
    assert "shift" not in captured.state_dict()


def test_the_model_is_left_as_it_was():
    model = Small().train()
    model.drop.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capture(model, (ids(),))
    assert (model.training, model.drop.training, model.embed.training) == (True, False, True)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_nothing_impure_is_left():
    graph = capture(Small().eval(), (ids(),)).graph
    assert not [node.name for node in graph.nodes if "assert" in str(node.target) or "guards" in node.name]
    assert not [node.name for node in graph.nodes if str(node.target).endswith(("_.Tensor", "_.Scalar"))]


def test_dropout_follows_the_mode():
    captured = capture(Small().eval(), (ids(),)).graph_module
    (dropout,) = [module for module in captured.modules() if isinstance(module, Dropout)]
    assert dropout.p == 0.5
    assert torch.equal(captured(ids())["logits"], captured(ids())["logits"])
    captured.train()
    assert not torch.equal(captured(ids())["logits"], captured(ids())["logits"])


def test_attention_dropout_follows_the_mode():
    captured = capture(Attention().eval(), (torch.randn(2, 5, 8),)).graph_module
    (dropout,) = [module for module in captured.modules() if isinstance(module, DropoutProbability)]
    assert dropout.p == 0.25
    x = torch.randn(2, 5, 8)
    assert torch.equal(captured(x), captured(x))
    assert not torch.equal(captured.train()(x), captured(x))


def test_dropout_that_is_off_in_training_stays_off():
    class Off(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=False)

    captured = capture(Off(), (torch.randn(2, 5),)).graph_module.train()
    x = torch.randn(2, 5)
    assert torch.equal(captured(x), x)


@pytest.mark.parametrize("grad", [False, True])
def test_an_exported_program(grad):
    class WithoutGrad(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

        def forward(self, x):
            with torch.no_grad():
                turned = x.cos() * 2
                with torch.enable_grad():
                    turned = turned + x.sin()
            return self.drop(self.linear(x) + turned)

    model = WithoutGrad().eval()
    dims = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(model, (torch.randn(2, 5, 8),), dynamic_shapes=(dims,), strict=False)
    program = capture(exported)
    assert not [node for node in program.graph.nodes if "wrap_with" in str(node.target)]
    x = torch.randn(3, 9, 8)
    assert_close(program.graph_module(x), model(x))
    assert any(isinstance(module, Dropout) for module in program.graph_module.modules())


def test_an_exported_program_with_inputs_of_its_own():
    exported = torch.export.export(Small().eval(), (), {"ids": ids(), "mask": torch.ones(2, 7)}, strict=False)
    with pytest.raises(CaptureError, match=r"don't fit the exported program: it takes ids, mask by name"):
        capture(exported, {"ids": ids()})
    program = capture(exported, {"ids": ids() + 1, "mask": torch.ones(2, 7)})
    assert torch.equal(program.kwargs["ids"], ids() + 1)


def test_an_exported_program_without_inputs():
    exported = torch.export.export(Attention().eval(), (torch.randn(2, 5, 8),), strict=False)
    exported._example_inputs = None
    with pytest.raises(CaptureError, match="holds no example inputs"):
        capture(exported)


def test_what_symbolic_trace_gave():
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).eval()
    program = capture(fx.symbolic_trace(model), (torch.randn(2, 5, 8),))
    x = torch.randn(3, 4, 8)
    assert_close(program.graph_module(x), model(x))


@pytest.fixture(scope="module")
def bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    return BertModel(config).eval()


def test_the_output_structure_is_kept(bert):
    inputs = {"input_ids": ids(), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    program = capture(bert, inputs)
    result = program.graph_module(**inputs)
    expected = bert(**inputs)
    assert type(result) is type(expected)
    assert_close(result.last_hidden_state, expected.last_hidden_state)
    assert program.graph_module.state_dict().keys() == bert.state_dict().keys()


def test_the_cache_is_switched_off_and_gone_from_the_signature():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    model = LlamaForCausalLM(config).eval()
    program = capture(model, {"input_ids": ids()})
    placeholders = [node.target for node in program.graph.find_nodes(op="placeholder")]
    assert placeholders == ["input_ids"]
    assert_close(program.graph_module(input_ids=ids(1, 3)).logits, model(ids(1, 3), use_cache=False).logits)
    chosen = capture(model, {"input_ids": ids(), "use_cache": False})
    assert "use_cache" in chosen.kwargs


def test_random_numbers_in_training_are_left_out_with_a_note():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) if self.training else x * 2

    program = capture(Noisy(), (torch.randn(2, 5),))
    assert program.notes == (
        "training draws random numbers other than dropout: exported in eval, attention dropout is lost",
    )
    assert_close(program.graph_module(torch.ones(3, 4)), torch.full((3, 4), 2.0))


def test_training_that_computes_something_else_is_left_out_with_a_note():
    class Two(nn.Module):
        def forward(self, x):
            return x * 3 if self.training else x * 2

    program = capture(Two(), (torch.ones(2, 5),))
    assert "training computes something else than eval" in program.notes[0]
    assert_close(program.graph_module(torch.ones(1, 1)), torch.full((1, 1), 2.0))


def test_training_that_cannot_be_exported_is_left_out_with_a_note():
    class LayerDrop(nn.Module):
        def forward(self, x):
            return x * 3 if self.training and x.sum() > 0 else x * 2

    program = capture(LayerDrop(), (torch.ones(2, 5),))
    assert "torch.export refuses the model in training" in program.notes[0]


def test_batch_norm_uses_its_running_statistics():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)).train()
    before = model[0].running_mean.clone()
    program = capture(model, (torch.randn(3, 4),))
    assert torch.equal(model[0].running_mean, before)
    x = torch.randn(5, 4)
    assert_close(program.graph_module(x), model.eval()(x))


def test_writes_into_views_are_kept():
    """BEiT builds its index so: the writes have no users, and nothing but them fills the table."""

    class Index(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(8))

        def forward(self, x):
            index = torch.zeros(4, 4, dtype=torch.long)
            index[1:, 1:] = torch.arange(9).view(3, 3) % 8
            index[0, :].fill_(7)
            index[:, 0].copy_(torch.tensor([6, 5, 4, 3]))
            return x[:, :4, None] + self.table[index]

    model = Index().eval()
    x = torch.randn(2, 5)
    assert_close(capture(model, (torch.randn(3, 6),)).graph_module(x), model(x))


def test_bfloat16():
    model = Small().bfloat16().eval()
    captured = capture(model, (ids(),)).graph_module
    assert captured(ids())["logits"].dtype == torch.bfloat16
    assert_close(captured(ids(1, 5)), model(ids(1, 5)))


@pytest.mark.parametrize(("inputs", "message"), [
    (None, "capture needs example inputs"),
    ({"tokens": ids()}, r"don't fit Small.forward: .*'ids'.* It takes \(ids, mask=None\)"),
    (3, "inputs must be a dict by name, a tuple or one tensor, got int"),
    ({"ids": [1, 2]}, "the inputs for Small hold no tensor"),
    ({"ids": torch.randn(2, 7)}, r"the inputs don't fit Small: it raises .*Its forward takes \(ids, mask=None\)"),
    ({"ids": ids(), "mask": torch.ones(2, 6)}, "the inputs don't fit Small: it raises RuntimeError: The size"),
])  # fmt: skip
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(CaptureError, match=message):
        capture(Small(), inputs)


def test_a_model_that_export_refuses():
    class Branch(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(
        CaptureError, match=r"torch.export refuses Branch: .*What to try: its code branches on a tensor's values"
    ):
        capture(Branch(), (torch.randn(2, 5),))


def test_a_graph_that_gives_other_outputs_is_refused():
    class Counting(nn.Module):
        count = 0

        def forward(self, x):
            type(self).count += 1
            return x * self.count

    with pytest.raises(CaptureError, match=r"gives other outputs than Counting: output 0 differs by"):
        capture(Counting(), (torch.ones(2, 5),))


@pytest.mark.filterwarnings("ignore")  # torch warns of what it does there
@pytest.mark.parametrize(("transform", "told"), [
    (lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1], "it raises RuntimeError"),
    (lambda x: torch.func.grad(lambda y: y.sin().sum())(x), "output 0 has no values"),
])  # fmt: skip
def test_a_graph_that_can_not_be_run_is_refused(transform, told):
    class Transformed(nn.Module):
        def forward(self, x):
            return transform(x)

    with pytest.raises(CaptureError, match=rf"other outputs than Transformed: {told}.*What to try"):
        capture(Transformed(), (torch.ones(2, 5),))


def test_a_model_that_export_refuses_in_training_prints_nothing(capfd):
    class Counting(nn.Module):
        def forward(self, x):
            return x * x.sum().item() if self.training and x.sum().item() > 0 else x * 2

    capture(Counting(), (torch.ones(2, 5),))
    assert capfd.readouterr() == ("", "")


class Boxed(nn.Module):
    def forward(self, ids, extra):
        return ids * extra.sum(-1)


@pytest.mark.parametrize(("last", "counts"), [(4, False), (7, True)])
def test_the_sides_of_a_box_are_no_length(last, counts):
    program = capture(Boxed(), (ids(), torch.ones(2, 7, last, dtype=torch.long)))
    box = program.graph.find_nodes(op="placeholder")[1].meta["val"]
    assert isinstance(box.shape[1], torch.SymInt)
    assert isinstance(box.shape[2], torch.SymInt) == counts
    assert program.static == ()
    more = ids(3, 9), torch.ones(3, 9, last, dtype=torch.long)
    assert_close(program.graph_module(*more), Boxed()(*more))
