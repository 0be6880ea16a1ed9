"""Run folders: `<run_root>/<experiment>/<arm>/seed=<n>/`, one configuration each, never overwritten."""

from __future__ import annotations

import ast
import json
import platform
import subprocess
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mgsr import __version__
from mgsr.config import ExperimentConfig, config_from_tree, dump, fingerprint, flat_tree, read_yaml
from mgsr.data.corpus import write_atomically
from mgsr.errors import ConfigError, UserError

# the student's shape and tokenizer, and who the teacher was: a run can be read where its caches are not
STUDENT, TEACHER = "student", "teacher.json"

# keys that may differ when a run is taken up again: they change no number of it
NEUTRAL = ("trainer.threads", "trainer.log_every_n_steps", "trainer.text_samples", "run_root")


def run_folder(config: ExperimentConfig) -> Path:
    return Path(config.run_root) / config.experiment / config.arm / f"seed={config.seed}"


def open_run_folder(folder: Path, config: ExperimentConfig, *, resume: bool) -> None:
    """Make the run folder, or see that the one that is there belongs to this very configuration."""
    written = folder / "config.yaml"
    if written.exists():
        there = config_from_tree(read_yaml(written), source=str(written))
        changed = changed_keys(there, config)
        # a folder that nothing has been written to since is free: a mistake in the first try must not stay
        begun = any((folder / name).exists() for name in ("checkpoints", "scrg", "metrics.json"))
        if changed and begun:
            raise ConfigError(
                f"{folder}: holds a run of another config (differs in {', '.join(changed)}); choose another "
                "arm, experiment or run_root, or delete it"
            )
        if begun and not resume:
            raise ConfigError(f"{folder}: holds this run already; go on with mgsr train --resume {folder}")
        if begun or not changed:
            return
    elif resume:
        raise UserError(f"{folder}: holds no run to resume (no config.yaml)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another run_root") from None
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    write_atomically(written, dump(config))


def changed_keys(a: ExperimentConfig, b: ExperimentConfig) -> list[str]:
    """Dotted names of the keys in which two configurations differ, those that change nothing left out."""
    left, right = flat_tree(asdict(a)), flat_tree(asdict(b))
    return [name for name in left if left[name] != right.get(name) and name not in NEUTRAL]


def keep_shape(folder: Path, student: Any, tokenizer: Any, teacher: str | None) -> None:
    """Write what it takes to read the run's checkpoints later.

    Args:
        student: its config goes to `student/`, with the tokenizer.
        teacher: name of its folder in the cache; None: there is none.
    """
    student.config.save_pretrained(folder / STUDENT)
    tokenizer.save_pretrained(folder / STUDENT)
    write_atomically(folder / TEACHER, json.dumps({"cache": teacher}) + "\n")


def load_run_config(folder: str | Path) -> ExperimentConfig:
    """The configuration a run folder was made with."""
    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder}: not a run folder (it has no config.yaml)")
    return config_from_tree(read_yaml(path), source=str(path))


# modules that show, ask or start, and change no number of a run
_PRESENTATION = (
    "__init__",
    "__main__",
    "ablate",
    "cli",
    "costs",
    "errors",
    "progress",
    "rendering",
    "report",
    "results",
    "runs",
    "statistics",
    "studies",
    "summary",
    "tables",
    "texts",
    "usage",
    "verdicts",
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
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
