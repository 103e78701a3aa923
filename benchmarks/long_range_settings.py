"""With which sizes and rates the Long Range Arena's tasks are trained: small enough for a laptop, or as published."""

from __future__ import annotations

from dataclasses import dataclass

from small_models import Model, TransformerBlock
from torch import nn

from remixer.mixers import LongShort, MixerConfig, SimpleRMSNorm, SoftmaxConfig, ToeplitzBlock

MIXERS = ("toeplitz", "long_short", "softmax")
# Zhu et al. (2021) on the Arena: window 8, 32 summaries read from the hidden state, one LayerNorm for each branch.
LONG_SHORT = LongShort(window=8, rank=32, sinks=0, dual_norm="paper", project_from="source", counted=False)


@dataclass(frozen=True)
class Setting:
    """How one mixer is trained on one task.

    Attributes:
        layers: how many.
        width: C.
        heads: of attention; Toeplitz units have one.
        ratio: channels inside the MLP or GLU are ratio * width.
        expand_ratio: of the Toeplitz unit.
        decay: of the Toeplitz unit.
        rpe_width: of the Toeplitz unit.
        rpe_layers: of the Toeplitz unit.
        rate: the largest learning rate.
        weight_decay: of AdamW.
        rows: sequences in a batch.
        warmup: steps in which the rate rises.
        steps: of training.
    """

    layers: int = 2
    width: int = 64
    heads: int = 2
    ratio: float = 4.0
    expand_ratio: float = 3.0
    decay: float | None = 0.99
    rpe_width: int = 32
    rpe_layers: int = 1
    rate: float = 2e-3
    weight_decay: float = 0.01
    rows: int = 16
    warmup: int = 25
    steps: int = 400


# The same budget for all. A GLU has three maps where an MLP has two: with these ratios all layers have about 12 C^2.
SMALL = {
    (mixer, task): Setting(ratio=1.0 if mixer == "toeplitz" else 4.0, rows=rows, steps=steps)
    for mixer in MIXERS
    for task, rows, steps in (("ListOps", 16, 400), ("Text", 8, 250))
}
# Sizes and rates as published by Qin et al. (2023) and Zhu et al. (2021), but: Toeplitz layers have a SimpleRMSNorm
# where the published ones had a batch norm, and no dropout; attention has no CLS token. Steps, and the warm-up of
# attention, are ours.
FULL = {
    ("toeplitz", "ListOps"): Setting(
        layers=4,
        width=128,
        ratio=1.0,
        expand_ratio=1.0,
        decay=None,
        rpe_layers=3,
        rate=5e-4,
        weight_decay=0.1,
        rows=128,
        warmup=1000,
        steps=5000,
    ),
    ("toeplitz", "Text"): Setting(
        layers=4,
        width=128,
        ratio=2.0,
        expand_ratio=1.0,
        decay=0.9,
        rpe_layers=3,
        rate=1.05e-3,
        weight_decay=0.001,
        rows=32,
        warmup=3000,
        steps=20000,
    ),
} | {
    (mixer, task): Setting(ratio=2.0, rate=1e-4, weight_decay=0.0, rows=32, warmup=1000, steps=steps)
    for mixer in ("long_short", "softmax")
    for task, steps in (("ListOps", 5000), ("Text", 20000))
}


def build(mixer: str, setting: Setting, vocabulary: int, classes: int, length: int) -> Model:
    """An untrained classifier: TNN layers, or Transformer layers with learned positions.

    Args:
        mixer: one of MIXERS.
        setting: its sizes.
        vocabulary: how many tokens there are.
        classes: how many outputs.
        length: of the longest sequence, for the table of positions.
    """
    width, inner = setting.width, int(setting.ratio * setting.width)
    if mixer == "toeplitz":
        blocks: list[nn.Module] = [
            ToeplitzBlock(
                width,
                glu_width=inner,
                expand_ratio=setting.expand_ratio,
                decay=setting.decay,
                rpe_width=setting.rpe_width,
                rpe_layers=setting.rpe_layers,
            )
            for _ in range(setting.layers)
        ]
        return Model(vocabulary, width, blocks, SimpleRMSNorm(), classes, pooled=True)
    config: MixerConfig = LONG_SHORT if mixer == "long_short" else SoftmaxConfig()
    blocks = [TransformerBlock(width, setting.heads, config, inner=inner) for _ in range(setting.layers)]
    return Model(vocabulary, width, blocks, nn.LayerNorm(width), classes, positions=length, pooled=True)
