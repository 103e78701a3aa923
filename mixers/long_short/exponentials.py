"""Sums of exponentials: in base 2, which is faster, and with no largest one divided out where none needs it."""

from __future__ import annotations

import math

from torch import Tensor

IN_BASE_2 = math.log2(math.e)  # exp(x) is 2 to the x times this


def in_range(total: Tensor) -> bool:
    """Whether sums of exponentials are so far from overflow, and from 0, that no share of them lost precision."""
    return 2.0**-90 < float(total.min()) <= float(total.max()) < 2.0**90
