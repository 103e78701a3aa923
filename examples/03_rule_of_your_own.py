"""A rule of your own: attention without a matrix product, by broadcasting and sums.

remixer's own rules look for matrix products. This one reads products of all pairs that are summed up; put in front of
`remixer.RULES`, it serves `explain` and `remix` like any other. Whatever it reads is proven against the model before it
counts.

Run: python examples/03_rule_of_your_own.py
"""

import torch
from torch import Tensor, fx, nn

import remixer
from remixer import AttentionSpec, Editor, Match, Recorder, Rule
from remixer.passes.raise_attention import raised
from remixer.rewrite.program import shape_of
from remixer.testing import assert_close, assert_sites


class BroadcastAttention(nn.Module):
    """Attention as a first draft has it: every pair of tokens by itself."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1) * q.shape[-1] ** -0.5
        weights = torch.softmax(scores, dim=-1)
        return (weights.unsqueeze(-1) * v.unsqueeze(2)).sum(3).transpose(1, 2).flatten(2)


class BroadcastRule(Rule):
    """softmax(scale * sum of Q * K over features), times V, summed over keys."""

    anchor = "weights"

    def pattern(self, p: Recorder):
        """The calls, from the last back to the first."""

        def spread(inner, dim: int):
            return p.call("aten.unsqueeze.default", inner, dim)

        pairs = p.call("aten.mul.Tensor", spread(p.tensor("query"), 3), spread(p.tensor("key"), 2))
        scores = p.call("aten.sum.dim_IntList", pairs, [-1])
        scaled = p.call("aten.mul.Tensor", scores, p.constant("scale"))
        weights = p.call("aten.softmax.int", scaled, -1, rest=True, name="weights")
        weighted = p.call("aten.mul.Tensor", spread(weights, -1), spread(p.tensor("value"), 2))
        return p.call("aten.sum.dim_IntList", weighted, [3])

    def check(self, match: Match) -> Match:
        """Nothing to refuse: the pattern leaves no room. A wrong reading would fail its proof."""
        return match

    def rewrite(self, match: Match, editor: Editor) -> fx.Node:
        """The canonical operator, whose layout (B, H, T, D) the operands have already."""
        _, heads, _, size = shape_of(match["query"])
        spec = AttentionSpec(
            heads=int(heads),
            kv_heads=int(heads),
            head_dim=int(size),
            value_dim=int(size),
            scale=match["scale"],
        )
        operands = {name: match[name] for name in ("query", "key", "value")}
        return raised(match, spec, editor, self.name, operands)


def main() -> None:
    """Without the rule the attention is a miss; with it, it is replaced."""
    model, x = BroadcastAttention().eval(), torch.randn(2, 16, 64)
    print("without the rule:", remixer.explain(model, x).sites[0].reason)
    rules = (BroadcastRule(), *remixer.RULES)
    small = remixer.remix(model, "long_short", x, rules=rules)
    print(small.report)
    same = remixer.remix(model, "softmax", x, rules=rules)
    longer = torch.randn(1, 77, 64)
    assert_close(same(longer), model(longer))
    try:
        assert_sites(model, x, 1)
    except AssertionError as error:
        print("assert_sites fails without the rule, as it should:", str(error).splitlines()[0])


if __name__ == "__main__":
    main()
