"""What needs a GPU: `make test-gpu`. The operands of mixers are drawn as in tests/mixers."""

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "mixers")]


@pytest.fixture
def device():
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    return "cuda"
