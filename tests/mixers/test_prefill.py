"""The first tokens at once: what they give, and that steps go on from there as if they had come one by one."""

import dataclasses

import pytest
import torch
from streamed import CASES, SPEC, mixer_for, operands_for, padding_for

from remixer.mixers import LongShort, Toeplitz, get
from remixer.mixers.errors import NoStepError
from remixer.mixers.frequency_toeplitz import FrequencyToeplitz
from remixer.mixers.softmax import SoftmaxConfig
from remixer.testing import assert_close

ALL = [
    *CASES,
    ("toeplitz", Toeplitz()),
    ("toeplitz", Toeplitz(normalise=False, per="head", gate="query")),
    ("toeplitz", Toeplitz(decoding="state_space")),
    ("toeplitz", Toeplitz(weigh="key", gate="value")),
    ("frequency_toeplitz", FrequencyToeplitz(gate="value")),
    ("softmax", SoftmaxConfig()),
]
LENGTH = 90


def gone_on(mixer, tensors, padding, first, **fixed):
    """The first tokens at once, then all others one by one."""

    def some(start, stop):
        found = {name: each.narrow(1 if name == "source" else 2, start, stop - start) for name, each in tensors.items()}
        return found | {"padding": None if padding is None else padding[:, start:stop]} | fixed

    out, state = mixer.prefill(LENGTH, **some(0, first))
    rows = [out]
    for t in range(first, tensors["value"].shape[2]):
        out, state = mixer.step(state, **some(t, t + 1))
        rows.append(out)
    return torch.cat(rows, 2)


def expected(mixer, tensors, padding, **fixed):
    T = tensors["value"].shape[2]
    if mixer.config.name == "frequency_toeplitz":  # its coefficients are those of the length that a state is made for
        return mixer.prefill(LENGTH, **tensors, padding=padding)[0]
    if "bias" in fixed:
        fixed["bias"] = fixed["bias"][:, LENGTH - T : LENGTH + T - 1]
    return mixer(**tensors, padding=padding, **fixed)


def assert_goes_on(mixer, kind, lengths=((1, 1), (2, 1), (9, 8), (40, 17), (83, 64)), **fixed):
    for T, first in lengths:
        tensors, padding = operands_for(mixer, T, 2), padding_for(kind, 2, T)
        got, want = gone_on(mixer, tensors, padding, first, **fixed), expected(mixer, tensors, padding, **fixed)
        if padding is not None:
            got, want = (each.transpose(1, 2)[padding] for each in (got, want))
        assert_close(got, want)


@pytest.mark.parametrize(("name", "config"), ALL, ids=lambda x: x if isinstance(x, str) else repr(x)[:90])
@pytest.mark.parametrize("padding", ["none", "left", "holes"])
@pytest.mark.parametrize("trained", [True, False], ids=["grad", "no_grad"])
def test_steps_go_on_from_what_came_at_once(name, config, padding, trained):
    with torch.set_grad_enabled(trained):
        assert_goes_on(mixer_for(name, config), padding)


SPECS = {
    "window": {"window": (3, 0)},
    "itself": {"window": (0, 0)},
    "softcap": {"softcap": 2.0},
    "one_head_each": {"kv_heads": 4},
    "bias": {"bias": "offset"},
    "bias_by_existing": {"bias": "offset", "skips_padding": True},
    "windowed_bias": {"bias": "offset", "window": (5, 0), "skips_padding": True},
    "sink": {"sink": True},
    "no_padding": {"padding": False},
}


@pytest.mark.parametrize("changes", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("padding", ["none", "left"])
def test_softmax_of_every_kind(changes, padding):
    if changes == SPECS["no_padding"] and padding == "left":
        padding = "none"
    mixer = mixer_for("softmax", SoftmaxConfig(), **changes)
    fixed = {}
    if "bias" in changes:
        fixed["bias"] = torch.randn(4, 2 * LENGTH - 1, dtype=torch.float64)
    if "sink" in changes:
        fixed["sink"] = torch.randn(4, dtype=torch.float64)
    assert_goes_on(mixer, padding, **fixed)


@pytest.mark.parametrize("skips", [False, True], ids=["by_place", "by_existing"])
def test_long_short_with_a_bias_by_offset(skips):
    mixer = mixer_for("long_short", LongShort(window=8, segment=4, memory=3), bias="offset", skips_padding=skips)
    assert_goes_on(mixer, "left", bias=torch.randn(4, 2 * LENGTH - 1, dtype=torch.float64))


@pytest.mark.parametrize(("name", "config"), ALL, ids=lambda x: x if isinstance(x, str) else repr(x)[:90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_lower_precision(name, config, dtype):
    mixer = mixer_for(name, config, dtype)
    with torch.no_grad():
        assert_goes_on(mixer, "none", lengths=((40, 17),))


def test_softmax_takes_several_tokens_at_once():
    mixer = mixer_for("softmax", SoftmaxConfig(), window=(6, 0))
    tensors, padding = operands_for(mixer, 20, 2), padding_for("left", 2, 20)
    state, rows = mixer.initial_state(2, 20, tensors["value"]), []
    for start, stop in ((0, 5), (5, 6), (6, 20)):
        some = {name: each[:, :, start:stop] for name, each in tensors.items()}
        out, state = mixer.step(state, **some, padding=padding[:, start:stop])
        rows.append(out)
    got, want = (each.transpose(1, 2)[padding] for each in (torch.cat(rows, 2), mixer(**tensors, padding=padding)))
    assert_close(got, want)


def test_a_wrong_state_is_noticed():
    """The comparison can fail: a state of other tokens gives something else."""
    mixer = mixer_for("long_short", LongShort(window=8, segment=4, memory=3))
    tensors = operands_for(mixer, 40, 2)
    want = mixer(**tensors)
    tensors["value"] = torch.cat([tensors["value"][:, :, :20].flip(2), tensors["value"][:, :, 20:]], 2)
    with pytest.raises(AssertionError):
        assert_close(gone_on(mixer, tensors, None, 20)[:, :, -1], want[:, :, -1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"causal": False}, "tokens to come"),
        ({"cross": True}, "of another sequence"),
        ({"bias": "dense"}, "whole sequences only"),
    ],
)
def test_softmax_that_has_no_state(changes, told):
    mixer = get("softmax")(dataclasses.replace(SPEC, **changes), SoftmaxConfig())
    with pytest.raises(NoStepError, match=told):
        mixer.initial_state(1, 8, torch.zeros(1))
