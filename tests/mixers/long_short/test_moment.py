import torch

from remixer.mixers import AttentionSpec, LongShort, LongShortMixer
from remixer.mixers.long_short import moment
from remixer.mixers.long_short.moment import Rings, moment_of
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=2, kv_heads=1, head_dim=4, value_dim=4, scale=0.5, causal=True, source_dim=5)
CONFIG = LongShort(window=6, segment=2, memory="dyadic", per_size=2)


def test_layers_share_what_goes_by_the_time():
    layers = [LongShortMixer(SPEC, CONFIG).eval() for _ in range(3)]
    token = torch.randn(1, 1, 1, 4)
    states = [layer.initial_state(1, 40, token) for layer in layers]
    moment._at.cache_clear()
    with torch.no_grad():
        for _ in range(5):
            for i, layer in enumerate(layers):
                _, states[i] = layer.step(states[i], token.expand(1, 2, 1, 4), token, token)
    found = moment._at.cache_info()
    assert (found.misses, found.hits) == (5, 10)


def test_what_is_kept_is_what_a_graph_computes():
    state = LongShortMixer(SPEC, CONFIG).initial_state(1, 40, torch.randn(1, 1, 1, 4))
    rings = Rings.of(state, CONFIG, 2, 3)
    for time in range(40):
        with torch.inference_mode():
            kept = moment_of(torch.tensor(time), rings)
        assert_close(tuple(kept), tuple(moment._moment(torch.tensor(time), rings)))
        assert not any(each.is_inference() for each in kept)
