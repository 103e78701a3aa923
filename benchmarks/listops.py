"""ListOps (Nangia and Bowman, 2018) in the form of the Long Range Arena (Tay et al., 2021, section 2.2.1).

An expression is a digit, or "[", one of MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10), two
arguments at least, which are expressions, and "]". Its value is a digit: ten classes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from statistics import median

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END = "]"
TOKENS = (*map(str, range(10)), *OPERATORS, END)
ID = {token: index for index, token in enumerate(TOKENS)}
OPERATOR_CHANCE = 0.25


def apply(operator: str, arguments: Sequence[int]) -> int:
    """What an operator gives for its arguments.

    Example:
        >>> [apply(operator, [9, 4, 8, 1]) for operator in OPERATORS]
        [1, 9, 6, 2]
    """
    match operator:
        case "[MIN":
            return min(arguments)
        case "[MAX":
            return max(arguments)
        case "[MED":
            return int(median(arguments))
        case _:
            return sum(arguments) % 10


def evaluate(tokens: Sequence[str]) -> int:
    """The value of an expression, in one reading.

    Raises:
        ValueError: the tokens aren't one whole expression.

    Example:
        >>> evaluate("[MAX 2 [MIN 7 9 ] [SM 8 5 ] ]".split())
        7
    """
    operators: list[str] = []
    arguments: list[list[int]] = [[]]
    for token in tokens:
        if token in OPERATORS:
            operators.append(token)
            arguments.append([])
        elif token == END:
            if not operators or not arguments[-1]:
                raise ValueError(f"a bracket closes nothing: {' '.join(tokens)}")
            value = apply(operators.pop(), arguments.pop())
            arguments[-1].append(value)
        else:
            arguments[-1].append(int(token))
    if operators or len(arguments[0]) != 1:
        raise ValueError(f"not one whole expression: {' '.join(tokens)}")
    return arguments[0][0]


def expression(
    rng: random.Random, *, max_depth: int = 10, max_args: int = 10, max_length: int | None = None
) -> list[str] | None:
    """A random expression: an operator in one of four cases, with 2 to max_args arguments, else a digit.

    Args:
        rng: where chance comes from.
        max_depth: how deep a digit may stand at most; the whole expression has depth 1.
        max_args: of an operator.
        max_length: in tokens, or None.

    Returns:
        Its tokens, or None as soon as they are more than max_length.
    """
    tokens: list[str] = []
    missing = [1]  # arguments still to come, of every operator that is open
    while missing:
        if max_length is not None and len(tokens) + sum(missing) + len(missing) - 1 > max_length:
            return None
        if missing[-1] == 0:
            missing.pop()
            if missing:
                tokens.append(END)
            continue
        missing[-1] -= 1
        if len(missing) < max_depth and rng.random() < OPERATOR_CHANCE:
            tokens.append(rng.choice(OPERATORS))
            missing.append(rng.randint(2, max_args))
        else:
            tokens.append(str(rng.randrange(10)))
    return tokens


def samples(
    seed: int, *, min_length: int = 500, max_length: int = 2000, max_depth: int = 10, max_args: int = 10
) -> Iterator[tuple[list[str], int]]:
    """Expressions with their values, endlessly; no expression comes twice.

    Args:
        seed: the same one gives the same samples.
        min_length: in tokens, brackets included. 500 to 2,000 are the Arena's bounds.
        max_length: in tokens.
        max_depth: see `expression`.
        max_args: see `expression`.

    Yields:
        Tokens and value.
    """
    rng = random.Random(seed)
    seen = set()
    while True:
        tokens = expression(rng, max_depth=max_depth, max_args=max_args, max_length=max_length)
        if tokens is not None and len(tokens) >= min_length and (key := bytes(map(ID.get, tokens))) not in seen:
            seen.add(key)
            yield tokens, evaluate(tokens)
