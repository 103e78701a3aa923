"""Every family whose positions end takes longer inputs after `max_length`, and gives what longer tables would give."""

from dataclasses import replace

import pytest
import torch
import transformers
from families import FAMILIES
from family import Family
from inputs import CAPTURE, KINDS, Size
from known import KNOWN
from torch.utils import _pytree as pytree

import remixer
from remixer.errors import NoAttentionError
from remixer.passes.errors import ExtendError
from remixer.passes.extend_positions import ExtendPositions
from remixer.testing import assert_close

LONG = 560
TABLES = ("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions")
# The first row that is a position's, where it isn't 0: behind that of padding, or of two that are never used.
FIRST = dict.fromkeys(
    ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "xmod", "i-bert",
     "markuplm", "luke", "esm absolute", "lilt", "roberta decoder", "prophetnet"), 1,
) | dict.fromkeys(("opt", "biogpt", "mpnet", "bart", "mbart", "plbart", "mvp", "bart decoder"), 2)  # fmt: skip
# What else depends on the longest position: distances that are as far as tables of distances go.
SPAN = {"deberta": {"max_relative_positions": 128}, "deberta-v2": {"max_relative_positions": 128}}
# With 0 for padding, the number that says of its sounds that a frame exists, its positions would count padding only.
NUMBERS = {"speech-to-text": {"pad_token_id": 1, "bos_token_id": 0}}
# Its decoder makes a mask for 128 tokens with operators of the graph, not with a buffer.
REFUSED = {"prophetnet": "Something in it ends that could not be found"}
# One of each kind of positions: all others are slow.
QUICK = {("bert", "softmax"), ("roberta", "softmax"), ("opt", "softmax"), ("gptj", "softmax"), ("xglm", "softmax"),
         ("gpt-neo", None)}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")


def case(family: Family, mixer: str | None) -> object:
    marks = [] if (family.name, mixer) in QUICK else [pytest.mark.slow]
    return pytest.param(family, mixer, marks=marks, id=f"{family.name.replace(' ', '_')}-{mixer or 'kept'}")


def takes(model: torch.nn.Module, inputs: dict[str, object]) -> bool:
    try:
        with torch.no_grad():
            model(**inputs)
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return False
    return True


def roomy(options: dict[str, object]) -> dict[str, object]:
    """The same options with room for longer inputs, in those of parts of a model too."""
    return {
        name: roomy(value) if isinstance(value, dict) else 1024 if name in TABLES else value
        for name, value in options.items()
    }


def with_longer_tables(family: Family, model: torch.nn.Module) -> torch.nn.Module:
    """The family's own model with room for longer inputs, its tables those of the other again and again."""
    room = {"max_position_embeddings": 1024, **roomy(family.options)}
    longer = replace(family, options={**room, **SPAN.get(family.name, {})}).build(family.forms[0])
    weights, first = dict(model.named_parameters()), FIRST.get(family.name, 0)
    with torch.no_grad():
        for name, table in longer.named_parameters():
            old = weights[name]
            if old.shape == table.shape:
                table.copy_(old)
            else:
                table[:first] = old[:first]
                table[first:] = old[first:][torch.arange(len(table) - first) % (len(old) - first)]
    return longer


@pytest.mark.parametrize(
    ("family", "mixer"), [case(family, mixer) for family in FAMILIES for mixer in ("softmax", None)]
)
def test_longer_inputs_are_taken_with_padding(family, mixer):
    form = family.forms[-1 if mixer is None else 0]
    if not family.exists or (family.name, form) in KNOWN or form in family.refused or family.one_batch:
        pytest.skip(f"not to be had in transformers {transformers.__version__}")
    family = replace(family, options={**family.options, **NUMBERS.get(family.name, {})})
    model = family.build(form)
    make = KINDS[family.inputs]
    example, short, long = (make(model, size) for size in (CAPTURE, Size(2, 33, "right"), Size(2, LONG, "right")))
    if example.kwargs.keys() == {"pixel_values"} or all(
        one.shape == other.shape for one, other in zip(example.kwargs.values(), long.kwargs.values(), strict=True)
    ):
        pytest.skip("its inputs have one size")
    shapes = [size for value in long.kwargs.values() for size in value.shape[1:2]]
    if family.name in REFUSED:
        with pytest.raises(ExtendError, match=REFUSED[family.name]):
            remixer.remix(model, mixer, example.kwargs, max_length=max(shapes))
        return
    try:
        small = remixer.remix(model, mixer, example.kwargs, max_length=max(shapes))
    except NoAttentionError:
        small = ExtendPositions(max(shapes))(remixer.capture(model, example.kwargs)).graph_module
    with torch.no_grad():
        compare(small(**short.kwargs), model(**short.kwargs), short)
        found = small(**long.kwargs)
        if takes(model, long.kwargs):  # it needs no table, or makes a longer one by itself
            compare(found, model(**long.kwargs), long)
        else:
            compare(found, with_longer_tables(family, model)(**long.kwargs), long)


def compare(found, expected, example):
    for got, want in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        exist = example.exist.get(want.shape[1]) if want.dim() > 1 else None
        assert_close(got, want, where=exist)
