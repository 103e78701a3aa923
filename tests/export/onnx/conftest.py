"""Test files of this folder share `small_model`, and one table of what torch.onnx translates."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _one_table():
    """torch.onnx reads the source of all its translations at every export, and gets the same: half a second each."""
    from onnxscript._framework_apis import torch_2_5
    from torch.onnx._internal.exporter import _registration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.onnxscript_apis, "get_torchlib_ops", functools.cache(torch_2_5.get_torchlib_ops))
        yield
