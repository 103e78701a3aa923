"""Test files of this folder share `in_processes`, which processes import too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
