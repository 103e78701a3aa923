"""The real pretrained models as ONNX files."""

import pytest
import torch
from pretrained import minilm, padded_batch, smollm2

import remixer
from remixer import LongShort
from remixer.export import to_onnx
from remixer.export.onnx.runtime import Session

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mixer", ["softmax", "long_short", "toeplitz"])
def test_minilm(attention, mixer, tmp_path):
    model, _ = minilm(attention)
    small = remixer.remix(model, mixer, padded_batch(2, 40, 20000))
    manifest = to_onnx(small, tmp_path / "model.onnx")
    assert manifest.error < 1e-4
    inputs = padded_batch(3, 301, 20000)
    session = Session(tmp_path / "model.onnx")
    with torch.no_grad():
        want = small(**inputs).last_hidden_state
    got = session(inputs)[session.outputs.index("last_hidden_state")]
    exist = inputs["attention_mask"].bool()
    assert float((got - want)[exist].abs().max()) < 1e-4 * float(want.abs().max())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mixer", ["softmax", LongShort(window=64)], ids=["softmax", "long_short"])
def test_smollm2(mixer, tmp_path):
    model, _ = smollm2()
    small = remixer.remix(model, mixer, padded_batch(2, 40, 20000, left=True))
    manifest = to_onnx(small, tmp_path / "model.onnx")
    assert manifest.error < 1e-4
    assert sum(manifest.seconds.values()) < 300
