"""Passes in a process of their own: what one takes at most can only be told where nothing ran before it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def alone(script: str, *arguments: object) -> Any:
    """What a script prints as JSON in its last line, in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def grown_bytes(call: Callable[[], object]) -> int:
    """By how many bytes a call grows this process at most, beyond what it holds before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the most so far is forgotten
    before = _held("VmRSS")
    call()
    return _held("VmHWM") - before


def _held(field: str) -> int:
    """Bytes that this process holds now, or held at most; not those of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
