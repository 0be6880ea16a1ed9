"""What a run will do, in words: the lines that `mgsr train` begins with and `mgsr doctor` shows.

Every number comes from the code that will run: rows from the splits, steps and rounds from `workload`, layers from
the models' shapes, cut texts from the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mgsr.config.schema import ExperimentConfig, ScrgConfig
from mgsr.data.chat import CHAT, template_text
from mgsr.data.prompts import EncodedRows, told_left_out
from mgsr.data.rows import Row
from mgsr.data.splits import SYNTHETIC, cut_splits, encode_quietly, read_split
from mgsr.models.from_config import with_end_token
from mgsr.models.model_cache import cache_folder, content_of, model_key, rows_of_teacher
from mgsr.models.preflight import Size
from mgsr.planning.doctor_data import look_at_tokenizers
from mgsr.planning.findings import Report
from mgsr.planning.workload import Stage, main_job, sft_stage, text_share
from mgsr.runtime.devices import working_device
from mgsr.runtime.errors import UserError
from mgsr.runtime.processor import has_bf16_units
from mgsr.runtime.progress import say
from mgsr.runtime.wording import plural
from mgsr.training.checkpoint import resume_points, step_of
from mgsr.training.run_folder import METRICS, run_folder

LOOKED_AT = 1000
"""Rows that are encoded to tell how much is cut: of more, every n-th."""


def outline(
    config: ExperimentConfig,
    rows: Mapping[str, Sequence[Row]],
    sizes: Mapping[str, Size],
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """A line each for models, rows, lengths, training, text, device, evaluation and result. Nothing is written.

    Args:
        rows: by split, those for training among them.
        sizes: of `mgsr.models.preflight.check_run`.
        tokenizer: the student's.

    Raises:
        UserError: rows or a device that cannot be had.
    """
    world = config.trainer.devices * config.trainer.num_nodes
    encoded = _encoded(config, rows["train"], tokenizer)
    # a chat template may leave rows out
    usable = len(rows["train"]) - sum(encoded.left_out.values())
    main = main_job(config, usable, world)
    cached = _cached(config, rows["train"])
    lines = {
        "teacher": _teacher(config, sizes, cached, usable, world),
        "student": _student(config, sizes, cached, usable, world),
        "rows": _rows(config, rows),
        "lengths": _lengths(config, len(rows["train"]), encoded, tokenizer),
        "training": _training(config, main, world),
        "text": _text(config, main),
        "device": _device(config, world),
        "evaluation": _evaluation(config, rows),
        "result": _result(config, main),
    }
    return [f"{name:<10} {text}" for name, text in lines.items() if text]


def announce(config: ExperimentConfig, rows: Mapping[str, Sequence[Row]], sizes: Mapping[str, Size]) -> None:
    """Print the outline of a run that is about to begin."""
    tokenizer = look_at_tokenizers(config, Report())
    assert tokenizer is not None, "a run is checked before it is announced"
    for line in outline(config, rows, sizes, tokenizer):
        say(line)


def _teacher(
    config: ExperimentConfig, sizes: Mapping[str, Size], cached: dict[str, Path], rows: int, world: int
) -> str:
    if not config.teacher.source:
        return "none"
    if config.data.train == SYNTHETIC and config.teacher.sft.enabled:
        rows = len(rows_of_teacher(config))
    return f"{_made(config, 'teacher', sizes)}; {_stage(config, 'teacher', cached, rows, world)}"


def _student(
    config: ExperimentConfig, sizes: Mapping[str, Size], cached: dict[str, Path], rows: int, world: int
) -> str:
    student = config.student
    text = f"{_made(config, 'student', sizes)}; {_stage(config, 'student', cached, rows, world)}"
    if student.lora.r:
        where = f" on {', '.join(student.lora.target_modules)}" if student.lora.target_modules else ""
        text += f"; adapters of rank {student.lora.r}{where} are trained, all else stays"
    return text


def _made(config: ExperimentConfig, role: str, sizes: Mapping[str, Size]) -> str:
    model = getattr(config, role)
    size = sizes[role if role in sizes else "teacher"]
    kept = model.keep_layers if role == "student" else []
    layers = f"{len(kept)} of its {plural(size.layers, 'layer')}" if kept else plural(size.layers, "layer")
    if model.source == "teacher":
        return f"a copy of the teacher with {layers if kept else f'all {layers}'}"
    if model.source == "init":
        return f"a new {model.architecture.family} of width {model.architecture.hidden_size}, {layers}"
    big = size.parameters >= 1e9
    parameters = f"{size.parameters / 1e9:.2f}B" if big else f"{size.parameters / 1e6:.3g}M"
    return f"{model.source}, {parameters} parameters, {layers}"


def _stage(config: ExperimentConfig, role: str, cached: Mapping[str, Path], rows: int, world: int) -> str:
    """What is done with a model before the main job."""
    sft = getattr(config, role).sft
    if not sft.enabled:
        return "taken as it is"
    folder = cached.get(role)
    if folder is not None and (folder / "config.json").exists():
        return f"fine-tuned already, in {folder}"
    stage = sft_stage(f"{role} SFT", sft, rows, world)
    begun = [] if folder is None else resume_points(folder.with_name(f"{folder.name}.partial"))
    on = f", goes on at step {step_of(begun[0])}" if begun else ""
    return f"fine-tuned first on {plural(rows, 'row')}: {_length(stage)}{on}"


def _length(stage: Stage) -> str:
    length = stage.length
    return f"{plural(length.total_steps, 'step')} ({plural(length.total_steps / length.steps_per_epoch, 'epoch')})"


def _cached(config: ExperimentConfig, train: Sequence[Row]) -> dict[str, Path]:
    """Where fine-tuned models would lie, as far as the cache has any: a key reads all bytes of a model."""
    found: dict[str, Path] = {}
    root = cache_folder(config)
    try:
        keys = {"teacher": ""}
        if config.teacher.source and _has(root, "teacher", "student"):
            told = with_end_token(config) if config.teacher.sft.enabled else config
            own = content_of(config.teacher)
            keys["teacher"] = model_key(told, config.teacher, rows_of_teacher(config), own)
            found["teacher"] = root / f"teacher-{keys['teacher']}"
        if _has(root, "student"):
            origin = keys["teacher"] if config.student.source in ("teacher", "init") else ""
            key = model_key(config, config.student, train, content_of(config.student), origin)
            found["student"] = root / f"student-{key}"
    except UserError:
        # the hub is out of reach: said where the model is needed
        pass
    return found


def _has(root: Path, *names: str) -> bool:
    return any(next(root.glob(f"{name}-*"), None) is not None for name in names)


def _rows(config: ExperimentConfig, rows: Mapping[str, Sequence[Row]]) -> str:
    return "; ".join(f"{split} {_split(config, split, rows)}" for split in rows)


def _split(config: ExperimentConfig, split: str, rows: Mapping[str, Sequence[Row]]) -> str:
    """How many rows of how many, and where they are from."""
    data, used = config.data, len(rows[split])
    limit = f"{split if split in ('train', 'dev') else 'test'}_limit"
    text = plural(used, "row")
    if getattr(data, limit) and used >= getattr(data, limit):
        unlimited = replace(data, train_limit=0, dev_limit=0, test_limit=0)
        there = len(read_split(unlimited, split))
        text = f"{used:,} of {plural(there, 'row')}" + (f" (data.{limit})" if there > used else "")
    if split in cut_splits(rows):
        return f"{text}, cut from those of train"
    return f"{text} of {rows[split][0].source}" if rows[split][0].source else text


def _encoded(config: ExperimentConfig, train: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
    """Every n-th row as token ids; all rows, where any of these would be left out."""
    some = encode_quietly(train[:: -(-len(train) // LOOKED_AT)], tokenizer, config.data)
    return encode_quietly(train, tokenizer, config.data) if some.left_out and len(train) > LOOKED_AT else some


def _lengths(config: ExperimentConfig, rows: int, encoded: EncodedRows, tokenizer: PreTrainedTokenizerBase) -> str:
    data, left = config.data, sum(encoded.left_out.values())
    looked = len(encoded.examples) + left
    whole = [one for one in encoded.examples if not one.response_truncated]
    end = f"; answers end with {tokenizer.convert_ids_to_tokens(whole[0].response_ids[-1])}" if whole else ""
    chat = data.template != CHAT and bool(template_text(tokenizer))
    template = data.template + (" (the tokenizer has a chat template: data.template=chat)" if chat else "")
    of = f"the {plural(rows, 'row')}" if looked == rows else f"{plural(looked, 'row')} looked at"
    return (
        f"template {template}; of {of} {plural(encoded.truncated_prompts, 'prompt')} cut to "
        f"{data.max_prompt_length} tokens, {plural(encoded.truncated_responses, 'answer')} cut so that both fit "
        f"{data.max_length}" + (f", {left:,} left out: {told_left_out(encoded.left_out)}" if left else "") + end
    )


def _training(config: ExperimentConfig, main: Stage, world: int) -> str:
    train, length = config.train, main.length
    text = f"{_length(main)} of {plural(train.batch_size, 'row')}, learning rate {train.lr:g}"
    if world > 1 or length.micro_batches > 1:
        each = " on each device" if world > 1 else ""
        text += f"; a step is {plural(length.micro_batches, 'forward')} of {main.forward_rows}{each}"
    return text


_WRITERS = {
    "teacher": "the teacher writes",
    "paired": "the student writes to one half of the prompts, the teacher to the other, in turns",
    "mixed": "student and teacher write together",
    "interleaved": "the student writes, the teacher replaces tokens as it does",
    "switched": "the student begins, the teacher takes over where the two part",
}


def _text(config: ExperimentConfig, main: Stage) -> str:
    scrg = config.scrg
    if not main.rounds:
        return "none is written: trained on the rows alone"
    if not round(main.written):
        return f"none is written: a batch of {plural(config.train.batch_size, 'row')} has no place for it"
    share = f"{'up to ' if config.mixture.kind == 'adaptive' else ''}{text_share(config.mixture):.0%}"
    written = f"about {plural(round(main.written), 'answer')} of at most {plural(scrg.max_new_tokens, 'token')}"
    return f"{share} of what is trained on, in {plural(main.rounds, 'round')}: {_writer(scrg)}; {written}"


def _writer(scrg: ScrgConfig) -> str:
    if scrg.text != "student":
        return _WRITERS.get(scrg.text, f"{scrg.text} writes")
    if not scrg.passes:
        return "the student writes"
    return f"SCRG, the student writes and the teacher corrects {plural(scrg.passes, 'token')} of each"


def _device(config: ExperimentConfig, world: int) -> str:
    trainer, kind = config.trainer, working_device(config.trainer.accelerator).type
    several = f"{world} x {kind}, {'ddp' if trainer.strategy == 'auto' else trainer.strategy}"
    text = f"{several if world > 1 else kind}, precision {trainer.precision}"
    if kind == "cpu" and trainer.precision.startswith("bf16") and not has_bf16_units():
        text += ", which is slower than 32-true on this processor: it has no units for bf16 (AMX, AVX512-BF16)"
    return text


def _evaluation(config: ExperimentConfig, rows: Mapping[str, Sequence[Row]]) -> str:
    evaluation = config.evaluation
    tests = [f"{name} ({plural(len(rows[name]), 'row')})" for name in ("test", *config.data.test_sets)]
    every = evaluation.val_every_n_epochs
    seen = min(len(rows["dev"]), evaluation.val_rows or len(rows["dev"]))
    seeds = len(evaluation.seeds) if evaluation.temperature else 0
    drawn = "greedily" + (f" and sampled with {plural(seeds, 'seed')}" if seeds else "")
    others = "its start and the teacher" if config.teacher.source else "its start"
    rhythm = "epoch" if every == 1 else plural(every, "epoch")
    return (
        f"{plural(seen, 'dev row')} every {rhythm}; at the end {', '.join(tests)}, {drawn}, by the best student, "
        f"{others}"
    )


def _result(config: ExperimentConfig, main: Stage) -> str:
    folder = run_folder(config)
    points = resume_points(folder)
    if (folder / METRICS).exists():
        return f"{folder}; complete already: another arm, seed or experiment begins a new run"
    on = (
        f"; begun: --resume goes on at step {step_of(points[0]):,} of {main.length.total_steps:,}"
        if points
        else ""
    )
    return f"{folder}{on}"
