"""A run that several files look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgsr.cli.main import main


@pytest.fixture(scope="session")
def two_set_run(tiny_file: Path, shared_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two test sets."""
    more = tmp_path_factory.mktemp("data") / "mine.jsonl"
    more.write_text('{"instruction": "Say hi", "output": "hi"}\n')
    words = [f"run_root={shared_root}", "experiment=terminal", f"data.test_sets={{mine: {more}}}"]
    assert main(["train", str(tiny_file), *words]) == 0
    return shared_root / "terminal" / "mgsr" / "seed=0"
