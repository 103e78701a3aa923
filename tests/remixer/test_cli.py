"""Commands as people start them."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import remixer
from remixer.export import partition


def torchrun(size, *args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), "-m"]
    return subprocess.run(
        [*command, "remixer", *map(str, args)], capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    small = remixer.remix(layer, "distributed", {"src": torch.randn(2, 8, 32)})
    partition(small, 2, scheme="ring").save(folder / "parts")
    x = torch.randn(2, 21, 32)
    save_file({"src": x}, folder / "x.safetensors")
    with torch.no_grad():
        save_file({"output": small(src=x)}, folder / "wanted.safetensors")
    return folder


def test_run(folder):
    found = torchrun(
        2, "run", folder / "parts", "--input", folder / "x.safetensors", "--output", folder / "y.safetensors"
    )
    assert found.returncode == 0, found.stderr
    got, wanted = load_file(folder / "y.safetensors"), load_file(folder / "wanted.safetensors")
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_run_in_stages(folder):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    small = remixer.remix(model, "distributed", {"src": torch.randn(2, 8, 32)})
    partition(small, 4, stages=2, scheme="all_gather").save(folder / "staged")
    found = torchrun(
        4, "run", folder / "staged", "--input", folder / "x.safetensors", "--output", folder / "z.safetensors"
    )
    assert found.returncode == 0, found.stderr
    with torch.no_grad():
        wanted = small(src=load_file(folder / "x.safetensors")["src"])
    torch.testing.assert_close(load_file(folder / "z.safetensors"), {"output": wanted}, rtol=1e-5, atol=1e-5)


def test_a_fault_is_one_sentence(folder):
    found = torchrun(
        1, "run", folder / "parts", "--input", folder / "x.safetensors", "--output", folder / "no.safetensors"
    )
    assert found.returncode != 0
    assert "remixer run: cannot load" in found.stderr
    assert "partitioned for 2 processes, these are 1" in found.stderr
    assert "PartitionError" not in found.stderr
    assert not (folder / "no.safetensors").exists()
