"""Test files of this folder share processes, and the functions that these run."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from processes import Processes  # noqa: E402 - found by the line above


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    """Processes by how many they are."""
    running = {}

    def get(size):
        if size not in running:
            running[size] = Processes(size, tmp_path_factory.mktemp(f"processes{size}"))
        return running[size]

    yield get
    for one in running.values():
        one.close()
