"""Run folders: `<run_root>/<experiment>/<arm>/seed=<n>/`, one configuration each, never overwritten.

`environment.json` says what a run's numbers come from: commit, versions, numerics version and machine.
`start.json` has the fingerprints of the teacher and of the student that the run began with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mgsr
from mgsr.config.load import config_from_tree, dump, flat_tree, read_yaml
from mgsr.config.schema import ExperimentConfig
from mgsr.models import content_fingerprint
from mgsr.runtime.environment import environment, numerics_of
from mgsr.runtime.errors import ConfigError, UserError
from mgsr.runtime.files import write_atomically
from mgsr.runtime.progress import say

# the student's shape and tokenizer, and who the teacher was: a run can be read where its caches are not
STUDENT, TEACHER, DATA = "student", "teacher.json", "data.json"
# what the student's adapters stand on: it is not in the checkpoints
BASE = "base.json"
START = "start.json"

# keys that may differ when a run is taken up again: they change no number of it
NEUTRAL = (
    "run_root",
    "trainer.threads",
    "trainer.checkpoint_every_n_steps",
    "trainer.log_every_n_steps",
    "trainer.grad_norm_every_n_steps",
    "trainer.histogram_every_n_steps",
    "trainer.text_samples",
)
# a run may be made longer: it goes on from where it is, with the longer schedule
LONGER = "train.epochs"
# may change the rounding of what is still to come, and are what one changes when a run cannot go on as it is
WAYS_OUT = (
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.timeout_minutes",
    "teacher.placement",
    "train.max_nonfinite_steps",
    "train.micro_batch_size",
    "train.gradient_checkpointing",
    "scrg.batch_size",
    "scrg.shard_size",
    "evaluation.batch_size",
)


def run_folder(config: ExperimentConfig) -> Path:
    return Path(config.run_root) / config.experiment / config.arm / f"seed={config.seed}"


def is_begun(folder: Path) -> bool:
    """Whether a run has left anything behind in its folder but the configuration."""
    return any((folder / name).exists() for name in ("checkpoints", "scrg", "metrics.json"))


def open_run_folder(
    folder: Path, config: ExperimentConfig, *, resume: bool, data: Mapping[str, str] | None = None
) -> None:
    """Make the run folder, or see that the one that is there belongs to this very configuration and data.

    Args:
        data: fingerprint of every set of rows.

    Raises:
        ConfigError: it holds a run of another configuration, or one to be resumed.
        UserError: the data have changed; the folder cannot be written to.
    """
    written = folder / "config.yaml"
    if written.exists():
        there = config_from_tree(read_yaml(written), source=str(written))
        changed = changed_keys(there, config)
        # a folder that nothing has been written to since is free: a mistake in the first try must not stay
        begun = is_begun(folder)
        if begun and not resume:
            if changed:
                raise ConfigError(
                    f"{folder}: holds a run of another config (differs in {', '.join(changed)}); choose another "
                    "arm, experiment or run_root, or delete it"
                )
            raise ConfigError(f"{folder}: holds this run already; go on with mgsr train --resume {folder}")
        if begun:
            _take_up(folder, there, config, changed, data or {})
            return
        # whose teacher and base it was is not yet settled either
        for name in (TEACHER, BASE, START):
            (folder / name).unlink(missing_ok=True)
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    write_atomically(folder / DATA, json.dumps(dict(data or {}), indent=2) + "\n")
    write_atomically(written, dump(config))


def _take_up(
    folder: Path,
    there: ExperimentConfig,
    config: ExperimentConfig,
    changed: Sequence[str],
    data: Mapping[str, str],
) -> None:
    """A begun run goes on with the same configuration and data, but for what is safe to change."""
    taken = {*WAYS_OUT, LONGER} if _can_be_longer(there, config) else {*WAYS_OUT}
    refused = [name for name in changed if name not in taken]
    if refused:
        left, right = flat_tree(asdict(there)), flat_tree(asdict(config))
        named = ", ".join(f"{name}: {left[name]} -> {right[name]}" for name in refused)
        raise ConfigError(
            f"{folder}: resuming with another config ({named}); leave these, or begin another arm "
            "(safe to change: more train.epochs, train.micro_batch_size, batch sizes of writing, how often things "
            "are logged)"
        )
    known = read_json(folder / DATA)
    other = [name for name, value in data.items() if name in known and known[name] != value]
    if other:
        raise UserError(
            f"{folder}: the rows of data.{other[0]} are not those it began with; put the file back as it was"
        )
    begun = numerics_of(read_json(folder / "environment.json"))
    if begun != mgsr.NUMERICS_VERSION:
        here = mgsr.NUMERICS_VERSION
        say(f"{folder}: begun with numerics version {begun}, here it is {here}: the rest may differ")
    if changed:
        before, now = flat_tree(asdict(there)), flat_tree(asdict(config))
        say(f"{folder}: " + ", ".join(f"{name} {before[name]} -> {now[name]}" for name in changed))
        done = read_json(folder / "metrics.json")
        if done:
            (folder / "metrics.json").rename(folder / f"metrics-{done.get('steps')}-steps.json")
        write_atomically(folder / "config.yaml", dump(config))


def _can_be_longer(there: ExperimentConfig, config: ExperimentConfig) -> bool:
    """Whether more epochs leave what is behind as it is: no round is half used, no share depends on the end."""
    whole_rounds = there.train.epochs % there.scrg.every_n_epochs == 0 or not there.scrg.enabled
    longer = config.train.epochs > there.train.epochs and not there.train.max_steps
    return longer and whole_rounds and there.mixture.kind != "linear"


def read_json(path: Path) -> dict[str, Any]:
    """A run's small file; empty where it is not there or does not parse."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def changed_keys(a: ExperimentConfig, b: ExperimentConfig) -> list[str]:
    """Dotted names of the keys in which two configurations differ, those that change nothing left out."""
    left, right = flat_tree(asdict(a)), flat_tree(asdict(b))
    return [name for name in left if left[name] != right.get(name) and name not in NEUTRAL]


