import doctest
import random
import re
from collections import Counter
from itertools import islice

import listops
import pytest

INNERMOST = re.compile(r"\[(MIN|MAX|MED|SM) ([0-9 ]+)\]")


def naive(text):
    """The innermost brackets replaced by their values until none is left."""

    def value(match):
        digits = sorted(int(digit) for digit in match[2].split())
        middle = (digits[(len(digits) - 1) // 2] + digits[len(digits) // 2]) // 2
        return str({"MIN": digits[0], "MAX": digits[-1], "MED": middle, "SM": sum(digits) % 10}[match[1]])

    while "[" in text:
        text = INNERMOST.sub(value, text)
    return int(text)


def depth_of(tokens):
    depth = deepest = 1
    for token in tokens:
        depth += (token in listops.OPERATORS) - (token == listops.END)
        deepest = max(deepest, depth)
    return deepest


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MIN 4 2 9 ]", 2),
        ("[MED 1 2 ]", 1),
        ("[MED 9 1 5 ]", 5),
        ("[SM 9 9 9 ]", 7),
        ("[MAX [SM 9 9 ] [MED 3 [MIN 8 5 ] 4 ] 1 ]", 8),
    ],
)
def test_values_by_hand(text, value):
    assert listops.evaluate(text.split()) == value == naive(text)


def test_the_examples_are_true():
    assert doctest.testmod(listops) == (0, 2)


def test_values_agree_with_the_naive_evaluator():
    rng = random.Random(0)
    for _ in range(2000):
        tokens = listops.expression(rng, max_depth=6)
        assert listops.evaluate(tokens) == naive(" ".join(tokens))


@pytest.mark.parametrize("text", ["", "1 2", "[MIN 1", "1 ]", "[MIN ]", "[MIN 1 2 ] 3"])
def test_what_is_no_expression_has_no_value(text):
    with pytest.raises(ValueError, match=r"a bracket closes nothing|not one whole expression"):
        listops.evaluate(text.split())


def test_samples_keep_their_bounds():
    found = list(islice(listops.samples(0, min_length=30, max_length=60, max_depth=5, max_args=4), 300))
    assert all(30 <= len(tokens) <= 60 for tokens, _ in found)
    assert max(len(tokens) for tokens, _ in found) > 55
    assert max(depth_of(tokens) for tokens, _ in found) == 5
    assert len({" ".join(tokens) for tokens, _ in found}) == 300
    assert all(value == naive(" ".join(tokens)) for tokens, value in found)
    for tokens, _ in found:
        counts = [len(match[2].split()) for match in INNERMOST.finditer(" ".join(tokens))]
        assert all(2 <= count <= 4 for count in counts)


def test_the_default_bounds_are_those_of_the_arena():
    tokens, _ = next(listops.samples(3))
    assert 500 <= len(tokens) <= 2000


def test_a_length_that_cannot_be_kept_ends_at_once():
    rng = random.Random(1)
    lengths = [len(tokens) for _ in range(500) if (tokens := listops.expression(rng, max_length=12)) is not None]
    assert max(lengths) <= 12
    unbounded = random.Random(1)
    assert any(len(listops.expression(unbounded)) > 12 for _ in range(500))


def test_operators_and_digits_come_evenly():
    rng = random.Random(2)
    counts = Counter(token for _ in range(4000) for token in listops.expression(rng, max_depth=3))
    operators = [counts[operator] for operator in listops.OPERATORS]
    digits = [counts[str(digit)] for digit in range(10)]
    assert max(operators) < 1.25 * min(operators)
    assert max(digits) < 1.25 * min(digits)


def test_the_same_seed_gives_the_same_samples():
    first, again, other = (list(islice(listops.samples(seed, min_length=20), 5)) for seed in (4, 4, 5))
    assert first == again != other
