"""What stands before the main job: teacher, SFT student, tokenizer; each cached by its content.

    <run_root>/cache/<teacher|student>-<key>/    a transformers folder, and evaluation-<key>.json beside it

The key covers configuration, data, seed and what the model's source holds, so a second run with the same ones
takes what is there. A stage that was cut short goes on from its resume point.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mgsr import models
from mgsr.config.schema import ExperimentConfig, ModelConfig, SftConfig
from mgsr.data.rows import Row
from mgsr.data.splits import Annotation, encode, encode_answered, rows_fingerprint
from mgsr.evaluation.test_set import Tests, evaluate_tests
from mgsr.losses import Objective
from mgsr.models.from_config import (
    build_model,
    build_student,
    build_tokenizer,
    configured_ends,
    frozen,
    load_cached,
    quiet_transformers,
    stays_stored,
    teacher_dtype,
    try_student,
    with_end_token,
)
from mgsr.models.model_cache import (
    cache_folder,
    content_of,
    model_key,
    rows_of_teacher,
    stage_seed,
    versioned_fingerprint,
)
from mgsr.runtime.devices import computing_dtype, computing_in, free_memory, product_dtype, working_device
from mgsr.runtime.faults import reach
from mgsr.runtime.files import remove_leftovers, write_atomically
from mgsr.runtime.json_files import read_json
from mgsr.runtime.locks import locked
from mgsr.runtime.progress import say
from mgsr.runtime.ranks import agreed, is_first, on_first
from mgsr.runtime.wording import plural
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.fsdp import phase_of, shard_at_loading
from mgsr.training.launch import stop_request
from mgsr.training.module import DistillationModule
from mgsr.training.optim import training_length
from mgsr.training.run_folder import TEST_FIGURES
from mgsr.training.trainer import fit


@dataclass(frozen=True)
class Prepared:
    """A model with its tokenizer, the key of its content, and the folder it lies in where it was fine-tuned."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    key: str
    folder: Path


@dataclass(frozen=True)
class Start:
    """What the main job begins with.

    Attributes:
        vocab_size: number of token ids that both models share.
        ends: where their texts end, and what fills their batches.
        tests: encoded with the student's tokenizer; figures: of both models on them, as `metrics.json` has them.
    """

    teacher: Prepared | None
    student: Prepared
    vocab_size: int
    ends: models.TextEnds
    tests: Tests = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


def prepare_models(config: ExperimentConfig, rows: Mapping[str, list[Row]]) -> Start:
    """Teacher, student and their test figures, made as far as they aren't there; `rows` by split.

    Raises:
        UserError: anything the user can mend, such as tokenizers that disagree.
    """
    teacher = prepare_teacher(config)
    student = prepare_student(config, teacher, rows["train"])
    how = student.tokenizer, config.data, config.evaluation
    tests = {
        name: (rows[name], encode_answered(rows[name], *how, f"{name} rows"))
        for name in ("test", *config.data.test_sets)
    }
    start = shared_start(config, teacher, student)
    if start.ends.note:
        say(start.ends.note)
    student.model.generation_config = start.ends.given_to(student.model.generation_config)
    if teacher is not None:
        # behind the student, which may be made of it as it was trained
        device = working_device(config.trainer.accelerator)
        shard_at_loading(config, frozen(teacher.model, teacher_dtype(config, device)))
    begun = {"teacher": teacher, "sft_start": student}
    figures = {name: cached_evaluation(config, one, tests, start.ends, name) for name, one in begun.items() if one}
    return replace(start, tests=tests, figures=figures)


def shared_start(config: ExperimentConfig, teacher: Prepared | None, student: Prepared) -> Start:
    """Both models with what they share: token ids, and where their texts end."""
    both = [one for one in (student, teacher) if one is not None]
    words, modelled = [one.tokenizer for one in both], [one.model for one in both]
    size = shared_vocabulary(teacher, student)
    return Start(teacher, student, size, configured_ends(config.data, modelled, words, size))


def shared_vocabulary(teacher: Prepared | None, student: Prepared) -> int:
    """Number of token ids that both models share; refuses tokenizers that disagree."""
    if teacher is None:
        return models.written_vocab_size(student.tokenizer, student.model)
    return models.shared_vocab_size(teacher.tokenizer, student.tokenizer, teacher.model, student.model)


def prepare_teacher(config: ExperimentConfig) -> Prepared | None:
    """The teacher, fine-tuned first where the config says so; None where no teacher is configured."""
    quiet_transformers()
    teacher = config.teacher
    if not teacher.source:
        return None
    if teacher.sft.enabled:
        config = with_end_token(config)
    rows = rows_of_teacher(config)
    key = model_key(config, teacher, rows, _content(teacher))
    folder = cache_folder(config) / f"teacher-{key}"
    if agreed((folder / "config.json").exists()):
        return _taken(config, folder, "teacher", teacher, key)
    if teacher.sft.enabled:
        on_first(lambda: try_student(config))
    tokenizer = build_tokenizer(config, teacher, rows)
    rest, seed = (tokenizer, rows, key, folder), stage_seed(config, teacher.sft)
    build = partial(build_model, config, teacher, tokenizer, seed=seed)
    return _fine_tuned(config, teacher, "teacher", build, *rest)


