"""What needs a GPU: `make test-gpu`."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def device():
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    return "cuda"
