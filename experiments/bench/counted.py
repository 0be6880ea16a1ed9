"""What a GPU would be asked for, counted on a CPU that takes the GPU's ways.

Passes over a tile's logits, products of matrices aside, and reads that the host waits for, per call of the
objective with its backward. The counters are those of the tests, which hold them to their limits.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mgsr.losses import row_kernels, tiled_objective
from mgsr.losses.projection import OutputLayer
from mgsr.losses.teacher_topk import CachedRows, top_of_logits
from tests.host_reads import HostReads
from tests.losses import interpreted
from tests.losses.dense import Problem, network
from tests.losses.gpu import Passes, answers_of, reads_of, shallow_gpu

PULL = OutputLayer.pull
ROWS, CLASSES, TILE = 20, 500, 10
CASES: dict[str, dict[str, Any]] = {
    "fixed bounds": {"clip": (0.1, 0.8)},
    "clip network": {"clip": "network"},
    "clip network, the label as target": {"clip": "network", "target": "label"},
    "fixed bounds, temperature 2": {"clip": (0.1, 0.8), "temperature": 2.0},
    "fixed bounds, cached teacher": {"clip": (0.1, 0.8), "cached": 8},
}


def case(name: str, kernels: bool) -> dict[str, float]:
    """Args: kernels: Triton's, in its interpreter, which the environment has to ask for; else plain operations."""
    with pytest.MonkeyPatch.context() as patch:
        passes, reads = Passes(TILE * CLASSES), HostReads()
        if kernels:
            interpreted.by_kernels(patch)
            for kernel in interpreted.KERNELS:
                counted = interpreted.counted(passes, reads, kernel, getattr(row_kernels, kernel))
                patch.setattr(row_kernels, kernel, counted)
        else:
            shallow_gpu(patch)
        patch.setattr(OutputLayer, "pull", _pull_rounded)
        problem, options = _problem(CASES[name])
        with reads, passes:
            tiled_objective(*problem.arguments, **options)
        return {"passes": len(passes.found) / (ROWS / TILE), "reads": len(reads_of(problem, **options))}


def _pull_rounded(layer: OutputLayer, gradient: torch.Tensor, *rest: Any, **named: Any) -> Any:
    """As where products take bfloat16: the gradient is rounded first, one more pass."""
    return PULL(layer, gradient.clone(), *rest, **named)


def _problem(options: dict[str, Any]) -> tuple[Problem, dict[str, Any]]:
    problem, options = Problem(classes=CLASSES, dtype=torch.float32, rows=ROWS), dict(options)
    problem.labels = problem.labels.abs()
    # as peaked as language models: the first classes decide nearly every row
    problem.taught *= 8.0
    if options.get("clip") == "network":
        options["clip"] = network(upper_min=0.8, upper_max=0.9).float()
    if "cached" in options:
        chosen = torch.arange(0, ROWS, 2)
        kept = top_of_logits(problem.taught[chosen] @ problem.teacher.T, options["cached"])
        options["cached"] = CachedRows(chosen, *kept)
    given = {"tile_size": TILE, "collect_rows": True, "counts": (ROWS, ROWS, ROWS // 2)}
    return problem, {**options, **given, "answers": answers_of(problem)}
