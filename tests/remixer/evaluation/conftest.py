"""Models whose figures can be worked out by hand."""

import pytest
import torch
from torch import Tensor, nn


class Bigram(nn.Module):
    """The logits after a token are a row of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.double())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.table[input_ids]}


class Successor(nn.Module):
    """After n comes n + 1, with certainty; after `wrong`, the same again."""

    def __init__(self, size: int = 16, wrong: int | None = None) -> None:
        super().__init__()
        after = (torch.arange(size) + 1) % size
        if wrong is not None:
            after[wrong] = wrong
        self.register_buffer("table", 50.0 * nn.functional.one_hot(after, size).double())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.table[input_ids % len(self.table)]


class Copier(nn.Module):
    """Says what came after the same token before, at most `reach` tokens back; otherwise anything."""

    def __init__(self, size: int, reach: int) -> None:
        super().__init__()
        self.size, self.reach = size, reach

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        away = torch.arange(length)[:, None] - torch.arange(length)
        same = (input_ids[:, :, None] == input_ids[:, None, :]) & (away > 0) & (away <= self.reach)
        found = torch.zeros(*input_ids.shape, self.size)
        rows, queries, keys = same.nonzero(as_tuple=True)  # later ones overwrite earlier ones
        found[rows, queries, input_ids[rows, keys + 1]] = 20.0
        return found


@pytest.fixture
def bigram():
    return Bigram(torch.randn(7, 7))


@pytest.fixture
def other():
    return Bigram(torch.randn(7, 7, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def successor():
    return Successor


@pytest.fixture
def copier():
    return Copier


@pytest.fixture
def padded():
    """Three windows of 9, 5 and 6 tokens, whole, padded on the right and on the left."""
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:], mask[2, :3] = 0, 0
    return {"input_ids": torch.randint(0, 7, (3, 9)), "attention_mask": mask}
