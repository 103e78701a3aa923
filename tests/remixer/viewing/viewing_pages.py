"""Reading pages back, and a page of as many nodes as a test wants."""

import json
import re

from torch import nn

from remixer.viewing.elements import Elements
from remixer.viewing.page import page
from remixer.viewing.payload import payload_of
from remixer.viewing.snapshot import NodeView, Value
from remixer.viewing.trace import Stage, Trace
from remixer.viewing.tracing import Story

HIDDEN = Value("(B, T, 64)", "float32", Elements("64*B*T", ("*", 64, "B", "T")), 4, "n")


class Odd(nn.Module):
    """Nearly an attention."""

    def forward(self, x):
        scores = x @ x.transpose(-2, -1)
        return (scores.softmax(-1) * scores.sigmoid()) @ x


EVIL = "a</script><script>alert(1)</script><!--{{payload}}"


class Evil(nn.Module):
    """A model whose names want to be more than names."""

    def __init__(self):
        super().__init__()
        self.add_module(EVIL, nn.Linear(4, 4))

    def forward(self, x):
        return getattr(self, EVIL)(x)


Evil.__name__ = f"{EVIL}&amp;"


def data_of(path):
    """What a page was given."""
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def deep_page(path, layers=30, operators=78):
    """A page of a chain of layers before and after, with other operators in each; all known to read one input."""
    trace = Trace()
    trace.letters = ("B", "T")
    for title, label in (("before", "mul"), ("after", "add")):
        trace.stages.append(Stage(title, title, tuple(_nodes(layers, operators, label))))
    path.write_text(page("deep", payload_of(Story("Deep", trace, None))), encoding="utf-8")
    return path


def _nodes(layers, operators, label):
    def node(name, op, label, inputs, path):
        return NodeView(name, op, label, label, (), inputs, path, HIDDEN, "deep.py:1", "x", "")

    yield node("mask", "placeholder", "mask", (), "")
    before = "x"
    yield node(before, "placeholder", "x", (), "")
    for layer in range(layers):
        for index in range(operators):
            part = ("attention", "mlp")[index >= operators // 2]
            name = f"l{layer}_{index}"
            inputs = (before, "mask") if index == 3 else (before,)
            called = label if index % 5 == 0 else "view"
            yield node(name, "call_function", called, inputs, f"model.layers.{layer}.{part}")
            before = name
    yield node("output", "output", "output", (before,), "")
