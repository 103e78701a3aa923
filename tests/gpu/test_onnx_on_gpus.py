"""ONNX graphs that run on a GPU; the CUDA provider must load."""

import pytest
import torch
from test_models_on_gpus import batch, bert, llama

import remixer
from remixer import LongShort, Toeplitz
from remixer.export import OnnxDecoder, ProviderError, check_cuda, to_onnx, to_onnx_decoder
from remixer.export.onnx.runtime import Session, check_install

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]
MIXERS = {
    "softmax": "softmax",
    "long_short": LongShort(window=32, segment=4, memory=3),
    "toeplitz": Toeplitz(gate="value", weigh="key"),
}
each_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
each_precision = pytest.mark.parametrize("precision", ["float32", "float16"])


@pytest.fixture(autouse=True)
def _provider(device):
    try:
        check_install("cuda")
    except (ProviderError, remixer.export.OnnxInstallError) as error:
        pytest.skip(str(error))


@each_precision
@each_mixer
def test_an_encoder(mixer, precision, tmp_path):
    torch.manual_seed(0)
    small = remixer.remix(bert(), mixer, batch(40))
    manifest = to_onnx(small, tmp_path / "model.onnx", provider="cuda", precision=precision)
    assert manifest.cuda["problems"] == check_cuda(tmp_path / "model.onnx").problems == []
    session = Session(tmp_path / "model.onnx", "cuda")
    for T in (1, 37, 300):
        inputs = batch(T)
        exist = inputs["attention_mask"].bool()
        with torch.no_grad():
            expected = small(**inputs)[0][exist]
        found = session(inputs)[0][exist]
        assert float((found - expected).abs().max()) < (1e-3 if precision == "float32" else 3e-2)


@each_mixer
def test_a_decoder(mixer, tmp_path):
    torch.manual_seed(0)
    small = remixer.remix(llama(), mixer, batch(24))
    to_onnx_decoder(small, tmp_path / "decoder", length=80, provider="cuda")
    decoder = OnnxDecoder(tmp_path / "decoder", provider="cuda")
    prompt = batch(21)
    written = torch.as_tensor(decoder.generate(prompt["input_ids"], 20, mask=prompt["attention_mask"]))
    theirs = remixer.generate(small, prompt["input_ids"], 20, prompt["attention_mask"])
    assert torch.equal(written, theirs)
