"""What stands before the main job: teacher, SFT student, tokenizer; each cached by its content.

    <run_root>/cache/<teacher|student>-<key>/    a transformers folder, and evaluation-<key>.json beside it

The key covers configuration, data and seed, so a second run with the same ones takes what is there. A stage that
was cut short goes on from its resume point.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mgsr import __version__, models
from mgsr.config import ExperimentConfig, fingerprint
from mgsr.data.corpus import write_atomically
from mgsr.data.prompts import Example, pad_id, render, require_eos
from mgsr.data.rows import Row
from mgsr.data.tokenizer import train_tokenizer
from mgsr.datamodule import DistillationDataModule
from mgsr.devices import placed, working_device
from mgsr.distillation import DistillationModule
from mgsr.evaluation import Predictor, evaluate
from mgsr.fitting import fit
from mgsr.heads import check_output_head
from mgsr.material import Annotation, encode, read_split, rows_fingerprint
from mgsr.objective import Objective
from mgsr.optimisation import training_length
from mgsr.progress import say
from mgsr.schema import ModelConfig, SftConfig, StudentConfig


@dataclass(frozen=True)
class Prepared:
    """A model with its tokenizer, the key of its content, and the folder it lies in where it was fine-tuned."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    key: str
    folder: Path


def quiet_transformers() -> None:
    """Loading a model of this size is not worth a bar of its own; what it warns of is decided here."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def prepare_teacher(config: ExperimentConfig, dev: Sequence[Row]) -> Prepared | None:
    """The teacher, fine-tuned first where the config says so; None where no teacher is configured."""
    quiet_transformers()
    teacher = config.teacher
    if not teacher.source:
        return None
    rows = read_split(config.data, "teacher") if teacher.sft.enabled or teacher.source == "init" else []
    key = _key(config, teacher, rows)
    folder = cache_folder(config) / f"teacher-{key}"
    if (folder / "config.json").exists():
        say(f"teacher: taken from {folder}")
        return _from_folder(folder, teacher, key)
    tokenizer = _tokenizer(config, teacher, rows)
    model = _load(config, teacher, tokenizer, seed=_seed(config, teacher.sft))
    return _fine_tuned(config, teacher.sft, "teacher", model, tokenizer, rows, dev, key, folder)


def prepare_student(
    config: ExperimentConfig, teacher: Prepared | None, train: Sequence[Row], dev: Sequence[Row]
) -> Prepared:
    """The student that the main job starts from, fine-tuned first where the config says so."""
    quiet_transformers()
    student = config.student
    # a student made of the teacher, or of the teacher's tokenizer, is another one when the teacher is
    origin = teacher.key if teacher and student.source in ("teacher", "init") else ""
    key = _key(config, student, train, origin)
    folder = cache_folder(config) / f"student-{key}"
    if (folder / "config.json").exists():
        say(f"student: taken from {folder}")
        return _from_folder(folder, student, key)
    tokenizer = teacher.tokenizer if teacher and origin else _tokenizer(config, student, train)
    model = _initial_student(config, student, teacher, tokenizer, seed=_seed(config, student.sft))
    return _fine_tuned(config, student.sft, "student", model, tokenizer, train, dev, key, folder)


def cache_folder(config: ExperimentConfig) -> Path:
    return Path(config.run_root) / "cache"


def cached_evaluation(
    config: ExperimentConfig, prepared: Prepared, sets: dict[str, tuple[list[Row], list[Example]]], name: str
) -> dict[str, Any]:
    """Test figures of a model that several runs start from; measured once, then read."""
    rows = {set_name: rows_fingerprint(set_rows) for set_name, (set_rows, _) in sets.items()}
    key = fingerprint(asdict(config.evaluation), asdict(config.data), rows)
    path = prepared.folder / f"evaluation-{key}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    say(f"{name}: writing the test sets with {len(config.evaluation.seeds)} seeds")
    results = {}
    with placed(working_device(config.trainer.accelerator), prepared.model):
        for set_name, (_, examples) in sets.items():
            predictor = Predictor(
                prepared.tokenizer,
                examples,
                config.evaluation,
                vocab_size=models.written_vocab_size(prepared.tokenizer, prepared.model),
                pad_token_id=pad_id(prepared.tokenizer),
            )
            results[set_name] = evaluate(prepared.model, predictor).summary
    write_atomically(path, json.dumps(results, indent=2) + "\n")
    return results


def _key(config: ExperimentConfig, model: ModelConfig, rows: Sequence[Row], origin: str = "") -> str:
    data = asdict(config.data)
    relevant = {k: data[k] for k in ("template", "max_length", "max_prompt_length")}
    if model.source == "init":
        relevant["vocab_size"] = config.data.synthetic.vocab_size
    precision = config.trainer.precision
    tree = asdict(model)
    seed = _seed(config, model.sft) if model.sft.enabled or model.source == "init" else None
    return fingerprint(__version__, tree, relevant, precision, rows_fingerprint(rows), seed, origin)


def _seed(config: ExperimentConfig, sft: SftConfig) -> int:
    return config.seed if sft.seed is None else sft.seed


def _tokenizer(config: ExperimentConfig, model: ModelConfig, rows: Sequence[Row]) -> PreTrainedTokenizerBase:
    if model.source == "init":
        template = config.data.template
        texts = [text for row in rows for text in (render(row, template), *row.references)]
        return train_tokenizer(texts, vocab_size=config.data.synthetic.vocab_size)
    tokenizer = configured_tokenizer(model)
    require_eos(tokenizer)
    return tokenizer


def configured_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that comes from elsewhere."""
    return models.load_tokenizer(
        model.source,
        gguf_file=model.gguf_file or None,
        revision=model.revision or None,
        trust_remote_code=model.trust_remote_code,
    )


