import million
import pytest
from pretrained import minilm


@pytest.mark.parametrize("mixer", list(million.CONFIGS))
def test_operations_grow_with_the_tokens(mixer):
    model, _ = minilm()
    once, twice = (million.operations(model, mixer, tokens) for tokens in (2**18, 2**19))
    assert 1.99 < twice / once < 2.1
    assert 1.5e7 < once / 2**18 < 4e7  # about two for each of the layers' 10.6 million weights
