"""A mixer of your own, in a package of its own (examples/third_party_mixer), put into a model.

Installed with pip, the package is found through its entry point, and `remixer.remix(model, "linear_attention", inputs)`
is all there is to do. Here it is registered by hand, so that the example runs without installing anything.

Run: python examples/02_mixer_of_your_own.py
"""

import sys
from pathlib import Path

import torch
from torch import nn

import remixer
from remixer.testing import assert_close, assert_order

sys.path.insert(0, str(Path(__file__).parent / "third_party_mixer"))
from linear_attention import LinearAttention


def main() -> None:
    """Register, check against the mixer's own reference, rewrite a model."""
    if "linear_attention" not in remixer.mixers.available():
        remixer.register("linear_attention")(LinearAttention)

    spec = remixer.AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=8, scale=8**-0.5)
    mixer = LinearAttention(spec, LinearAttention.Config())
    operands = [torch.randn(2, heads, 9, 8) for heads in (4, 2, 2)]
    padding = torch.arange(9)[None] < torch.tensor([[9], [5]])
    assert_close(mixer(*operands, padding=padding), mixer.reference(*operands, padding=padding))

    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2).eval()
    small = remixer.remix(model, "linear_attention", torch.randn(2, 16, 64))
    print(small.report)
    assert_order(small, "n")
    print("output for 5,000 tokens:", tuple(small(torch.randn(1, 5000, 64)).shape))


if __name__ == "__main__":
    main()
