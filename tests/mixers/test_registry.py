import json
from dataclasses import dataclass

import pytest

from remixer.mixers import (
    LongShort,
    LongShortMixer,
    MixerConfig,
    Softmax,
    SoftmaxConfig,
    Toeplitz,
    ToeplitzMixer,
    UnknownMixerError,
    available,
    get,
    mixer_of,
    register,
)


def test_the_built_in_mixers_are_there():
    assert {"softmax", "toeplitz", "frequency_toeplitz", "long_short"} <= set(available())
    assert list(available()) == sorted(available())
    assert get("toeplitz") is ToeplitzMixer


@pytest.mark.parametrize(
    ("config", "mixer"), [(SoftmaxConfig(), Softmax), (Toeplitz(), ToeplitzMixer), (LongShort(), LongShortMixer)]
)
def test_a_config_knows_its_mixer(config, mixer):
    assert mixer_of(config) is mixer
    assert get(config.name) is mixer


@pytest.mark.parametrize("config", [Toeplitz(decay=None, gate="query"), LongShort(rank=4, memory=None)])
def test_configs_are_values_that_json_can_hold(config):
    options = json.loads(json.dumps(config.to_dict()))
    assert options.pop("mixer") == config.name
    assert type(config)(**options) == config
    assert len({config, type(config)(**options)}) == 1


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownMixerError, match=r"no mixer named 'toeplits'; available: .*Did you mean 'toeplitz'\?"):
        get("toeplits")


def test_an_unknown_config_says_what_to_do():
    @dataclass(frozen=True)
    class Mine(MixerConfig):
        pass

    with pytest.raises(UnknownMixerError, match="no mixer takes a Mine; register one"):
        mixer_of(Mine())


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="mixer 'softmax' is already registered, by remixer"):
        register("softmax")(ToeplitzMixer)
    assert register("toeplitz")(ToeplitzMixer) is ToeplitzMixer
