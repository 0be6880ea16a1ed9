from __future__ import annotations

import pytest

from mgsr.losses import ranking
from mgsr.losses.fused import selection


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection, deeper selection and full sort, all at a few hundred classes."""
    monkeypatch.setattr(ranking, "SORT_WIDTH", 20)
    monkeypatch.setattr(selection, "DEPTHS", (32, 96))
