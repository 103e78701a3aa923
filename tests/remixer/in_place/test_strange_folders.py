"""What a stranger can write into the config of a model with mixers inside is an error before anything is made of it."""

import json

import pytest

import remixer
from remixer import InPlaceError, UnknownMixerError


@pytest.fixture
def folder(tiny, inputs, tmp_path):
    remixer.remix(tiny("llama"), "long_short", inputs(), in_place=True).save_pretrained(tmp_path)
    return tmp_path


def test_records_that_are_none(folder):
    file = folder / "config.json"
    whole = file.read_text()

    def refused(change, told, kind=InPlaceError):
        found = json.loads(whole)
        change(found["remixer"], next(iter(found["remixer"]["mixers"].values())))
        file.write_text(json.dumps(found))
        with pytest.raises(kind, match=told):
            remixer.from_pretrained(None, folder)

    refused(lambda inside, entry: inside.update(form="somebody/kernels"), "no form of attention 'somebody/kernels'")
    refused(lambda inside, entry: inside.update(masks=3), r"remixer\.masks: expected a list")
    refused(lambda inside, entry: inside.update(more=3), "Inside has no 'more'")
    refused(lambda inside, entry: entry["spec"].update(dtype="load"), "expected a dtype of torch, got 'load'")
    refused(
        lambda inside, entry: entry["spec"].update(heads=2**40, kv_heads=2**40), "no mixer can be made|other shapes"
    )
    refused(lambda inside, entry: entry["config"].update(window=0), "window must be at least 1")
    refused(lambda inside, entry: entry["config"].update(window="4"), "window: expected int, got '4'")
    refused(lambda inside, entry: entry["config"].update(mixer="magic"), "no mixer named 'magic'", UnknownMixerError)
    for text in ("[" * 100_000, "{", whole[: len(whole) // 2]):
        file.write_text(text)
        with pytest.raises(InPlaceError, match=r"can't read .*config\.json"):
            remixer.from_pretrained(None, folder)
    file.write_text(whole)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InPlaceError, match=r"can't read .*model\.safetensors"):
        remixer.from_pretrained(None, folder)
