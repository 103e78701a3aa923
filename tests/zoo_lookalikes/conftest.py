"""How a look-alike is checked: number of attentions, spec of each, and the outputs at sizes not seen."""

import sys
from pathlib import Path

import pytest
import torch

import remixer
from remixer.testing import assert_close

sys.path.insert(0, str(Path(__file__).parent))  # for what test files share
UNSEEN = [(1, 1), (3, 7), (2, 30)]


def spec_matches(spec, expected):
    """Names of the fields that are not as expected."""
    return {
        name: getattr(spec, name)
        for name, value in expected.items()
        if getattr(spec, name) != (pytest.approx(value) if isinstance(value, float) else value)
    }


@pytest.fixture
def recognised():
    """Check that all attentions are understood and rewrite exactly.

    `inputs(batch, length)` makes inputs; `specs` is one dict for all attentions, or one each.
    """

    def check(model, inputs, count, specs, sizes=UNSEEN):
        small = remixer.remix(model.eval(), "softmax", inputs(2, 9))
        sites = small.report.sites
        assert len(sites) == count, small.report
        assert all(site.status == "replaced" for site in sites), [(site.name, site.reason) for site in sites]
        each = specs if isinstance(specs, list) else [specs] * count
        wrong = [spec_matches(site.spec, expected) for site, expected in zip(sites, each, strict=True)]
        assert wrong == [{}] * count, [(site.name, site.reason) for site in sites]
        same(small, model, inputs, sizes)
        return sites

    return check


@pytest.fixture
def kept():
    """Check that attentions are kept for a reason with these words, and that a rewrite of the rest is exact."""

    def check(model, inputs, count, words, sizes=UNSEEN):
        report = remixer.explain(model.eval(), inputs(2, 9))
        assert [site.status for site in report.sites] == ["missed"] * count, report
        assert all(words in site.reason for site in report.sites), [site.reason for site in report.sites]

    return check


def same(small, model, inputs, sizes):
    for batch, length in sizes:
        torch.manual_seed(1)
        given = inputs(batch, length)
        with torch.no_grad():
            assert_close(small(**given), model(**given))
