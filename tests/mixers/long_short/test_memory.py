import pytest
import torch

from remixer.mixers.long_short.memory import Memory


def nodes_in_sight(memory, before):
    """(level, node) of all that is seen."""
    bounds = memory.visible(torch.tensor(before))
    return [(level, node) for level, (oldest, end) in enumerate(bounds) for node in range(int(oldest), int(end))]


@pytest.mark.parametrize("per_size", [1, 2, 5])
def test_a_dyadic_memory_covers_all_that_is_before_once(per_size):
    memory = Memory.of("dyadic", per_size, 700)
    for before in (-3, 0, 1, 2, 7, 50, 51, 699):
        seen = nodes_in_sight(memory, before)
        covered = [segment for level, node in seen for segment in range(node << level, (node + 1) << level)]
        assert sorted(covered) == list(range(max(before, 0)))
        counts = [sum(level == each for level, _ in seen) for each in range(memory.levels)]
        assert max(counts) <= per_size + 1


def test_it_has_as_many_levels_as_it_needs():
    assert [Memory.of("dyadic", 16, segments).levels for segments in (1, 17, 18, 50, 52, 2**17)] == [1, 1, 2, 2, 3, 13]
    assert Memory.of(5, 16, 1000).levels == 1


@pytest.mark.parametrize("limit", ["dyadic", 4, None])
@pytest.mark.parametrize("spread", [0, 1, 2, 5])
def test_the_columns_of_a_tile_hold_all_that_its_queries_see(limit, spread):
    memory = Memory.of(limit, 2, 300)
    for first in range(-4, 295):
        nodes = memory.nodes(torch.tensor([first]), spread)
        held = {(level, int(node)) for level, row in enumerate(nodes) for node in row[0]}
        for before in range(first, min(first + spread, 299) + 1):
            assert held >= set(nodes_in_sight(memory, before))
        assert [row.shape[1] for row in nodes] == memory.columns(spread)


def test_a_table_counts_the_tokens_of_every_node():
    memory = Memory("dyadic", 1, 5, 3)
    assert memory.sizes == [5, 3, 2]
    assert memory.table(torch.tensor([[3, 3, 1, 0, 2]])).tolist() == [[3, 3, 1, 0, 2, 6, 1, 2, 7, 2]]
