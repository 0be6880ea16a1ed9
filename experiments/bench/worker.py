"""One measurement in a process of its own: `python -m experiments.bench.worker GROUP CASE [JSON options]`.

Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib import import_module
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
    # imported late: the kernels' interpreter has to be asked for before they are
    module = import_module(f"experiments.bench.{group}")
    return module.case(case, **options) if hasattr(module, "case") else module.CASES[case](**options)


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
