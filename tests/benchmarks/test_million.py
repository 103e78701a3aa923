import million
import pytest
from pretrained import minilm


def test_positions_start_again():
    places = million.inputs_of(1030)["position_ids"][0]
    assert places.max() == 511
    assert places[:3].tolist() == places[512:515].tolist() == [0, 1, 2]


@pytest.mark.parametrize("mixer", list(million.CONFIGS))
def test_operations_grow_with_the_tokens(mixer):
    model, _ = minilm()
    once, twice = (million.operations(model, mixer, tokens) for tokens in (2**18, 2**19))
    assert 1.99 < twice / once < 2.1
    assert 1.5e7 < once / 2**18 < 4e7  # about two for each of the layers' 10.6 million weights
