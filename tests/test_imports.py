"""Modules that build upon one another can be imported in either order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["mgsr.minillm", "mgsr.objective"])
def test_either_module_can_be_imported_first(module: str) -> None:
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, timeout=120, cwd=root)
