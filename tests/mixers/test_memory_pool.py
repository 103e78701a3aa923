"""Memory that goes from one large tensor to the next."""

import re
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch

from remixer.mixers import memory_pool
from remixer.mixers.memory_pool import KEPT, LARGE, KeptMemory, MemoryPool, empty, pooled_memory

PAGE = 2**20
# MADV_FREE and /proc are of Linux; `test_elsewhere_nothing_is_kept` says what holds without them.
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is kept between calls on Linux only")


def test_memory_comes_back_with_the_last_view():
    pool = MemoryPool()
    first = pool.empty((4, PAGE), torch.float32)
    where = first.data_ptr()
    view = first.view(2, 2, PAGE)[1, :, 3:]
    del first
    assert pool.free == []
    other = pool.empty((4, PAGE), torch.float32)
    assert other.data_ptr() != where
    view.fill_(7.0)
    other.fill_(1.0)
    assert (view == 7.0).all()
    del view
    assert len(pool.free) == 1
    assert pool.empty((2, 4 * PAGE), torch.bfloat16).data_ptr() == where


@pytest.mark.parametrize(("size", "fits"), [(8, True), (5, True), (4, True), (3, False), (9, False)])
def test_memory_serves_what_is_nearly_as_large(size, fits):
    pool = MemoryPool()
    pool.empty((8, PAGE), torch.uint8).fill_(1)
    tensor = pool.empty((size, PAGE), torch.uint8)
    assert len(pool.free) == (0 if fits else 1)
    assert tensor.untyped_storage().nbytes() == size * PAGE
    del tensor
    assert len(pool.free) == (1 if fits else 2)


def test_the_smallest_that_fits_is_taken():
    pool = MemoryPool()
    held = [pool.empty((size, PAGE), torch.uint8) for size in (9, 6, 7)]
    held.clear()
    tensor = pool.empty((5, PAGE), torch.uint8)
    assert sorted(len(each) // PAGE for each in pool.free) == [7, 9]
    assert tensor.shape == (5, PAGE)


def test_only_large_tensors_are_of_the_pool_and_only_inside():
    rows = LARGE // 4
    with pooled_memory() as pool:
        with pooled_memory() as same:
            assert same is pool
            large = empty((rows,), torch.float32)
        large.fill_(3.0)
        del large
        assert len(pool.free) == 1
        again = empty((rows,), torch.float32)
        assert pool.free == []
        small = empty((rows - 1,), torch.float32)
        del small
        assert pool.free == []
    outside = empty((rows,), torch.float32)
    del outside
    assert pool.free == []
    again.fill_(5.0)
    del pool, same
    assert (again == 5.0).all(), "what is left keeps its memory"


def test_an_error_ends_the_pool():
    with pytest.raises(ZeroDivisionError), pooled_memory():
        1 / 0  # noqa: B018
    assert memory_pool._current.pool is None


def test_what_is_left_of_a_run_keeps_its_own_memory_only():
    with pooled_memory() as pool:
        left, gone = empty((LARGE,), torch.uint8), empty((LARGE,), torch.uint8)
        left.fill_(3)
        del gone
        (memory,) = pool.free
        given_back = weakref.ref(memory)
        del memory
    assert given_back() is None
    assert (left == 3).all()
    del left
    assert pool.free == []


def test_threads_have_pools_of_their_own():
    seen = []
    with pooled_memory():
        thread = threading.Thread(target=lambda: seen.append(memory_pool._current.pool))
        thread.start()
        thread.join()
    assert seen == [None]


def test_tensors_of_inference_mode_can_be_written_to_in_it():
    pool = MemoryPool()
    with torch.inference_mode():
        tensor = pool.empty((3, 5), torch.float64)
        tensor.fill_(2.0)
        assert tensor.is_inference()
    assert not pool.empty((3, 5), torch.float64).is_inference()


def free_for_others(address):
    """Bytes around an address that the system may take."""
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    for first, last, rest in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (.*?)(?=^[0-9a-f]+-|\Z)", maps, re.M | re.S):
        if int(first, 16) <= address < int(last, 16):
            return int(re.search(r"^LazyFree: +(\d+) kB", rest, re.M)[1]) * 1024
    return None


@linux
def test_between_calls_memory_is_kept_and_the_system_may_have_it():
    pool = KeptMemory()
    tensor = pool.empty((16 * PAGE,), torch.uint8).fill_(1)
    where = tensor.data_ptr()
    assert free_for_others(where) == 0
    del tensor
    assert free_for_others(where) >= 16 * PAGE
    again = pool.empty((16 * PAGE,), torch.uint8)
    assert again.data_ptr() == where
    assert (again.fill_(3) == 3).all()
    assert free_for_others(where) == 0


@linux
def test_only_the_last_memories_are_kept():
    pool = KeptMemory()
    held = [pool.empty((16 * PAGE,), torch.uint8) for _ in range(KEPT + 2)]
    places = [each.data_ptr() for each in held]
    while held:
        held.pop(0)
    assert len(pool.free) == KEPT
    again = [pool.empty((16 * PAGE,), torch.uint8) for _ in range(KEPT)]
    assert {each.data_ptr() for each in again} == set(places[2:])


@linux
def test_memory_that_the_system_does_not_take_is_not_kept(monkeypatch):
    pool = KeptMemory()
    monkeypatch.setattr(memory_pool.mmap, "MADV_FREE", 12345)
    tensor = pool.empty((16 * PAGE,), torch.uint8).fill_(1)
    del tensor
    assert pool.free == []


def test_elsewhere_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(memory_pool._current, "kept", None)
    tensor = empty((LARGE,), torch.uint8).fill_(1)
    assert tensor.untyped_storage().resizable(), "torch's own memory"


@linux
def test_results_of_mixers_share_memory_between_calls():
    rows = LARGE // 4
    first = empty((rows,), torch.float32).fill_(1.0)
    other = empty((rows,), torch.float32).fill_(2.0)
    where = {first.data_ptr(), other.data_ptr()}
    assert len(where) == 2
    assert (first == 1.0).all()
    del first, other
    assert empty((rows,), torch.float32).data_ptr() in where
    with pooled_memory():
        assert empty((rows,), torch.float32).data_ptr() not in where, "a run has a pool of its own"
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(empty((rows,), torch.float32).data_ptr()))
    thread.start()
    thread.join()
    assert elsewhere[0] not in where
