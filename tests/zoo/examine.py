"""What remixer makes of a family, held against what is expected of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from inputs import CAPTURE, KINDS, UNSEEN, Example, Size
from older import expected_of
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import remixer
from remixer import CaptureError
from remixer.errors import NoAttentionError
from remixer.report import SiteReport
from remixer.rewrite import token_wise
from remixer.rewrite.token_wise import by_parts
from remixer.testing import assert_close


@dataclass
class Outcome:
    """What was found.

    Attributes:
        understood: attentions that were read, and proven.
        kept: the others, with their reasons.
        refused: why the model is, if it is.
        expected: how many of each there should be.
        problems: where the report is not what is expected.
        differences: where the rewritten model is not the original.
    """

    understood: list[SiteReport] = field(default_factory=list)
    kept: list[SiteReport] = field(default_factory=list)
    refused: str = ""
    expected: tuple[int, int] = (0, 0)
    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def examine(family: Any, form: str) -> Outcome:
    """Explain a family's model, rewrite it to itself, and run both at sizes not seen at capture."""
    model = family.build(form)
    example = KINDS[family.inputs](model, CAPTURE)
    small, word = None, family.refused.get(form)
    try:
        small = remixer.remix(model, "softmax", example.kwargs)
        report = small.report
    except NoAttentionError as error:
        report = error.report
    except CaptureError as error:
        if word is None or word not in str(error):
            raise
        return Outcome(refused=str(error))
    outcome = Outcome(
        [site for site in report.sites if site.spec is not None], [site for site in report.sites if site.spec is None]
    )
    wanted = expected_of(family, form)(model.config)
    outcome.expected = (sum(not one.kept for one in wanted), sum(bool(one.kept) for one in wanted))
    outcome.problems = list(_against(outcome, wanted))
    if word is not None:
        outcome.problems.append(f"the model is not refused for {word!r}")
    if small is not None:
        outcome.differences = list(_differences(family, model, small))
    return outcome


def _against(outcome: Outcome, wanted: list[Any]) -> Iterator[str]:
    """Where the sites are not those that are wanted."""
    readable, unreadable = ([one for one in wanted if bool(one.kept) is kept] for kept in (False, True))
    if len(outcome.understood) != len(readable):
        yield f"{len(outcome.understood)} attentions understood, expected {len(readable)}"
    if len(outcome.kept) != len(unreadable):
        yield f"{len(outcome.kept)} attentions kept, expected {len(unreadable)}"
    if not unreadable:
        yield from (f"{site.name} is not understood: {site.reason}" for site in outcome.kept)
    for site, one in zip(outcome.kept, unreadable, strict=False):
        if one.kept not in site.reason:
            yield f"{site.name} is kept because {site.reason!r}, expected {one.kept!r}"
    for site, one in zip(outcome.understood, readable, strict=False):
        yield from _fields(site, one)


def _fields(site: SiteReport, one: Any) -> Iterator[str]:
    """Where a site's spec is not what is expected."""
    for item in fields(one):
        if item.name == "kept":
            continue
        found, expected = getattr(site.spec, item.name, False), getattr(one, item.name)
        if item.name == "window" and one.causal:  # the right side of a causal attention may be 0 or None
            found, expected = (found[0], 0), (expected[0], 0)
        if isinstance(expected, float):
            expected = pytest.approx(expected, rel=1e-5)
        if found != expected:
            note = f" ({site.reason})" if site.reason else ""
            yield f"{site.name} has {item.name} = {found!r}, expected {expected!r}{note}"


def _differences(family: Any, model: nn.Module, small: nn.Module) -> Iterator[str]:
    """Sizes at which the outputs differ, tokens that don't exist aside; in parts of few tokens too."""
    in_parts = by_parts(small)
    for size in UNSEEN:
        if size.length < family.shortest:
            size = Size(size.rows, family.shortest, size.side)
        if family.one_batch:
            if size.rows != CAPTURE.rows and not _is_refused(small, KINDS[family.inputs](model, size)):
                yield f"{size}: a batch of {size.rows} is not refused"
            size = Size(CAPTURE.rows, size.length, size.side)
        example = KINDS[family.inputs](model, size)
        with torch.no_grad(), patch.multiple(token_wise, WORTH=0, PART=2000):
            try:
                expected, found = (_seeded(module, example) for module in (model, small))
                _compare(found, expected, example, size)
                if in_parts is not None:
                    _compare(_seeded(partial(in_parts, small), example), expected, example, size)
            except (AssertionError, RuntimeError, IndexError) as error:
                yield f"{size}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _is_refused(small: nn.Module, example: Example) -> bool:
    """Whether a rewritten model says of its own accord that it doesn't take a batch."""
    try:
        small(**example.kwargs)
    except ValueError as error:
        return "in dim 0 of" in str(error)
    return False


def _seeded(module: Callable[..., Any], example: Example) -> Any:
    """A run from a fixed seed, since some models draw which patches they see."""
    torch.manual_seed(0)
    return module(**example.kwargs)


def _compare(found: Any, expected: Any, example: Example, size: Size) -> None:
    """Raise AssertionError unless all that exists agrees; of a padded example no pooled vectors are compared."""
    got, want = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    assert len(got) == len(want), f"{len(got)} outputs for {len(want)}"
    compared = 0
    for actual, right in zip(got, want, strict=True):
        if not isinstance(right, Tensor):
            continue
        exist = example.exist.get(right.shape[1]) if right.dim() > 1 else None
        if exist is None and size.side == "left" and right.dim() < 3:
            continue
        assert_close(actual, right, where=exist)
        assert right.isfinite().any()
        compared += 1
    assert compared, "no output was compared"
