"""No quadratic residue: after a rewrite of all attentions, no family's graph grows faster than its mixers do."""

import pytest
import transformers
from families import FAMILIES
from family import Family
from inputs import CAPTURE, KINDS
from known import KNOWN

import remixer
from remixer.errors import NoAttentionError
from remixer.mixers import LongShort, Toeplitz

# What grows on paper only, by name: strict, so that mending it says so.
ON_PAPER = {
    "xmod": "how many rows speak a language depends on the data, and counts as one more length",
    "layoutlm": "the four sides of a box are captured as one more length",
}
pytestmark = pytest.mark.filterwarnings("ignore")


def case(family: Family) -> object:
    marks = [] if family.quick else [pytest.mark.zoo]
    if (reason := ON_PAPER.get(family.name)) is not None:
        marks.append(pytest.mark.xfail(reason=reason, strict=True))
    return pytest.param(family, marks=marks, id=family.name.replace(" ", "_"))


@pytest.mark.parametrize("family", [case(family) for family in FAMILIES])
def test_what_could_be_replaced_leaves_nothing_quadratic(family):
    form = family.forms[0]
    if not family.exists or (family.name, form) in KNOWN:
        pytest.skip(f"not to be had in transformers {transformers.__version__}")
    model = family.build(form)
    inputs = KINDS[family.inputs](model, CAPTURE).kwargs
    for config, order in ((LongShort(window=8, rank=2, segment=4, memory=4), "n"), (Toeplitz(), "n log n")):
        try:
            report = remixer.remix(model, config, inputs).report
        except NoAttentionError:
            pytest.skip("nothing could be replaced")
        if all(site.status == "replaced" for site in report.sites):
            assert report.order in ("1", "n", order), str(report)
        else:  # what stays has its reason, and what grows is to be blamed on it
            assert all(site.reason for site in report.sites if site.status != "replaced"), str(report)
