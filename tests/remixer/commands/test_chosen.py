"""Mixers as they are written on a command line."""

import pytest
import typer

from remixer import LongShort, MixerConfigError, Toeplitz, UnknownMixerError
from remixer.commands.chosen import choice_of, configs_of, mapping_of


@pytest.mark.parametrize(("asked", "meant"), [
    (["long_short"], {"*": LongShort()}),
    (["long_short()"], {"*": LongShort()}),
    (["long_short(window=64, sinks=0)"], {"*": LongShort(window=64, sinks=0)}),
    (["toeplitz(decay=None,gate='value')"], {"*": Toeplitz(decay=None, gate="value")}),
    (["encoder.*=toeplitz"], {"encoder.*": Toeplitz()}),
    (["encoder.*=none", "long_short"], {"encoder.*": None, "*": LongShort()}),
    ([r"re:.*layer\.(0|1=2)\..*=long_short(memory='dyadic')"],
     {r"re:.*layer\.(0|1=2)\..*": LongShort(memory="dyadic")}),
    (["b = long_short( window = 8 ) "], {"b ": LongShort(window=8)}),
])  # fmt: skip
def test_what_is_meant(asked, meant):
    assert mapping_of(asked) == meant
    assert list(mapping_of(asked)) == list(meant)


@pytest.mark.parametrize(("asked", "told"), [
    ("long_short(64)", "options are written name=value"),
    ("long_short(**{'window': 64})", "options are written name=value"),
    ("long_short(window=__import__('os').getpid())", "options are numbers, True, False, None"),
    ("long_short(window=1)(sinks=2)", "options are written name=value"),
    ("long_short(window=width)", "texts in quotes"),
    ("long_short(window=1, window=2)", "can't read the options"),
    ("long_short(window=" + "(" * 300 + ")" * 300 + ")", "can't read the options"),
    ("long_short(window=64", "can't read the mixer"),
    ("long short", "can't read the mixer"),
    ("", "can't read the mixer"),
    ("encoder=", "can't read the mixer"),
])  # fmt: skip
def test_what_nobody_can_read(asked, told):
    with pytest.raises(typer.BadParameter, match=told):
        mapping_of([asked])


def test_nothing_is_ever_evaluated(tmp_path):
    marker = tmp_path / "ran"
    for written in (
        f"open({str(marker)!r}, 'w')",
        f"[open({str(marker)!r}, 'w') for _ in '1']",
        f"f'{{open({str(marker)!r},'",
    ):
        with pytest.raises(typer.BadParameter):
            mapping_of([f"long_short(window={written})"])
    assert not marker.exists()


def test_mixers_and_options_that_there_are_not():
    with pytest.raises(UnknownMixerError, match="Did you mean 'toeplitz'"):
        mapping_of(["toeplits"])
    with pytest.raises(MixerConfigError, match="'long_short' has no option 'wndow'; it has window, rank"):
        mapping_of(["long_short(wndow=3)"])
    with pytest.raises(MixerConfigError, match="window must be at least 1, got 0"):
        mapping_of(["long_short(window=0)"])


def test_one_pattern_twice():
    with pytest.raises(typer.BadParameter, match=r"two mixers are given for '\*'"):
        mapping_of(["long_short", "toeplitz"])


def test_a_plan_takes_no_patterns():
    assert configs_of(["long_short", "long_short(window=8)"]) == [LongShort(), LongShort(window=8)]
    for one in ("encoder.*=long_short", "none"):
        with pytest.raises(typer.BadParameter, match="finds out itself what goes where"):
            configs_of([one])


def test_mixers_or_a_plan(tmp_path):
    for asked, plan in (([], None), (["toeplitz"], tmp_path / "plan.json")):
        with pytest.raises(typer.BadParameter, match="either --mixer"):
            choice_of(asked, plan)
