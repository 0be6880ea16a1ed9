"""No test of the plan looks at this machine's hub cache or at the network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from mgsr.planning import shapes


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "no hub cache"))
    monkeypatch.setattr(shapes, "_cached", lambda model: None)
