"""Models with Long-Short mixers, whose tokens are spread, run by several processes."""

import pytest
import reader
from reader import inputs

from remixer.export import partition
from remixer.testing import assert_close


def compared(small, spread, given):
    """Outputs and gradients of both."""
    wanted = small(**given)
    (wanted["logits"].square().mean() + wanted["mean"].sum()).backward()
    grads = [each.grad for each in small.parameters()]
    for outputs, found in spread:
        assert_close(outputs, {name: each.detach() for name, each in wanted.items()})
        assert len(found) == len(grads)
        for got, grad in zip(found, grads, strict=True):
            assert_close(got, grad)


def test_the_graph_itself(processes):
    given = inputs(13, 2)
    given["mask"][0, :4] = 0
    small = reader.with_long_short(causal=True)
    assert partition(small, 2, scheme="all_gather").plan.gathered == ()
    compared(small, processes(2)(reader.in_this_process, True, given), given)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_what_is_written(processes, tmp_path, causal):
    small = reader.with_long_short(causal)
    part = partition(small, 4, scheme="all_gather")
    assert part.plan.layout == "contiguous"
    part.save(tmp_path / "parts")
    shapes = [(12, 2), (7, 1), (3, 2), (33, 3)]
    for found in processes(4)(reader.outputs, tmp_path / "parts", *shapes):
        for shape, got in zip(shapes, found, strict=True):
            assert_close(got, {name: each.detach() for name, each in small(**inputs(*shape)).items()})
