"""One measurement in a process of its own: `python -m experiments.bench.worker GROUP CASE [JSON options]`.

Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

from mgsr.runtime.processor import prefer_quick_sorts, rest_soon

THREADS = 2
PEERS = ("trl", "liger", "products", "generate", "naive", "openvino")
"""How names of cases begin that keep the waiting of PyTorch's threads as it is by default."""


def main(group: str, case: str, options: dict[str, Any]) -> dict[str, Any]:
    from mgsr.runtime.devices import quick_cpu

    with quick_cpu(THREADS):
        return _measured(group, case, options)


def _measured(group: str, case: str, options: dict[str, Any]) -> dict[str, Any]:
    if group == "objective":
        from experiments.bench import objective, problems
        from experiments.bench.measure import measure

        brief = options.pop("brief", False)
        problem = problems.of_text(**options) if "data" in options else problems.artificial(**options)
        if case == "problem":
            return problems.figures(problem)
        if case == "check":
            return objective.check(problem)
        return measure(lambda: objective.CASES[case](problem), reset=problem.clear, repeats=1 if brief else 3)
    if group == "rounds":
        from experiments.bench import pair, rounds
        from experiments.bench.measure import measure

        own = "teacher" in options
        models = pair.folder_pair(**options) if own else pair.demo_pair(**options)
        if case == "check":
            rounds.check(models, prompts=8 if own else 64)
            return {"check": "passed"}
        if case in ("float64", "float32", "bfloat16"):
            return rounds.flips(models, case)
        tokens: list[int] = []
        # a real model's first call serves as its warm-up
        calls = {"warm_up": 0, "repeats": 1} if own else {"repeats": 3}
        result = measure(lambda: tokens.append(rounds.CASES[case](models)), **calls)
        return {**result, "tokens": tokens[-1]}
    if group == "step":
        from experiments.bench import step

        return step.CASES[case](**options)
    if group == "precision":
        from experiments.bench import precision

        return precision.case(case, **options)
    if group == "pair_peers":
        from experiments.bench import pair_peers

        return pair_peers.case(case, **options)
    if group == "rival":
        from experiments.bench import rival

        return rival.case(case, **options)
    if group == "counted":
        from experiments.bench import counted

        return counted.case(case, **options)
    if group == "ends":
        from experiments.bench import ends

        return ends.case(case, **options)
    from experiments.bench import peers

    return peers.CASES[case](**options)


if __name__ == "__main__":
    # as the command line does
    prefer_quick_sorts()
    if not sys.argv[2].startswith(PEERS):
        rest_soon()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    # what libraries print must not mix with the one line of figures
    figures, sys.stdout = sys.stdout, sys.stderr
    result = main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
    print(json.dumps(result), file=figures)
