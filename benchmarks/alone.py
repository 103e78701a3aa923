"""Passes in a process of their own: what one takes at most can only be told where nothing ran before it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def alone(script: str, *arguments: object) -> Any:
    """What a script prints as JSON in its last line, in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def grown_bytes(call: Callable[[], object]) -> int:
    """By how many bytes a call grows this process beyond the most that it ever held."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
