"""Operators that torch.onnx writes wrongly or not at all."""

import pytest
import torch
from torch import nn

import remixer
from remixer.export import ExportError, OnnxMismatchError, to_onnx


class Around(nn.Module):
    """An attention over tokens and mask, with something of its own behind it."""

    def __init__(self, behind):
        super().__init__()
        self.qkv, self.behind = nn.Linear(16, 48), behind

    def forward(self, hidden, mask):
        query, key, value = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in self.qkv(hidden).chunk(3, -1))
        scores = query @ key.transpose(-1, -2) * 8**-0.5 + (1.0 - mask)[:, None, None] * -1e4
        return self.behind((torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2), mask)


def rotated(hidden):
    """Pairs of channels turned by the place of their token."""
    angles = torch.outer(torch.arange(hidden.shape[1]), torch.arange(1.0, 9.0))
    turns = torch.polar(torch.ones_like(angles), angles).unsqueeze(0)
    return torch.view_as_real(torch.view_as_complex(hidden.unflatten(-1, (-1, 2))) * turns).flatten(-2)


def exported(behind, tmp_path):
    torch.manual_seed(0)
    inputs = {"hidden": torch.randn(2, 12, 16), "mask": torch.ones(2, 12, dtype=torch.long)}
    small = remixer.remix(Around(behind).eval(), "softmax", inputs)
    return to_onnx(small, tmp_path / "model.onnx")


BEHIND = {
    "a number minus whole numbers, as an output": lambda hidden, mask: (hidden, 1.5 - mask),
    "chunks of the tokens": lambda hidden, mask: torch.cat([hidden, hidden + 1, hidden], 1).chunk(3, 1),
    "chunks of another number": lambda hidden, mask: sum(torch.cat([hidden] * 4, 1).chunk(2, -2)),
    "rotations as complex numbers": lambda hidden, mask: rotated(hidden),
    "arithmetic in bfloat16": lambda hidden, mask: hidden * (mask.cumsum(1).bfloat16() * 0.3 + 0.1).float()[..., None],
    "splits of the tokens": lambda hidden, mask: torch.cat([hidden, -hidden], 1).split(hidden.shape[1], 1)[1],
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_what_torch_onnx_writes_wrongly(behind, tmp_path):
    manifest = exported(behind, tmp_path)
    assert manifest.error < 1e-5
    assert manifest.trials == 21
    assert "SplitToSequence" not in manifest.nodes


def test_random_numbers_are_told(tmp_path):
    with pytest.raises(OnnxMismatchError, match=r"draws random numbers, aten\.rand.* onnxruntime draws others"):
        exported(lambda hidden, mask: hidden + torch.rand_like(hidden), tmp_path)
    assert not list(tmp_path.iterdir())


def test_whatever_torch_onnx_raises_is_an_export_error(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise AttributeError("no such thing")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ExportError, match=r"torch\.onnx fails on the rewritten model: AttributeError: no such thing"):
        exported(lambda hidden, mask: hidden, tmp_path)
    assert not list(tmp_path.iterdir())
