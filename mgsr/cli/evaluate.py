"""`mgsr evaluate`: a run or any model folder, on any data file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mgsr import models
from mgsr.cli.console import evaluation_table, show
from mgsr.config.schema import DataConfig, EvaluationConfig
from mgsr.data.chat import CHAT, template_text
from mgsr.data.encoding import require_eos
from mgsr.data.prompts import Example
from mgsr.data.row_files import read_rows
from mgsr.data.splits import encode_answered
from mgsr.evaluation.exposure_bias import exposure, exposure_seed
from mgsr.evaluation.model_card import ASKED, as_it_was_asked
from mgsr.evaluation.test_set import Predictor, evaluate, say_of_unseen_words
from mgsr.models.from_config import configured_ends, frozen, quiet_transformers, teacher_dtype
from mgsr.models.hub import near_names
from mgsr.models.vocabulary import check_texts
from mgsr.runtime.devices import computing_dtype, matmul_precision, move, working_device
from mgsr.runtime.errors import UserError
from mgsr.runtime.files import write_atomically
from mgsr.runtime.progress import progress, say
from mgsr.runtime.wording import plural
from mgsr.training.export import load_run, load_run_teacher
from mgsr.training.run_folder import load_run_config

_OWN_TEACHER = "run"


def evaluate_files(
    source: str | Path,
    files: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    template: str | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    limit: int = 0,
    rouge_tokenizer: str | None = None,
    teacher: str | Path | None = None,
    device: str = "auto",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """ROUGE-L and more of a run's best student, or of a transformers folder, on data files.

    An export of a run says itself which template, lengths and end token it was trained with.

    Args:
        source: a run folder or a model folder.
        files: of rows, see `mgsr.data.row_files`; each is reported under its path.
        seeds, template, temperature, max_new_tokens, batch_size, rouge_tokenizer: as the run's configuration where
            not given. The template `chat` is the one of the model's tokenizer.
        limit: read only the first n rows of each file (0: all).
        teacher: a model folder, or "run" for the run's own teacher: measure exposure bias against it too.
        device: auto, cpu, cuda or mps.
        out: write the figures there as JSON and every response beside it as JSONL; existing files are kept.

    Raises:
        UserError: neither a run nor a model folder; an unreadable file; `out` exists or cannot be written; a
            teacher whose tokenizer differs; a text longer than a model's positions.
    """
    outputs = [] if out is None else [Path(out), Path(out).with_suffix(".responses.jsonl")]
    for path in outputs:
        _check_writable(path)
    place: Any = working_device(device)
    if is_run := _is_run(source):
        config = load_run_config(source)
        data, settings = config.data, config.evaluation
    else:
        data, settings = as_it_was_asked(Path(source))
    sets = {name: read_rows(name, fields=data.fields, strict=False)[: limit or None] for name in files}
    model, tokenizer = load_run(source) if is_run else _load_folder(source)
    dtype = computing_dtype(config.trainer.precision, place) if is_run else None
    if not (is_run or template or (Path(source) / ASKED).exists()):
        chat = template_text(tokenizer) and f"; its tokenizer has a chat template: --template {CHAT}"
        say(f"{source}: says no prompt template, so {data.template} is taken{chat}")
    data.template = template or data.template
    taught = None if teacher is None else _teacher(teacher, source, model, tokenizer, data)
    settings.seeds = list(seeds) if seeds else settings.seeds
    settings.temperature = settings.temperature if temperature is None else temperature
    settings.max_new_tokens = max_new_tokens or settings.max_new_tokens
    settings.batch_size = batch_size or settings.batch_size
    settings.rouge_tokenizer = rouge_tokenizer or settings.rouge_tokenizer

    encoded = {name: encode_answered(rows, tokenizer, data, settings, name) for name, rows in sets.items()}
    # of all sets, before the first one is written to
    for role, one in (("model", model), *([("teacher", taught[0])] if taught else [])):
        for examples in encoded.values():
            check_texts(role, one, tokenizer, examples, new_tokens=settings.max_new_tokens, key="--max-new-tokens")

    width = models.written_vocab_size(tokenizer, model)
    ends = configured_ends(data, [model], [tokenizer], width)
    if ends.note:
        say(ends.note)
    say_of_unseen_words(settings, sets, "type --rouge-tokenizer unicode")
    results: dict[str, Any] = {}
    responses: list[str] = []
    # as the run has measured itself
    move(frozen(model, dtype), place)
    if taught is not None:
        move(frozen(taught[0], teacher_dtype(config, place) if is_run else None), place)
    with matmul_precision(config.trainer.matmul_precision if is_run else "highest"):
        for name, examples in encoded.items():
            predictor = Predictor(
                tokenizer,
                examples,
                settings,
                vocab_size=width,
                pad_token_id=ends.pad_id,
                stop_ids=ends.stop_ids,
                lead=ends.lead,
            )
            say(
                f"{name}: {plural(len(examples), 'row')}, greedily and with {plural(len(predictor.seeds), 'seed')}"
            )
            with progress(name, len(examples) * predictor.times, unit="responses") as advance:
                predictor.advance = advance
                evaluation = evaluate(model, predictor)
            results[name] = evaluation.summary
            if taught is not None:
                results[name]["exposure"] = _exposure(model, taught, examples, settings, name)
            for record in evaluation.predictions:
                responses.append(json.dumps({"set": name, **record}, ensure_ascii=False))
    contents = json.dumps(results, indent=2), "\n".join(responses)
    try:
        for path, content in zip(outputs, contents, strict=False):
            write_atomically(path, content + "\n")
    except UserError:
        # what was measured is not lost with the disk
        show(evaluation_table(results))
        raise
    return results


def _check_writable(path: Path) -> None:
    """See, before anything is measured, that a file can be made where `path` will be."""
    if path.exists():
        raise UserError(f"{path}: exists already; choose another --out or delete it")
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error


def _teacher(
    teacher: str | Path,
    source: str | Path,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
) -> tuple[PreTrainedModel, int, models.TextEnds]:
    """The teacher, the number of ids it shares with the student, and where their texts end."""
    if str(teacher) == _OWN_TEACHER:
        if not _is_run(source):
            raise UserError(f"{source}: only a run has a teacher of its own; name one with --teacher FOLDER")
        model, words = load_run_teacher(source)
    else:
        model, words = _load_folder(teacher)
    shared = models.shared_vocab_size(words, tokenizer, model, student)
    return model, shared, configured_ends(data, [student, model], [tokenizer, words], shared)


def _exposure(
    student: PreTrainedModel,
    taught: tuple[PreTrainedModel, int, models.TextEnds],
    examples: Sequence[Example],
    settings: EvaluationConfig,
    name: str,
) -> dict[str, Any]:
    teacher, vocab_size, ends = taught
    with progress(f"{name}, exposure", 2 * len(examples), unit="responses") as advance:
        return exposure(
            student,
            teacher,
            [(example.id, example.prompt_ids) for example in examples],
            seed=exposure_seed(settings),
            eos_token_id=ends.stop_ids,
            pad_token_id=ends.pad_id,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            vocab_size=vocab_size,
            advance=advance,
        )


def _is_run(source: str | Path) -> bool:
    return (Path(source) / "config.yaml").exists()


def _load_folder(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if (Path(source) / "adapter_config.json").exists():
        raise UserError(
            f"{source}: holds adapters alone; evaluate the run that they are of, or export it with --merge and "
            "evaluate that folder"
        )
    if not (Path(source) / "config.json").exists():
        hint = near_names(str(source))
        raise UserError(f"{source}: neither a run folder (config.yaml) nor a model folder (config.json){hint}")
    quiet_transformers()
    tokenizer = models.load_tokenizer(str(source))
    require_eos(tokenizer)
    return models.load_causal_lm(str(source)), tokenizer
