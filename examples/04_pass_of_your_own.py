"""A pass of your own, in a pipeline, with the tests that one writes for it.

The pass merges two scalings in a row, `x * a * b`, into one. The same tools test rules and passes that have nothing to
do with attention.

Run: python examples/04_pass_of_your_own.py
"""

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_manager import PassManager

import remixer
from remixer import ApplyRules, Editor, Match, Miss, Pipeline, Recorder, Rule
from remixer.passes.canonicalise import Canonicalise
from remixer.testing import assert_rewrites


@dataclass(frozen=True)
class MergeScales(Rule):
    """`mul(mul(x, a), b)` with numbers a and b becomes `mul(x, a * b)`."""

    anchor = "inner"

    def pattern(self, p: Recorder):
        """Two multiplications by numbers, the first read by nobody else."""
        inner = p.call("aten.mul.Tensor", p.tensor("x"), p.constant("a"), name="inner")
        return p.call("aten.mul.Tensor", inner, p.constant("b"))

    def check(self, match: Match) -> Match | Miss:
        """Zero stays: merging it would hide a mistake that somebody should see."""
        if match["a"] * match["b"] == 0:
            return Miss("the scales multiply to zero", match.root)
        return match

    def rewrite(self, match: Match, editor: Editor) -> fx.Node:
        """One multiplication."""
        factor = match["a"] * match["b"]
        return editor.call(torch.ops.aten.mul.Tensor, match["x"], factor, before=match.root)


class Before(nn.Module):
    """What the rule looks for."""

    def forward(self, x):
        """Scale twice."""
        return x * 2.0 * 4.0


class Expected(nn.Module):
    """What it makes of it."""

    def forward(self, x):
        """Scale once."""
        return x * 8.0


class ReadTwice(nn.Module):
    """A near miss: the value in between is needed elsewhere."""

    def forward(self, x):
        """Scale twice and give both."""
        y = x * 2.0
        return y * 4.0, y


class Zero(nn.Module):
    """A near miss that the check refuses."""

    def forward(self, x):
        """Scale by nothing."""
        return x * 0.0 * 4.0


def main() -> None:
    """Test the rule as one would with pytest, then run it in pipelines."""
    x = torch.randn(2, 5, 3)
    result = assert_rewrites(Before(), Expected(), MergeScales(), times=1, inputs=x)
    print("rewrote", result.rewrites[0].removed, "at", result.rewrites[0].source)
    result = assert_rewrites(ReadTwice(), None, MergeScales(), times=0, inputs=x, misses="is also read by")
    print("left alone:", result.misses[0])
    result = assert_rewrites(Zero(), None, MergeScales(), times=0, inputs=x, misses="multiply to zero")
    print("left alone:", result.misses[0])

    program = remixer.capture(Before(), x)
    pipeline = Pipeline((Canonicalise(), ApplyRules((MergeScales(),))))
    for step in pipeline(program).steps:
        print(f"{step.name}: {len(step.rewrites)} rewrites, nodes {step.nodes[0]} -> {step.nodes[1]}")
    managed = PassManager([Canonicalise(), ApplyRules((MergeScales(),))])(program.graph_module)
    print("torch.fx's own pass manager runs it too; modified:", managed.modified)


if __name__ == "__main__":
    main()
