"""Pages of small models, and a browser to look at them."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from viewing_pages import data_of

import remixer
from remixer import LongShort


class Attention(nn.Module):
    """Attention of 2 heads, written out."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (layer(x).view(B, T, 2, 8).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(B, T, C))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(x + self.attention(x))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Layer(), Layer())
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.layers(x))


@pytest.fixture(scope="session")
def small():
    return Small().eval()


@pytest.fixture(scope="session")
def x():
    return torch.zeros(2, 8, 16)


@pytest.fixture(scope="session")
def traced(small, x):
    choice = {"layers.0.attention": LongShort(window=4), "*": None}
    return remixer.remix(small, choice, x, trace=True)


@pytest.fixture(scope="session")
def page(traced, tmp_path_factory):
    return remixer.view(traced, tmp_path_factory.mktemp("view") / "small.html")


@pytest.fixture(scope="session")
def data(page):
    return data_of(page)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: `make browser` installs it")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'remixer[dev]'")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a page by its path; in the end nothing may have been asked of the network or said in the console."""
    context = browser.new_context(viewport={"width": 1500, "height": 900}, offline=True, reduced_motion="reduce")
    said, asked = [], []

    def go(path):
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield go
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
