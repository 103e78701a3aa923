"""Test files of this folder share `reader`, which processes import too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