def check_tokenizers(config: ExperimentConfig) -> None:
    """Refuse tokenizers that disagree before anything is trained, where both come from elsewhere."""
    sources = config.teacher.source, config.student.source
    if sources[0] == sources[1] or any(source in ("", "init", "teacher") for source in sources):
        return
    quiet_transformers()
    models.require_shared_ids(configured_tokenizer(config.teacher), configured_tokenizer(config.student))


def _load(
    config: ExperimentConfig, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> PreTrainedModel:
    if model.source == "init":
        shape = model.architecture
        return models.build_causal_lm(
            shape.family,
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden_size,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads or None,
            intermediate_size=shape.intermediate_size or None,
            tie_word_embeddings=shape.tie_word_embeddings,
            dropout=shape.dropout,
            initializer_range=shape.initializer_range,
            dtype=model.dtype,
            attn_implementation=model.attn_implementation or None,
            eos_token_id=require_eos(tokenizer),
            pad_token_id=pad_id(tokenizer),
            max_position_embeddings=config.data.max_length + 8,
            seed=seed,
        )
    loaded = models.load_causal_lm(
        model.source,
        gguf_file=model.gguf_file or None,
        revision=model.revision or None,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation or None,
        trust_remote_code=model.trust_remote_code,
    )
    check_output_head(loaded)
    return loaded


def _initial_student(
    config: ExperimentConfig,
    student: StudentConfig,
    teacher: Prepared | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
) -> PreTrainedModel:
    if student.source == "teacher":
        assert teacher is not None
        layers = student.keep_layers or range(teacher.model.config.num_hidden_layers)
        return models.prune_depth(teacher.model, list(layers))
    model = _load(config, student, tokenizer, seed=seed)
    return models.prune_depth(model, student.keep_layers) if student.keep_layers else model


def _from_folder(folder: Path, model: ModelConfig, key: str) -> Prepared:
    tokenizer = models.load_tokenizer(str(folder))
    loaded = models.load_causal_lm(
        str(folder),
        dtype=model.dtype,
        attn_implementation=model.attn_implementation or None,
        trust_remote_code=model.trust_remote_code,
    )
    return Prepared(loaded, tokenizer, key, folder)


def _fine_tuned(
    config: ExperimentConfig,
    sft: SftConfig,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    dev: Sequence[Row],
    key: str,
    folder: Path,
) -> Prepared:
    """Fine-tune on ground truth in `<folder>.partial`, then move the finished model to `folder`."""
    if not sft.enabled:
        folder.mkdir(parents=True, exist_ok=True)
        return Prepared(model, tokenizer, key, folder)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    parameters = models.count_parameters(model)
    say(f"{name}: supervised fine-tuning, {parameters.total / 1e6:.2f}M parameters, {len(rows)} rows")
    _supervise(config, sft, name, model, tokenizer, rows, dev, partial)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        finished = Path(scratch) / folder.name
        models.save_model_folder(model, tokenizer, finished)
        if folder.exists():
            shutil.rmtree(folder)
        finished.replace(folder)
    shutil.rmtree(partial / "checkpoints", ignore_errors=True)
    model.eval()
    return Prepared(model, tokenizer, key, folder)


def _supervise(
    config: ExperimentConfig,
    sft: SftConfig,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    dev: Sequence[Row],
    folder: Path,
) -> None:
    """Cross-entropy alone: the same module with no teacher and the other two weights at 0."""
    seed = _seed(config, sft)
    unannotated = Annotation(None)
    train = unannotated.ground_truth(encode(rows, tokenizer, config.data, f"{name} training rows").examples)
    dev_rows = unannotated.ground_truth(encode(dev, tokenizer, config.data, f"{name} dev rows").examples)
    length = training_length(sft, len(train), config.trainer.devices * config.trainer.num_nodes)
    data = DistillationDataModule(
        config,
        train,
        dev_rows,
        stage=sft,
        length=length,
        pad_token_id=pad_id(tokenizer),
        run_folder=folder,
        seed=seed,
    )
    module = DistillationModule(
        model,
        None,
        Objective((1.0, 0.0, 0.0), (0.0, 1.0), {}),
        train=sft,
        trainer=config.trainer,
        total_steps=length.total_steps,
        micro_batches=length.micro_batches,
        vocab_size=model.config.vocab_size,
        seed=seed,
        section=f"{name}.sft",
    )
    go_on = "the same command, which takes this stage up again"
    fit(config, module, data, tokenizer, folder=folder, length=length, name=f"{name} SFT", go_on=go_on)
