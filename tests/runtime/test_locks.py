"""A folder is one process's, and whoever waits for it gets it."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from mgsr.runtime.locks import locked


def test_who_waits_gets_a_folder_that_was_removed_meanwhile(tmp_path: Path) -> None:
    folder, had = tmp_path / "teacher.partial", threading.Event()
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            with locked(folder, wait=True):
                had.set()
        except BaseException as error:
            failed.append(error)

    waiting = threading.Thread(target=wait)
    with locked(folder):
        waiting.start()
        time.sleep(0.3)
        assert not had.is_set()
        # as a stage does when its model has moved to its place
        shutil.rmtree(folder)
    waiting.join(timeout=20)
    assert had.is_set() and not failed
