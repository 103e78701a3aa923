"""Every example runs, and prints what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# Each example's arguments, and something that its output must hold.
EXPECTED = {
    "01_minilm_long_documents.py": (["--lengths", "128", "512"], "the original model still gives bit for bit"),
    "02_mixer_of_your_own.py": ([], "output for 5,000 tokens: (1, 5000, 64)"),
    "03_rule_of_your_own.py": ([], "assert_sites fails without the rule, as it should"),
    "04_pass_of_your_own.py": ([], "torch.fx's own pass manager runs it too; modified: True"),
    "05_fine_tuning.py": (["--layers", "2"], "all three went on from their checkpoints with identical losses"),
    "06_smollm2_with_transfer.py": (["--layers", "2", "--length", "64", "--steps", "3"], "grows as n"),
    "07_onnx.py": (["--layers", "1"], "onnxruntime gives what torch gives"),
    "08_two_processes.py": ([], "501 tokens on 2 processes: outputs and gradients are those of one"),
    "09_train_a_tnn.py": ([], "trained on 256 bytes, it reads 4,096 as well"),
}

SLOW = {"05_fine_tuning.py", "06_smollm2_with_transfer.py"}


def run(arguments, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:remixer", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_every_example_is_run_here():
    assert sorted(EXPECTED) == sorted(file.name for file in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EXPECTED]
)
def test_an_example(name, tmp_path):
    arguments, expected = EXPECTED[name]
    assert expected in run([EXAMPLES / name, *arguments], tmp_path)
    if name.startswith("01"):
        picture = tmp_path / "out" / "minilm_seconds_memory.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 10_000


def test_a_mixer_in_a_package_of_its_own_is_found_by_name(tmp_path):
    installed = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", installed]
    run(["-m", "pip", "install", *options, EXAMPLES / "third_party_mixer"], tmp_path)
    program = (
        "import torch, remixer; from torch import nn\n"
        "assert 'linear_attention' in remixer.mixers.available()\n"
        "layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()\n"
        "small = remixer.remix(layer, 'linear_attention', torch.randn(2, 9, 32))\n"
        "print(small.report.sites[0].mixer, small.report.order, tuple(small(torch.randn(1, 50, 32)).shape))"
    )
    assert run(["-c", program], tmp_path, PYTHONPATH=str(installed)) == "linear_attention n (1, 50, 32)\n"
