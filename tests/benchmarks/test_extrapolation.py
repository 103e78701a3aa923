import json
import sys

import extrapolation
import pytest
import torch

from remixer.testing import assert_close


def test_extrapolation_runs(monkeypatch, tmp_path):
    small = ["--steps", "2", "--batch", "2", "--width", "32", "--layers", "1", "--length", "16"]
    monkeypatch.setattr(extrapolation, "split", lambda sources, one_in: (bytes(range(200)), b"remixer " * 9))
    monkeypatch.setattr(extrapolation, "WHOLE", 72)
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["extrapolation.py", *small, "--lengths", "16", "24", "--out", str(out)])
    extrapolation.main()
    result = json.loads(out.read_text())
    assert [(row["length"], row["ratio"] > 0.0) for row in result["rows"]] == 2 * [(16, True), (24, True)]
    assert (tmp_path / "result.png").stat().st_size > 1000


def test_bits_count_every_byte_once_whatever_the_blocks():
    class Uniform(torch.nn.Module):
        def forward(self, ids):
            return torch.zeros(*ids.shape, 256)

    text = torch.arange(50)
    assert [round(extrapolation.bits_per_byte(Uniform(), text, length), 4) for length in (7, 50, 64)] == [8.0] * 3


def test_the_text_is_read_in_blocks_that_do_not_overlap():
    model, text = extrapolation.tnn(32, 1).eval(), torch.randint(0, 256, (30,))
    with torch.no_grad():
        alone = [float(extrapolation.loss_of(model, block[None])) for block in text.split(10)]
    bits = extrapolation.bits_per_byte(model, text, 10)
    assert_close(torch.tensor(bits * torch.log(torch.tensor(2.0)).item()), torch.tensor(alone).mean())


def test_a_longer_block_than_the_table_raises():
    model = extrapolation.transformer(32, 1, positions=8)
    with pytest.raises(IndexError, match="out of range"):
        extrapolation.bits_per_byte(model, torch.zeros(9, dtype=torch.long), 9)
