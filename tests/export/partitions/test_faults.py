"""A process that is gone, or hangs: an error on all others within the timeout, which names it."""

import pytest
import reader
import torch
from reader import Reader, inputs

import remixer
from processes import Processes
from remixer.export import partition


@pytest.mark.parametrize(
    ("how", "scheme"),
    [
        ("killed", "all_gather"),
        pytest.param("hung", "ring", marks=pytest.mark.slow),
        pytest.param("killed", "ring", marks=pytest.mark.slow),
        pytest.param("hung", "all_gather", marks=pytest.mark.slow),
    ],
)
def test_it_is_named_on_all_others(tmp_path, scheme, how):
    torch.manual_seed(0)
    small = remixer.remix(Reader(layers=1).eval(), "distributed", inputs())
    partition(small, 3, scheme=scheme).save(tmp_path / "parts")
    running = Processes(3, tmp_path, timeout=5)
    try:
        running.start(reader.one_leaves, tmp_path / "parts", how)
        for rank in (0, 2):
            fine, (kind, told, seconds) = running.answer(rank)
            assert fine
            assert kind == "PartitionError"
            assert f"process {rank} can't go on: process 1 is gone or hangs" in told
            assert seconds < 25
    finally:
        running.close()