def prepare_student(config: ExperimentConfig, teacher: Prepared | None, train: Sequence[Row]) -> Prepared:
    """The student that the main job starts from, fine-tuned first where the config says so."""
    quiet_transformers()
    student = config.student
    # a student made of the teacher, or of the teacher's tokenizer, is another one when the teacher is
    origin = teacher.key if teacher and student.source in ("teacher", "init") else ""
    key = model_key(config, student, train, _content(student), origin)
    folder = cache_folder(config) / f"student-{key}"
    if agreed((folder / "config.json").exists()):
        return _taken(config, folder, "student", student, key)
    tokenizer = teacher.tokenizer if teacher and origin else build_tokenizer(config, student, train)
    rest, seed = (tokenizer, train, key, folder), stage_seed(config, student.sft)
    taught = None if teacher is None else teacher.model
    build = partial(build_student, config, student, taught, tokenizer, seed=seed)
    return _fine_tuned(config, student, "student", build, *rest)


def _content(model: ModelConfig) -> str:
    return agreed(content_of(model) if is_first() else "")


def cached_evaluation(
    config: ExperimentConfig, prepared: Prepared, tests: Tests, ends: models.TextEnds, name: str
) -> dict[str, Any]:
    """Test figures of a model that several runs start from, `teacher` or not; measured once, then read."""
    device, precision = working_device(config.trainer.accelerator), config.trainer.precision
    dtype = teacher_dtype(config, device) if name == "teacher" else computing_dtype(precision, device)
    rows = {set_name: rows_fingerprint(set_rows) for set_name, (set_rows, _) in tests.items()}
    # the name of the folder depends on the template itself
    data = {name: value for name, value in asdict(config.data).items() if name != "chat_template"}
    key = versioned_fingerprint(
        asdict(config.evaluation), data, rows, ends.stop_ids, *([str(dtype)] * bool(dtype))
    )
    path = prepared.folder / f"evaluation-{key}.json"
    if agreed(path.exists()):
        return read_json(path, dict.fromkeys(tests, TEST_FIGURES), "delete it to have it measured again")
    width = models.written_vocab_size(prepared.tokenizer, prepared.model)
    together = partial(phase_of, prepared.model, device)
    shown = name.removeprefix("sft_")
    with computing_in(prepared.model, dtype) as model:
        written = evaluate_tests(config, model, prepared.tokenizer, tests, width, ends, shown, together=together)
    results = {set_name: evaluation.summary for set_name, evaluation in written.items()}
    on_first(lambda: write_atomically(path, json.dumps(results, indent=2) + "\n"))
    return results


def _taken(config: ExperimentConfig, folder: Path, name: str, model: ModelConfig, key: str) -> Prepared:
    say(f"{name}: taken from {folder}")
    loaded = load_cached(folder, model, as_stored=stays_stored(config, model))
    return Prepared(loaded, models.load_tokenizer(str(folder)), key, folder)


def _fine_tuned(
    config: ExperimentConfig,
    settings: ModelConfig,
    name: str,
    build: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    key: str,
    folder: Path,
) -> Prepared:
    """Fine-tune on ground truth in `<folder>.partial`, then move the finished model and its curves to `folder`.

    Args:
        build: makes the model. Nobody but the stage holds it, so that it goes with the stage.
    """
    if not settings.sft.enabled:
        folder.mkdir(parents=True, exist_ok=True)
        return Prepared(build(), tokenizer, key, folder)
    own = folder.with_name(folder.name + ".partial")
    # runs side by side may want the same model: one makes it, the others wait and take it
    with locked(own, wait=True) if is_first() else nullcontext():
        if agreed((folder / "config.json").exists()):
            return _taken(config, folder, name, settings, key)
        if is_first():
            remove_leftovers(own)
            models.remove_half_folders(folder)
        _supervise(config, settings.sft, name, build(), tokenizer, rows, own, folder)
    free_memory()
    # as the next run will find it: what training leaves in memory may differ, such as the type of a buffer
    return _taken(config, folder, name, settings, key)


def _keep(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, own: Path, folder: Path) -> None:
    models.save_model_folder(model, tokenizer, folder)
    reach("stage.saved")
    # its curves go along; whoever waits for the lock finds the model
    for events in own.glob("events.*"):
        events.replace(folder / events.name)
    shutil.rmtree(own, ignore_errors=True)


def _supervise(
    config: ExperimentConfig,
    sft: SftConfig,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    own: Path,
    folder: Path,
) -> None:
    """Cross-entropy alone: the same module with no teacher and the other two weights at 0."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{name}: supervised fine-tuning, {parameters / 1e6:.2f}M parameters, {plural(len(rows), 'row')}")
    seed = stage_seed(config, sft)
    unannotated = Annotation(None)
    train = unannotated.ground_truth(encode(rows, tokenizer, config.data, f"{name} training rows").examples)
    ends = configured_ends(config.data, [model], [tokenizer], models.written_vocab_size(tokenizer, model))
    length = training_length(sft, len(train), config.trainer.devices * config.trainer.num_nodes)
    data = DistillationDataModule(
        config,
        train,
        # without a dev set: a stage is as long as the configuration says
        (),
        stage=sft,
        length=length,
        pad_token_id=ends.pad_id,
        run_folder=own,
        seed=seed,
    )
    stop = stop_request(config, f"{name} SFT")
    products = product_dtype(config.trainer.precision, working_device(config.trainer.accelerator))
    module = DistillationModule(
        model,
        None,
        Objective((1.0, 0.0, 0.0), (0.0, 1.0), {"product_dtype": products}),
        train=sft,
        trainer=config.trainer,
        total_steps=length.total_steps,
        micro_batches=length.micro_batches,
        vocab_size=models.logits_width(model),
        check_stop=stop.check,
        seed=seed,
        section=f"{name}.sft",
    )
    fit(config, module, data, tokenizer, folder=own, length=length, name=f"{name} SFT", stop=stop)
    trained = module.placement.last(on_host=True)
    reach("stage.trained")
    on_first(lambda: _keep(trained, tokenizer, own, folder))
