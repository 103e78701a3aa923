"""Passes in a process of their own: what one takes at most can only be told where nothing ran before it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from remixer.evaluation.memory import grown_bytes

__all__ = ["alone", "grown_bytes"]


def alone(script: str, *arguments: object) -> Any:
    """What a script prints as JSON in its last line, in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
