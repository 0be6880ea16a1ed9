"""Checkpoints: copied at once, written in the background, whole or not there, and mapped when they are read."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import mgsr.training.checkpoint as own
from mgsr.runtime import faults, ranks
from mgsr.runtime.devices import on_host
from mgsr.runtime.errors import DataError, UserError
from mgsr.runtime.files import SUFFIX, Background, check
from mgsr.training.checkpoint import BEST, DurableIO, read_checkpoint, resume_path, resume_points


def state(value: float = 1.0, size: int = 1000) -> dict[str, Any]:
    weight = torch.full((size,), value)
    return {
        "state_dict": {"one": weight, "tied": weight, "row": weight[:10]},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": weight * 2}}}],
        "loops": {"fit_loop": {"current": {"ready": 1}}},
    }


class Held:
    """Keeps the writer at its first byte until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        write = own.write_checked

        def held(*args: Any, **kwargs: Any) -> None:
            self.begun.set()
            assert self.go.wait(20)
            write(*args, **kwargs)

        monkeypatch.setattr(own, "write_checked", held)


def test_a_save_returns_with_a_copy_and_the_file_is_there_when_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, files, path, kept = Held(monkeypatch), DurableIO(), resume_path(tmp_path, 1), state()
    files.save_checkpoint(kept, path)
    assert held.begun.wait(20) and resume_points(tmp_path) == []
    # training goes on: weights in place, moments in place, and Lightning's counters
    kept["state_dict"]["one"].zero_()
    kept["optimizer_states"][0]["state"][0]["step"] += 1
    kept["loops"]["fit_loop"]["current"]["ready"] = 2
    held.go.set()
    files.background.wait()
    check(path)
    found, expected = read_checkpoint(path), state()
    assert found["loops"] == expected["loops"]
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(found["optimizer_states"], expected["optimizer_states"], rtol=0, atol=0)


def test_a_save_waits_for_the_one_before_so_that_their_order_is_that_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, files = Held(monkeypatch), DurableIO()
    best, resume = tmp_path / "checkpoints" / BEST, resume_path(tmp_path, 1)
    files.save_checkpoint(state(), best)
    assert held.begun.wait(20)
    second = threading.Thread(target=files.save_checkpoint, args=(state(), resume))
    second.start()
    second.join(0.05)
    assert second.is_alive() and not best.exists()
    held.go.set()
    second.join()
    assert best.exists()
    files.background.wait()
    check(resume)


def test_the_two_newest_are_kept_once_the_newest_is_whole(tmp_path: Path) -> None:
    files = DurableIO()
    for step in (1, 2, 3):
        files.save_checkpoint(state(step), resume_path(tmp_path, step))
    files.background.wait()
    assert [path.name for path in resume_points(tmp_path)] == ["resume-00000003.ckpt", "resume-00000002.ckpt"]


def test_a_full_disk_is_told_once_in_one_line_by_whoever_waits(tmp_path: Path) -> None:
    files, path = DurableIO(), resume_path(tmp_path, 2)
    files.save_checkpoint(state(), resume_path(tmp_path, 1))
    files.background.wait()
    faults.arm("checkpoint.half=full")
    try:
        files.save_checkpoint(state(), path)
        with pytest.raises(UserError, match=r"resume-00000002.ckpt: cannot be written .*free some space"):
            files.background.wait()
    finally:
        faults.arm("")
    files.background.wait()
    # the one before is kept, and nothing is left of the other
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["resume-00000001.ckpt", f"resume-00000001.ckpt{SUFFIX}"]


def test_what_the_work_before_has_met_comes_up_where_the_next_begins() -> None:
    background, done = Background(), []

    def fails() -> None:
        raise UserError("no")

    background.begin(fails)
    with pytest.raises(UserError, match="no"):
        background.begin(lambda: done.append(1))
    background.begin(lambda: done.append(2))
    background.wait()
    assert done == [2]


def test_a_copy_shares_what_was_shared_and_nothing_else() -> None:
    content = {"a": torch.ones(4), "list": [1, {"b": None}], "pair": ("x", 2)}
    content["again"] = content["a"]
    found = on_host(content)
    assert found["again"] is found["a"] and found["a"] is not content["a"]
    assert found["list"] == content["list"] and found["list"][1] is not content["list"][1]
    assert found["pair"] == ("x", 2)


def mapped(tensor: torch.Tensor, path: Path) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    places = [line.split()[0].split("-") for line in lines if str(path) in line]
    return any(int(low, 16) <= tensor.data_ptr() < int(high, 16) for low, high in places)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are Linux's")
def test_weights_are_read_where_they_lie_in_the_file(tmp_path: Path) -> None:
    path = resume_path(tmp_path, 1)
    files = DurableIO(in_place=True)
    files.save_checkpoint(state(), path)
    files.background.wait()
    found = files.load_checkpoint(path)
    moments = found["optimizer_states"][0]["state"][0]["exp_avg"]
    assert mapped(found["state_dict"]["one"], path)
    # a CPU's optimiser goes on in these: the file may go when it is old
    assert not mapped(moments, path) and torch.equal(
        moments, state()["optimizer_states"][0]["state"][0]["exp_avg"]
    )
    assert mapped(DurableIO().load_checkpoint(path)["optimizer_states"][0]["state"][0]["exp_avg"], path)


def test_the_first_rank_alone_reads_a_file_to_check_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = resume_path(tmp_path, 1), []
    files = DurableIO()
    files.save_checkpoint(state(), path)
    files.background.wait()
    monkeypatch.setattr(own, "check", read.append)
    for rank in (0, 1, 2):
        monkeypatch.setattr(own, "is_first", lambda rank=rank: rank == 0)
        read_checkpoint(path)
        files.load_checkpoint(path)
    assert read == [path] and ranks.is_first()


def test_a_torn_file_is_still_refused(tmp_path: Path) -> None:
    files, path = DurableIO(), resume_path(tmp_path, 1)
    files.save_checkpoint(state(), path)
    files.background.wait()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="torn or changed"):
        read_checkpoint(path)
    with pytest.raises(DataError, match="is no checkpoint"):
        read_checkpoint(path, checked=True)
