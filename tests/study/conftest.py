"""What makes tests of studies fast."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def little_garbage() -> None:
    """statsmodels collects garbage with every adjustment: what was imported is not looked through each time."""
    gc.collect()
    gc.freeze()
