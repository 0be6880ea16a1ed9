"""A sharded teacher is in parts from loading to test figures, never whole on a rank, with the same figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.timeout(170)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What each rank has seen, by number of ranks and rank; in a process of its own, as it forks."""
    folder = tmp_path_factory.mktemp("loading")
    command = [sys.executable, "-m", "tests.distributed.loading", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = (folder / "log").read_text() if (folder / "log").exists() else ""
    assert done.returncode == 0, done.stderr[-1000:] + log[-2000:]
    return folder, {path.stem: json.loads(path.read_text()) for path in folder.glob("*-?.json")}


def test_both_ranks_see_what_one_process_sees(seen: tuple[Path, dict[str, Any]]) -> None:
    whole, *parts = (seen[1][name] for name in ("1-0", "2-0", "2-1"))
    assert not whole["sharded"] and any(whole["answers"])
    for part in parts:
        assert part["sharded"] and part["type"] == "torch.float32" and part["types"] == ["torch.float32"]
        # of float32 weights, though they are cast after they were cut
        assert part["fingerprint"] == whole["fingerprint"]
        assert (part["answers"], part["rouge_l"]) == (whole["answers"], whole["rouge_l"])


def test_a_rank_holds_its_part_and_never_more_than_a_layer_beside_it(seen: tuple[Path, dict[str, Any]]) -> None:
    layers, root, layer = 0, 0, 0
    path = seen[0] / "teacher" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            size = 4 * file.get_tensor(name).numel()
            layers, root = (layers + size, root) if ".layers." in name else (layers, root + size)
            layer += size if ".layers.0." in name else 0
    # the pages of the file belong to the node
    whole, *parts = (seen[1][name]["peak"] - path.stat().st_size for name in ("1-0", "2-0", "2-1"))
    assert whole >= layers + root
    for part in parts:
        assert layers // 2 < part <= layers // 2 + root + layer < whole


def test_parts_are_put_together_in_the_first_ranks_memory_alone(seen: tuple[Path, dict[str, Any]]) -> None:
    assert seen[1]["2-0"]["again"] == seen[1]["1-0"]["fingerprint"] and seen[1]["2-1"]["again"] == "meta"
