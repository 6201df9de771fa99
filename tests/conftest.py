"""What all tests need before they start."""

from __future__ import annotations

import sys
from pathlib import Path

# Tests import what they share by its name, whatever folder of tests/unit it lies in.
sys.path[:0] = sorted({str(path.parent) for path in (Path(__file__).parent / "unit").rglob("*.py")})
