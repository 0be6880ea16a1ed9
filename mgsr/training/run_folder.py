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
from mgsr.config.layers import read_layer
from mgsr.config.load import config_of, dump, flat_tree, with_absolute_paths
from mgsr.config.schema import ExperimentConfig
from mgsr.models import content_fingerprint, save_tokenizer
from mgsr.runtime.environment import environment
from mgsr.runtime.errors import ConfigError, UserError
from mgsr.runtime.files import write_atomically
from mgsr.runtime.json_files import Between, Each, Maybe, read_json
from mgsr.runtime.progress import say

# a run is read without its caches: the student's shape and tokenizer, its teacher, the base of its adapters
STUDENT, TEACHER, DATA, BASE, START = "student", "teacher.json", "data.json", "base.json", "start.json"
METRICS, ENVIRONMENT = "metrics.json", "environment.json"

_TEXT, _PERCENT = Maybe((str, None)), Between(0, 100)
_MEASURES = {"rouge_l": _PERCENT, **dict.fromkeys(("exact_match", "accuracy"), Maybe(_PERCENT))}
_MEASURES |= dict.fromkeys(("rouge_l_by_category", "accuracy_by_category"), Maybe(Each(_PERCENT)))
TEST_FIGURES = {**_MEASURES, "examples": int, "sampled": Maybe({**_MEASURES, "rouge_l_std": (float, None)})}
"""Of a test set, what is shown of it."""
SHAPES: dict[str, Any] = {
    METRICS: {"steps": int, "seed": int, "result": Each(TEST_FIGURES, 1)},
    ENVIRONMENT: {"numerics": int, "threads": Maybe((int, None)), "commit": _TEXT, "cpu": _TEXT},
    DATA: {},
    TEACHER: {"cache": (str, None), "source": _TEXT, "revision": _TEXT, "content": (str, None)},
    BASE: {"cache": (str, None), "source": _TEXT, "revision": _TEXT, "content": str},
    START: {"teacher": (str, None), "student": str},
}
"""The small files of a run, and what has to be in each."""
MEASURED_AGAIN = f"delete its {METRICS}, and mgsr train --resume {{}} measures again"

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
    return any((folder / name).exists() for name in ("checkpoints", "scrg", METRICS))


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
        # its paths are absolute; those of older runs become so, as the configuration's own have
        there = with_absolute_paths(config_of(read_layer(written)))
        changed = changed_keys(there, config)
        # a folder that nothing has been written to since is free: a mistake in the first try must not stay
        begun = is_begun(folder)
        if begun and not resume:
            what = f"holds this run already; go on with mgsr train --resume {folder}"
            if changed:
                told = told_keys(changed, there, config)
                what = f"holds a run of another config ({told}); choose another arm, experiment or run_root"
            elif (folder / METRICS).exists():
                what = "this run is complete; choose another arm, seed or experiment for a new one"
            raise ConfigError(f"{folder}: {what}")
        if begun:
            _take_up(folder, there, config, changed, data or {})
            return
        # whose teacher and base it was is not yet settled either
        for name in (TEACHER, BASE, START):
            (folder / name).unlink(missing_ok=True)
    write_atomically(folder / ENVIRONMENT, json.dumps(environment(), indent=2) + "\n")
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
        raise ConfigError(
            f"{folder}: resuming with another config ({told_keys(refused, there, config)}); leave these, or begin "
            "another arm (safe to change: more train.epochs, train.micro_batch_size, batch sizes of writing, how "
            "often things are logged)"
        )
    known = read_run_file(folder, DATA, fields=dict.fromkeys(data, str), missing={})
    other = [name for name, value in data.items() if known.get(name, value) != value]
    if other:
        what = f"code that `{other[0]}` names is" if "." in other[0] else f"rows of data.{other[0]} are"
        raise UserError(f"{folder}: the {what} not what it began with; put the file back as it was")
    if data and not known:
        say(f"{folder}: without {DATA} nobody can tell whether the rows are those it began with")
    begun = read_run_file(folder, ENVIRONMENT, missing={"numerics": "unknown"})["numerics"]
    if begun != mgsr.NUMERICS_VERSION:
        here = mgsr.NUMERICS_VERSION
        say(f"{folder}: begun with numerics version {begun}, here it is {here}: the rest may differ")
    if changed:
        say(f"{folder}: {told_keys(changed, there, config)}")
        done = read_run_file(folder, METRICS, missing={})
        if done:
            (folder / METRICS).rename(folder / f"metrics-{done['steps']}-steps.json")
        write_atomically(folder / "config.yaml", dump(config))


