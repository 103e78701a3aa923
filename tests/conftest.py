"""Settings and small models that tests share."""

import contextlib
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import remixer
from processes import Processes
from remixer import recognising
from remixer.rewrite.capture import capture
from remixer.rewrite.program import Program


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class SelfAttention(nn.Module):
    """Hand-written attention of several heads, as people write it."""

    def __init__(self, width: int = 32, heads: int = 4, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            layer(x).view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-2, -1) / (C // self.heads) ** 0.5
        if self.causal:
            future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        if padding is not None:
            scores = scores.masked_fill(~padding[:, None, None, :], float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C))


class Model(nn.Module):
    """Two layers of hand-written attention with residuals, a norm and a head."""

    def __init__(self, width: int = 32, heads: int = 4, causal: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SelfAttention(width, heads, causal) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> dict[str, Tensor]:
        for layer in self.layers:
            x = x + layer(self.norm(x), padding)
        return {"states": x, "logits": self.head(x)}


@pytest.fixture
def model() -> nn.Module:
    return Model().eval()


@pytest.fixture
def causal_model() -> nn.Module:
    return Model(causal=True).eval()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 12, 32), "padding": torch.arange(12)[None] < torch.tensor([[12], [7]])}


class CapturedOnce:
    """`remix` and `explain` of models that are captured at their first call only; everything else is done anew."""

    def __init__(self) -> None:
        self.programs: dict[nn.Module, Program] = {}

    def remix(self, model, mixer, inputs, **options):
        with self._instead_of_capture():
            return remixer.remix(model, mixer, inputs, **options)

    def explain(self, model, inputs):
        with self._instead_of_capture():
            return remixer.explain(model, inputs)

    def _capture(self, model, inputs):
        if model not in self.programs:
            self.programs[model] = capture(model, inputs)
        return self.programs[model]

    @contextlib.contextmanager
    def _instead_of_capture(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recognising, "capture", self._capture)
            yield


@pytest.fixture(scope="module")
def captured_once():
    """For a module's tests of models that none of them changes, each given the same inputs by all."""
    return CapturedOnce()


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    """Processes by how many they are, kept for all tests."""
    running = {}

    def get(size):
        if size not in running:
            running[size] = Processes(size, tmp_path_factory.mktemp(f"processes{size}"))
        return running[size]

    yield get
    for one in running.values():
        one.close()
