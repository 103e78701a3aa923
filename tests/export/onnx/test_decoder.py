"""Causal models as a prompt's graph and a token's, and what generates with them."""

import functools
import json
import math
import weakref

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import remixer
from remixer import LongShort, Toeplitz
from remixer.export import ExportError, OnnxDecoder, OnnxMismatchError, ProviderError, to_onnx_decoder
from remixer.export.onnx import decoder_exporting, runtime
from remixer.export.onnx.decoder import Graph
from remixer.export.onnx.decoder_shapes import DecoderShapes
from remixer.export.onnx.shared_weights import SMALLEST
from remixer.passes.stream import stream
from remixer.rewrite.program import Program


class Decoder(nn.Module):
    """Four heads on two, learned positions, a head of its own."""

    def __init__(self, longest=512, causal=True):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(40, 32), nn.Embedding(longest, 32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.norm, self.head, self.causal = nn.LayerNorm(32), nn.Linear(32, 40), causal

    def forward(self, input_ids, attention_mask):
        place = torch.arange(input_ids.shape[1])
        hidden = self.embedding(input_ids) + self.positions(place)
        query, key, value = (
            each(hidden).unflatten(-1, (-1, 8)).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
        seen = attention_mask.bool()[:, None, None]
        if self.causal:
            seen = seen & (place <= place[:, None])
        scores = (query @ key.transpose(-1, -2) / math.sqrt(8)).masked_fill(~seen, torch.finfo(torch.float32).min)
        mixed = (F.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)
        return {"logits": self.head(self.norm(hidden + 4 * mixed))}


def remixed(mixer, **options):
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (2, 20))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return remixer.remix(Decoder(**options).eval(), mixer, inputs)


MIXERS = {
    "softmax": "softmax",
    "long_short": LongShort(window=16, segment=4, memory=3, rank=2, maps=True),
    "toeplitz": Toeplitz(),
    "dyadic": LongShort(window=8, segment=2, memory="dyadic", per_size=2),
    "toeplitz_by_head": Toeplitz(per="head", gate="query", normalise=False),
    "weighed": Toeplitz(weigh="key"),
    "weighed_by_head": Toeplitz(weigh="key", per="head", gate="value"),
}
QUICK = 3
EACH = [pytest.param(name, marks=[] if i < QUICK else pytest.mark.slow) for i, name in enumerate(MIXERS)]


LONGEST = 400  # tokens in all


@pytest.fixture(scope="module")
def rewritten():
    """Models by the name of their mixer, each made once."""
    return functools.cache(lambda name: remixed(MIXERS[name]))


@pytest.fixture(scope="module")
def written(rewritten, tmp_path_factory):
    """Models by the name of their mixer, the folder that the graphs are in, and their manifest; each made once."""

    @functools.cache
    def get(name):
        folder = tmp_path_factory.mktemp("decoder") / name
        return rewritten(name), folder, to_onnx_decoder(rewritten(name), folder, length=LONGEST)

    return get


@pytest.fixture(scope="module", params=EACH)
def exported(request, written):
    return written(request.param)


def greedy(model, ids, mask, new):
    for _ in range(new):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask)["logits"]
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