def keep_models(folder: Path, config: ExperimentConfig, teacher: Any, student: Any) -> None:
    """Write who the teacher, the student and the base of its adapters are: checkpoints refer to them.

    Args:
        teacher, student: `mgsr.training.sft.Prepared`; the teacher may be None, the student has no adapters yet.

    Raises:
        UserError: the teacher, or the base of adapters, is not the one the run began with.
    """
    known: dict[str, Any] = {"cache": None, "source": "", "revision": "", "content": None}
    if teacher is not None:
        content = content_fingerprint(teacher.model)
        source, revision = config.teacher.source, config.teacher.revision
        known = {"cache": teacher.folder.name, "source": source, "revision": revision, "content": content}
    keep_shape(folder, student.model, student.tokenizer, known)
    keep_base(folder, config, student.model, student.folder)
    keep_start(folder, known["content"], student.model)


def keep_shape(folder: Path, student: Any, tokenizer: Any, teacher: Mapping[str, Any]) -> None:
    """Write what it takes to read the run's checkpoints later, and to know the teacher again.

    Args:
        student: its config goes to `student/`, with the tokenizer.
        teacher: `cache`, the name of its folder in the cache, and `content`, of its weights; None without one.

    Raises:
        UserError: the teacher is not the one the run began with.
    """
    known = read_json(folder / TEACHER)
    if known.get("content") not in (None, teacher["content"]):
        raise UserError(
            f"{folder}: the teacher is not the one it began with (its weights differ); put that one back "
            f"({teacher['source']}), or begin another run"
        )
    student.config.save_pretrained(folder / STUDENT)
    tokenizer.save_pretrained(folder / STUDENT)
    write_atomically(folder / TEACHER, json.dumps(dict(teacher), indent=2) + "\n")


def keep_base(folder: Path, config: ExperimentConfig, student: Any, lies_in: Path) -> None:
    """Write who the base of a student with adapters is; without adapters there is nothing to write.

    Args:
        student: before it gets its adapters; lies_in: its folder in the cache, if it was fine-tuned.

    Raises:
        UserError: the base is not the one the run began with.
    """
    if not config.student.lora.r:
        return
    content = content_fingerprint(student)
    known = read_json(folder / BASE)
    if known.get("content") not in (None, content):
        raise base_has_changed(folder, config, lies_in)
    base = {
        # a fine-tuned base lies in the cache, any other comes from its source
        "cache": lies_in.name if config.student.sft.enabled else None,
        "source": config.student.source,
        "revision": config.student.revision,
        "content": content,
    }
    write_atomically(folder / BASE, json.dumps(base, indent=2) + "\n")


def base_has_changed(folder: Path, config: ExperimentConfig, cached: Path | None) -> UserError:
    place = cached if config.student.sft.enabled else config.student.source
    return UserError(
        f"{folder}: the base of its adapters is not the one it began with (its weights differ); put that one back "
        f"({place}), or begin another run"
    )


def keep_start(folder: Path, teacher: str | None, student: Any) -> None:
    """Write the fingerprints of the models that a run begins with, once.

    Args:
        teacher: its fingerprint; None without one.
        student: before it gets its adapters, and after `keep_base`, which takes the same fingerprint.

    Raises:
        UserError: the student is not the one the run began with, whose text would be mixed with another's.
    """
    known = read_json(folder / START)
    content = read_json(folder / BASE).get("content") or content_fingerprint(student)
    # behind a resume point the student is that one's
    goes_on = any((folder / "checkpoints").glob("resume-*.ckpt"))
    if known.get("student") not in (None, content) and not goes_on:
        raise UserError(
            f"{folder}: the student it starts from is not the one it began with (its weights differ); put that "
            "one back, or begin another run"
        )
    if not known:
        write_atomically(folder / START, json.dumps({"teacher": teacher, "student": content}, indent=2) + "\n")


def load_run_config(folder: str | Path) -> ExperimentConfig:
    """The configuration a run folder was made with."""
    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder}: not a run folder (it has no config.yaml)")
    return config_from_tree(read_yaml(path), source=str(path))
