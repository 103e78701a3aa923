"""A rule of your own: attention written with einsum, in a layout with the heads behind the tokens.

remixer's own rules look for matrix products. This one reads `einsum` spellings; put in front of `remixer.RULES`, it
serves `explain` and `remix` like any other. Whatever it reads is proven against the model before it counts.

Run: python examples/03_rule_of_your_own.py
"""

import torch
from torch import Tensor, fx, nn

import remixer
from remixer import AttentionSpec, Editor, Match, Recorder, Rule
from remixer.passes.raise_attention import raised
from remixer.rewrite.program import shape_of
from remixer.testing import assert_close, assert_sites

aten = torch.ops.aten


class EinsumAttention(nn.Module):
    """Attention as papers write it: (batch, tokens, heads, size) throughout."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        weights = torch.softmax(torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5, dim=-1)
        return torch.einsum("bhts,bshd->bthd", weights, v).flatten(2)


class EinsumRule(Rule):
    """softmax(scale * einsum(Q, K)), multiplied with V by einsum."""

    anchor = "weights"

    def pattern(self, p: Recorder):
        """The four calls, from the last back to the first."""
        operands = [p.tensor("query"), p.tensor("key")]
        scores = p.call("aten.einsum.default", "bthd,bshd->bhts", operands)
        scaled = p.call("aten.mul.Tensor", scores, p.constant("scale"))
        weights = p.call("aten.softmax.int", scaled, -1, rest=True, name="weights")
        return p.call("aten.einsum.default", "bhts,bshd->bthd", [weights, p.tensor("value")])

    def check(self, match: Match) -> Match:
        """Nothing to refuse: the pattern leaves no room. A wrong reading would fail its proof."""
        return match

    def rewrite(self, match: Match, editor: Editor) -> fx.Node:
        """The canonical operator, between transposes into its layout and back."""
        _, _, heads, size = shape_of(match["query"])
        spec = AttentionSpec(
            heads=int(heads),
            kv_heads=int(heads),
            head_dim=int(size),
            value_dim=int(size),
            scale=match["scale"],
        )

        def exchanged(node: fx.Node) -> fx.Node:
            return editor.call(aten.transpose.int, node, 1, 2, before=match.root)

        cuts = {name: match[name] for name in ("query", "key", "value")}
        operands = {name: exchanged(node) for name, node in cuts.items()}
        return raised(match, spec, editor, self.name, operands, cuts=cuts, layout=exchanged)


def main() -> None:
    """Without the rule the attention is a miss; with it, it is replaced."""
    model, x = EinsumAttention().eval(), torch.randn(2, 16, 64)
    print("without the rule:", remixer.explain(model, x).sites[0].reason)
    rules = (EinsumRule(), *remixer.RULES)
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
