"""What a run's numbers come from: the code, the commit, the machine."""

from __future__ import annotations

import ast
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mgsr import __version__
from mgsr.config.load import fingerprint
from mgsr.runtime import processor

# modules that show, ask or start, and change no number of a run
_PRESENTATION = (
    "__init__",
    "__main__",
    "ablate",
    "arguments",
    "cli",
    "doctor",
    "errors",
    "failpoints",
    "locks",
    "machines",
    "progress",
    "provenance",
    "recorded_events",
    "rendering",
    "report",
    "result_checks",
    "results",
    "runs",
    "same_code",
    "studies",
    "summary",
    "tables",
    "texts",
    "usage",
    "verdicts",
    "verify",
)


@cache
def code_fingerprint() -> str:
    """Changes with the code that a run's numbers come from; comments, docstrings and layout aside."""
    package = Path(__file__).resolve().parent
    trees = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).with_suffix("").as_posix()
        if name.split("/")[0] in _PRESENTATION:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_docstring(body[0]):
                node.body = body[1:]  # type: ignore[attr-defined]
        trees.append((name, ast.dump(tree)))
    return fingerprint(trees)


def cpu_model(described: Mapping[str, str]) -> str | None:
    """What tells processors of one name apart, as far as the system says it.

    >>> cpu_model({"cpu family": "25", "model": "17", "stepping": "1"})
    'family 25, model 17, stepping 1'
    """
    names = {"cpu family": "family", "model": "model", "stepping": "stepping"}
    return ", ".join(f"{names[key]} {described[key]}" for key in names if key in described) or None


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )


def environment() -> dict[str, Any]:
    """Machine, versions and commit, as far as they can be told."""
    try:
        here = Path(__file__).resolve().parent
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    import lightning
    import transformers

    return {
        "mgsr": __version__,
        "commit": commit,
        "code": code_fingerprint(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "cpu": processor.name(),
        "cpu_model": cpu_model(processor.described()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