def _can_be_longer(there: ExperimentConfig, config: ExperimentConfig) -> bool:
    """Whether more epochs leave what is behind as it is: no round is half used, nothing hangs on the end."""
    whole_rounds = there.train.epochs % there.scrg.every_n_epochs == 0 or not there.scrg.enabled
    longer = config.train.epochs > there.train.epochs and not there.train.max_steps
    options = (*there.objective.divergence_options.values(), *there.objective.written_options.values())
    return longer and whole_rounds and there.mixture.kind != "linear" and list not in map(type, options)


def told_keys(names: Sequence[str], before: ExperimentConfig, now: ExperimentConfig) -> str:
    """Keys that differ, each with both values."""
    left, right = flat_tree(asdict(before)), flat_tree(asdict(now))
    return ", ".join(f"{name}: {left[name]} -> {right[name]}" for name in names)


def read_run_file(
    folder: Path, name: str, *, fields: Mapping[str, Any] | None = None, missing: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A small file of a run, named in `SHAPES`.

    Args:
        fields: what is needed beside what its shape says.
        missing: what stands for one that is not there; None: it has to be.

    Raises:
        DataError: it is missing, broken or not of its shape.
    """
    again = f"restore it, or delete {folder} to run it anew"
    remedy = MEASURED_AGAIN.format(folder) if name == METRICS else again
    shape = SHAPES[name] if fields is None else {**SHAPES[name], **fields}
    return read_json(folder / name, shape, remedy, missing=missing)


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
    wanted = (TEACHER, START, BASE) if config.student.lora.r else (TEACHER, START)
    gone = [name for name in wanted if not (folder / name).exists()]
    if gone and any((folder / "checkpoints").glob("*.ckpt")):
        say(f"{folder}: without {', '.join(gone)} nobody can tell whether its models are those it began with")
    known: dict[str, Any] = {"cache": None, "source": "", "revision": "", "content": None}
    if teacher is not None:
        known = {"source": config.teacher.source, "revision": config.teacher.revision}
        known |= {"cache": teacher.folder.name, "content": content_fingerprint(teacher.model)}
    keep_shape(folder, student.model, student.tokenizer, known)
    keep_base(folder, config, student.model, student.folder)
    keep_start(folder, known["content"], student.model)


def keep_shape(folder: Path, student: Any, tokenizer: Any, teacher: Mapping[str, Any]) -> None:
    """Write what it takes to read the run's checkpoints later, and to know the teacher again.

    Args:
        student: its config and generation settings go to `student/`, with the tokenizer.
        teacher: `cache`, the name of its folder in the cache, and `content`, of its weights; None without one.

    Raises:
        UserError: the teacher is not the one the run began with.
    """
    known = read_run_file(folder, TEACHER, missing={})
    if known and known["content"] != teacher["content"]:
        raise UserError(
            f"{folder}: the teacher is not the one it began with (its weights differ); put that one back "
            f"({teacher['source']}), or begin another run"
        )
    # transformers asserts that it is no file
    (folder / STUDENT).mkdir(parents=True, exist_ok=True)
    for settings in (student.config, student.generation_config):
        settings.save_pretrained(folder / STUDENT)
    save_tokenizer(tokenizer, folder / STUDENT)
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
    known = read_run_file(folder, BASE, missing={})
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
    known = read_run_file(folder, START, missing={})
    content = read_run_file(folder, BASE, missing={}).get("content") or content_fingerprint(student)
    # behind a resume point the student is that one's
    goes_on = any((folder / "checkpoints").glob("resume-*.ckpt"))
    if known.get("student") not in (None, content) and not goes_on:
        what = "the student it starts from is not the one it began with (its weights differ)"
        raise UserError(f"{folder}: {what}; put that one back, or begin another run")
    if not known:
        write_atomically(folder / START, json.dumps({"teacher": teacher, "student": content}, indent=2) + "\n")


def load_run_config(folder: str | Path) -> ExperimentConfig:
    """The configuration a run folder was made with."""
    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder}: not a run folder (it has no config.yaml)")
    return config_of(read_layer(path))
