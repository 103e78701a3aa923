"""No quadratic residue: after a rewrite of all attentions, neither graph nor memory grows faster than the mixers do."""

from dataclasses import replace

import pytest
import torch
import transformers
from families import FAMILIES
from family import Family
from inputs import CAPTURE, KINDS, Size
from known import KNOWN

import remixer
from remixer import recognising
from remixer.errors import NoAttentionError
from remixer.mixers import LongShort, Toeplitz
from remixer.testing import peak_memory

SHORT, LONG = Size(1, 1024), Size(1, 4096)
TABLES = ("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions")
# What grows on paper only, by name: strict, so that mending it says so.
ON_PAPER = {"siglip2 vision": "rows and columns of patches depend on the data: each counts as a length of its own"}
pytestmark = pytest.mark.filterwarnings("ignore")


def case(family: Family) -> object:
    marks = [] if family.quick else [pytest.mark.zoo]
    if (reason := ON_PAPER.get(family.name)) is not None:
        marks.append(pytest.mark.xfail(reason=reason, strict=True))
    return pytest.param(family, marks=marks, id=family.name.replace(" ", "_"))


def longer(family: Family) -> Family:
    """With room for the longest example in its tables of positions."""
    return replace(family, options={**family.options, **{name: 5000 for name in TABLES if name in family.options}})


def takes(model: torch.nn.Module, inputs: dict[str, object]) -> bool:
    """Whether a model runs on these inputs."""
    try:
        with torch.no_grad():
            model(**inputs)
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return False
    return True


@pytest.mark.parametrize("family", [case(family) for family in FAMILIES])
def test_what_could_be_replaced_leaves_nothing_quadratic(family, monkeypatch):
    form = family.forms[0]
    if not family.exists or (family.name, form) in KNOWN or form in family.refused:
        pytest.skip(f"not to be had in transformers {transformers.__version__}")
    model = longer(family).build(form)
    make = KINDS[family.inputs]
    inputs = make(model, CAPTURE).kwargs
    program = remixer.capture(model, inputs)
    monkeypatch.setattr(recognising, "capture", lambda *_: program)  # once for both
    short, long = (make(model, size).kwargs for size in (SHORT, LONG))
    for config, order in ((LongShort(window=8, rank=2, segment=4, memory=4), "n"), (Toeplitz(), "n log n")):
        try:
            small = remixer.remix(model, config, inputs)
        except NoAttentionError:
            pytest.skip("nothing could be replaced")
        report = small.report
        if all(site.status == "replaced" for site in report.sites):
            assert report.order in ("1", "n", order), str(report)
            if not program.static and (takes(small, long) or takes(model, long)):
                found = peak_memory(small, **long) / peak_memory(small, **short)
                assert found < 6, f"four times the length takes {found:.1f} times the memory"
        else:  # what stays has its reason, and what grows is to be blamed on it
            assert all(site.reason for site in report.sites if site.status != "replaced"), str(report)
