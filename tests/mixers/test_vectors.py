"""What the compiled code reckons with, number by number: vectors.h."""

import ctypes
from pathlib import Path

import pytest
import torch

from remixer.mixers import c_library
from remixer.mixers.c_library import NUMBERS, library

HEADER = Path(c_library.__file__).with_name("vectors.h").resolve()
CODE = f"""
#include "{HEADER}"
void exp2_each(REAL *x, int64_t count)
{{
    for (int64_t i = 0; i < count; i += WIDE) {{
        vector some;
        memcpy(&some, x + i, sizeof some);
        some = exp2_of(some);
        memcpy(x + i, &some, sizeof some);
    }}
}}
void larger_each(REAL *x, const REAL *y, int64_t count)
{{
    for (int64_t i = 0; i < count; i += WIDE) {{
        vector a, b;
        memcpy(&a, x + i, sizeof a), memcpy(&b, y + i, sizeof b);
        a = larger(a, b);
        memcpy(x + i, &a, sizeof a);
    }}
}}
"""


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def made(tmp_path_factory, dtype):
    folder = tmp_path_factory.mktemp("vectors")
    source = folder / "each.c"
    source.write_text(CODE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        found = library(source, REAL=NUMBERS[dtype])
    if found is None:
        pytest.skip("no C compiler")
    return found


def applied(each, x, *others):
    """A function of the code, to all numbers of x."""
    padded = [torch.nn.functional.pad(one, (0, -len(x) % 16)) for one in (x, *others)]
    each(*(ctypes.c_void_p(one.data_ptr()) for one in padded), ctypes.c_int64(len(padded[0])))
    return padded[0][: len(x)]


def test_powers_of_two_to_the_last_digits(made, dtype):
    lowest, eps = (-125.99, 2**-23) if dtype is torch.float32 else (-1021.99, 2**-52)
    x = torch.cat([torch.linspace(*ends, 100_003, dtype=dtype) for ends in ((lowest, 0.99), (-1, 0), (-1e-6, 0))])
    exact = torch.exp2(x.double())
    assert ((applied(made.exp2_each, x).double() - exact) / exact).abs().max() < 2 * eps


def test_powers_of_whole_numbers(made, dtype):
    lowest = -125 if dtype is torch.float32 else -1021
    x = torch.arange(lowest, 1, dtype=dtype)
    found = applied(made.exp2_each, x)
    assert found[-1] == 1
    assert ((found / torch.exp2(x)) - 1).abs().max() <= torch.finfo(dtype).eps


def test_below_the_normal_numbers_there_is_nothing_left(made, dtype):
    least = -126.0 if dtype is torch.float32 else -1022.0
    x = torch.tensor([least, least - 0.5, 2 * least, -1e30, -torch.inf, torch.nan, 0.0], dtype=dtype)
    found = applied(made.exp2_each, x)
    assert found[:5].tolist() == [0.0] * 5
    assert found[5].isnan()
    assert found[6] == 1


def test_the_larger_one_and_what_is_no_number(made, dtype):
    nan, inf = torch.nan, torch.inf
    x = torch.tensor([1.0, -2.0, 0.0, -inf, -inf, inf, nan, 3.0], dtype=dtype)
    y = torch.tensor([2.0, -3.0, 0.0, -5.0, -inf, 7.0, 4.0, nan], dtype=dtype)
    assert str(applied(made.larger_each, x, y).tolist()) == str([2.0, -2.0, 0.0, -5.0, -inf, inf, 4.0, nan])
