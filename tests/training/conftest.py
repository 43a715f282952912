"""The tiny task, for every test of the training layer."""

from __future__ import annotations

import sys
from pathlib import Path

# The tests are imported by path, so that a module beside them is found only like this.
sys.path.insert(0, str(Path(__file__).parent))