def test_it_generates_what_torch_does(exported):
    small, folder, manifest = exported
    assert sorted(file.name for file in folder.iterdir()) == [
        "decoder.json",
        "prefill.onnx",
        "step.onnx",
        "weights.data",
    ]
    assert json.loads((folder / "decoder.json").read_text()) == json.loads(json.dumps(manifest.to_dict()))
    assert manifest.inputs["input_ids"]["shape"] == ["batch", "length"]
    assert manifest.outputs["logits"]["shape"] == ["batch", 1, 40]
    assert manifest.trials >= 6
    assert manifest.error < 1e-4
    decoder = OnnxDecoder(folder)
    for B, T in ((1, 1), (2, 9), (3, 70)):
        ids, mask = torch.randint(0, 40, (B, T)), torch.ones(B, T, dtype=torch.long)
        mask[0, : T // 3] = 0
        assert torch.equal(decoder.generate(ids, 40, mask=mask), greedy(small, ids, mask, 40))


def test_a_step_costs_no_more_than_its_state(exported):
    """Nothing in the graph of a token is as long as the longest sequence but what the state is."""
    _, _, manifest = exported
    assert not any(400 in entry["shape"] for entry in manifest.state.values())


@pytest.fixture(scope="module")
def softmax(written):
    return written("softmax")[1]


def test_rows_that_end(softmax):
    decoder, ids = OnnxDecoder(softmax), torch.randint(0, 40, (2, 5))
    free = decoder.generate(ids, 20)
    stop = int(free[0, 7])
    ended = decoder.generate(ids, 20, stop=[stop])
    first = (free[0, 5:] == stop).nonzero()[0, 0] + 6
    assert torch.equal(ended[0, :first], free[0, :first])
    assert bool((ended[0, first:] == stop).all())
    assert len(list(decoder.stream(ids[:1], 20, stop=[stop]))) == first - 5


def test_tokens_are_chosen_as_told(softmax):
    decoder, ids = OnnxDecoder(softmax), torch.randint(0, 40, (2, 5))
    least = decoder.generate(ids, 3, choose=lambda logits: logits.argmin(-1))
    assert not torch.equal(least, decoder.generate(ids, 3))


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in:UserWarning")
def test_what_it_refuses_to_generate(softmax, tmp_path):
    decoder, ids = OnnxDecoder(softmax), torch.randint(0, 40, (1, 50))
    with pytest.raises(ValueError, match="50 tokens and 351 new ones are more than the 400"):
        decoder.generate(ids, 351)
    with pytest.raises(ValueError, match="pad prompts on the left"):
        decoder.generate(ids, 1, mask=(torch.arange(50) < 49)[None].long())
    with pytest.raises(ProviderError, match="would run the graph on the CPU and say nothing"):
        OnnxDecoder(softmax, provider="cuda")
    with pytest.raises(ExportError, match=r"there is no decoder\.json in .*to_onnx_decoder"):
        OnnxDecoder(tmp_path)


@pytest.mark.parametrize("length", [3, 65, 129, 257, 400])
def test_no_example_fills_blocks_of_tokens_or_the_state(rewritten, length):
    """Either would be taken for a rule, which longer texts break."""
    shapes = DecoderShapes(stream(Program.of(rewritten("softmax")), length))
    tokens = shapes.inputs[0].shape[1]
    assert tokens % 2 == 1
    assert tokens + 1 < length


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toeplitz", "weighed"])
def test_lengths_one_beyond_a_power_of_two(rewritten, tmp_path, name):
    assert to_onnx_decoder(rewritten(name), tmp_path / "out", length=129).error < 1e-4


def test_both_graphs_call_the_state_and_the_outputs_by_the_same_names(softmax):
    prefill, step = (
        onnx.load(softmax / name, load_external_data=False).graph for name in ("prefill.onnx", "step.onnx")
    )
    names = [value.name for value in step.output]
    assert names[0] == "logits"
    assert all(name.startswith("present.") for name in names[1:])
    assert [value.name for value in prefill.output] == names


def test_both_graphs_read_one_file_of_weights(softmax, rewritten):
    import onnx_ir as ir

    graphs = [ir.load(softmax / name) for name in ("prefill.onnx", "step.onnx")]
    for graph in graphs:
        outside = [one.const_value for one in graph.graph.initializers.values() if one.const_value.nbytes >= SMALLEST]
        assert outside
        assert all(isinstance(tensor, ir.ExternalTensor) for tensor in outside)
    weights = sum(weight.nbytes for weight in rewritten("softmax").parameters())
    assert (softmax / "weights.data").stat().st_size < weights + 4096 * 20


def test_a_table_of_positions_that_ends(tmp_path):
    manifest = to_onnx_decoder(remixed("softmax", longest=48), tmp_path / "out", length=400)
    assert manifest.trials >= 3


def test_weights_in_eight_bits(rewritten, tmp_path):
    manifest = to_onnx_decoder(rewritten("softmax"), tmp_path / "out", length=60, precision="int8")
    assert manifest.effect["cosine"] > 0.99
    assert "MatMulInteger" in manifest.nodes or "DynamicQuantizeMatMul" in manifest.nodes
    files = ["decoder.json", "prefill.onnx", "step.onnx", "weights.data"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == files
    decoder = OnnxDecoder(tmp_path / "out")
    assert decoder.generate(torch.randint(0, 40, (2, 9)), 5).shape == (2, 14)


@pytest.mark.parametrize("name", ["long_short", pytest.param("toeplitz", marks=pytest.mark.slow)])
def test_graphs_for_cuda_run_there_as_a_whole(rewritten, monkeypatch, tmp_path, name):
    monkeypatch.setattr(decoder_exporting, "check_install", lambda provider: None)
    monkeypatch.setitem(runtime.PROVIDERS, "cuda", "CPUExecutionProvider")
    monkeypatch.setitem(runtime._OPTIONS, "cuda", {})
    manifest = to_onnx_decoder(rewritten(name), tmp_path / "decoder", length=60, provider="cuda")
    assert [each["problems"] for each in manifest.cuda] == [[], []]


def test_a_wrong_step_is_noticed_and_leaves_nothing(rewritten, monkeypatch, tmp_path):
    right = Graph.run

    def wrong(self, inputs, state):
        outputs, new = right(self, inputs, state)
        return outputs, new if state is None else state  # forgets the token

    monkeypatch.setattr(Graph, "run", wrong)
    with pytest.raises(OnnxMismatchError, match=r"differ from torch by .* in logits, .* at token \d+ of 1 x 12 tokens"):
        to_onnx_decoder(rewritten("softmax"), tmp_path / "out", length=60)
    assert not list(tmp_path.iterdir())


def test_only_one_of_the_two_graphs_is_in_memory_while_they_are_tried(rewritten, monkeypatch, tmp_path):
    alive, most, start = weakref.WeakSet(), [], runtime.Session.__init__

    def counted(self, *args, **kwargs):
        start(self, *args, **kwargs)
        alive.add(self._session)
        most.append(len(alive))

    monkeypatch.setattr(runtime.Session, "__init__", counted)
    to_onnx_decoder(rewritten("softmax"), tmp_path / "out", length=60)
    assert most == [1, 1]


def test_what_is_refused_before_any_work(rewritten, monkeypatch, tmp_path):
    monkeypatch.setattr(decoder_exporting, "exported", None)  # never reached
    with pytest.raises(ValueError, match=r"at least 2, got 1"):
        to_onnx_decoder(rewritten("softmax"), tmp_path / "out", length=1)
    with pytest.raises(ValueError, match=r"there is no folder"):
        to_onnx_decoder(rewritten("softmax"), tmp_path / "none" / "out", length=9)
    with pytest.raises(ExportError, match=r"float32 or int8 so far"):
        to_onnx_decoder(rewritten("softmax"), tmp_path / "out", length=60, provider="cuda", precision="float16")
    with pytest.raises(ExportError, match="tokens to come"):
        to_onnx_decoder(remixed("softmax", causal=False), tmp_path / "out", length=60)
    with pytest.raises(ExportError, match="'frequency_toeplitz' depend on the length"):
        to_onnx_decoder(remixed("frequency_toeplitz"), tmp_path / "out", length=60)
    with pytest.raises(ExportError, match=r"takes what remixer\.remix gave"):
        to_onnx_decoder(nn.Linear(2, 2), tmp_path / "out", length=60)
    with pytest.raises(ExportError, match=r"with retrieve=2 it takes tokens in one by one.*retrieve=0"):
        to_onnx_decoder(remixed(LongShort(window=8, segment=4, retrieve=2)), tmp_path / "out", length=60)


class Reads(nn.Module):
    """A causal attention, then one to another sequence."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.read, self.head = (
            nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 32), nn.Linear(16, 20)
        )  # fmt: skip

    def forward(self, ids, states):
        query, key, value = self.mix(self.embedding(ids)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        query = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        key, value = self.read(states).unflatten(-1, (2, 2, 8)).permute(2, 0, 3, 1, 4)
        return self.head(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def test_a_decoder_behind_an_encoder_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(decoder_exporting, "exported", None)  # never reached
    small = remixer.remix(Reads().eval(), "softmax", (torch.randint(0, 20, (2, 9)), torch.randn(2, 14, 16)))
    with pytest.raises(ExportError, match=r"reads states beside its tokens: .*remixer\.generate"):
        to_onnx_decoder(small, tmp_path / "out", length=20)
    states, ids = torch.randn(1, 30, 16), torch.randint(0, 20, (1, 12))
    decoder = remixer.Decoder(small, 12)
    logits, state = decoder.prefill(ids[:, :5], source={"states": states})
    more, _ = decoder.step(ids[:, 5:], state)
    torch.testing.assert_close(torch.cat([logits, more], 1), small(ids, states)[:, 4:], rtol=0, atol=1e-5)
