"""Mixers that say which weights belong to which heads: some heads alone give what they give among all."""

import dataclasses

import pytest
import torch

from remixer.mixers import AttentionSpec, FrequencyToeplitz, LongShort, Toeplitz, mixer_of
from remixer.mixers.distributed.by_heads import of_some_heads
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=8, kv_heads=4, head_dim=6, value_dim=6, scale=0.4, padding=True, source_dim=5)
CUT = [
    Toeplitz(),
    Toeplitz(gate="query", per="head", normalise=False),
    Toeplitz(gate="value", learn_decay=True, decay=0.9),
    Toeplitz(weigh="key"),
    LongShort(window=6, segment=2, rank=2),
    LongShort(window=6, segment=2, rank=2, dual_norm="per_head", project_from="source", counted=False),
    LongShort(window=6, segment=2, rank=0, retrieve=2, retrieve_block=2),
]


def mixer_for(config, **changes):
    spec = dataclasses.replace(SPEC, dtype=torch.float64, **changes)
    torch.manual_seed(0)
    mixer = mixer_of(config).from_attention(spec, config).double().eval()
    for weight in mixer.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return mixer


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("config", CUT, ids=lambda config: repr(config)[:60])
def test_some_heads_alone(config, causal):
    mixer, size, T = mixer_for(config, causal=causal), 2, 19
    shapes = {"query": (2, 8, T, 6), "key": (2, 4, T, 6), "value": (2, 4, T, 6), "source": (2, T, 5)}
    given = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items() if name in mixer.operands}
    given["padding"] = torch.arange(T) >= torch.tensor([[0], [5]])
    some, parts, cut = of_some_heads(mixer, size).eval(), [], mixer.by_head()
    for rank in range(size):
        weights = {}
        for name, weight in (*mixer.named_parameters(), *mixer.named_buffers()):
            rows = len(weight) // size if name in cut else 0
            weights[name] = weight[rank * rows : (rank + 1) * rows] if rows else weight
        own = {name: each.chunk(size, 1)[rank] if each.dim() == 4 else each for name, each in given.items()}
        parts.append(torch.func.functional_call(some, weights, (), own))
    assert_close(torch.cat(parts, 1), mixer(**given))


def test_what_can_not_be_cut():
    assert of_some_heads(mixer_for(LongShort(window=6, dual_norm="paper")), 2) is None  # its norms look at all heads
    assert of_some_heads(mixer_for(FrequencyToeplitz()), 2) is None
    assert of_some_heads(mixer_for(Toeplitz()), 3) is None  # 4 key heads
