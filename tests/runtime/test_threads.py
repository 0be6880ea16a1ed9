"""Loops shared between threads: every share once, and in a fork too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mgsr.runtime.threads import in_shares
from tests.reliability.harness import forked

Threads = Callable[[int], None]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads PyTorch has, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("size", "multiple"), [(0, 1), (1, 1), (7, 1), (100, 8), (17, 16), (3, 64)])
def test_every_place_is_worked_on_once(threads: Threads, size: int, multiple: int) -> None:
    threads(3)
    shares: list[tuple[int, int]] = []
    in_shares(lambda first, stop: shares.append((first, stop)), size, multiple=multiple)
    assert [place for share in sorted(shares) for place in range(*share)] == list(range(size))
    assert all(first % multiple == 0 for first, _ in shares) and len(shares) <= 3


def test_an_error_of_a_share_is_raised(threads: Threads) -> None:
    threads(3)

    def fails(first: int, stop: int) -> None:
        raise RuntimeError(f"share {first}")

    with pytest.raises(RuntimeError, match="share 0"):
        in_shares(fails, 9)


def test_a_fork_has_threads_of_its_own(threads: Threads, tmp_path: Path) -> None:
    # as many as in the fork
    threads(1)
    in_shares(lambda first, stop: None, 4)

    def work() -> None:
        in_shares(lambda first, stop: (tmp_path / f"{first}-{stop}").touch(), 4)

    assert forked(work, tmp_path / "log", after=20.0) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "0-4").exists()
