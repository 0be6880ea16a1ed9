"""How much a run has to do: rows, lengths, optimiser steps, sequences and tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from transformers import PreTrainedTokenizerBase

from mgsr import models
from mgsr.config.schema import ExperimentConfig, MixtureConfig, ModelConfig, TrainConfig
from mgsr.data.row_hub import hub_id, is_file
from mgsr.data.rows import Row
from mgsr.data.splits import SYNTHETIC, read_split
from mgsr.planning.doctor_data import longest_sequence, look_at_lengths, look_at_tokenizers
from mgsr.planning.findings import Report
from mgsr.runtime.errors import UserError
from mgsr.training.optim import Length, training_length

DOLLY, DOLLY_ROWS = "databricks/databricks-dolly-15k", 11_430


@dataclass(frozen=True)
class Text:
    """Rows and their lengths in tokens.

    Attributes:
        rows: for the main job; teacher_rows: for the teacher's fine-tuning.
        prompt, response: means of the ground truth; written: mean of what models write.
        longest: of a training sequence.
        rows_from, lengths_from, tests_from: where the figures come from.
        tests: rows of all test sets.
    """

    rows: int
    teacher_rows: int
    prompt: float
    response: float
    written: float
    longest: int
    rows_from: str
    lengths_from: str
    tests: int = 0
    tests_from: str = ""


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        length: steps, epochs and micro-batches.
        forward_rows: most sequences of one forward on one device.
        truth, text: sequences trained on in all, of ground truth and written by models.
        written: prompts that models write for, over all rounds; rounds: how many.
    """

    name: str
    length: Length
    forward_rows: int
    truth: float
    text: float = 0.0
    written: float = 0.0
    rounds: int = 0

    def tokens(self, text: Text) -> float:
        """Tokens trained on, padding left out."""
        return self.truth * (text.prompt + text.response) + self.text * (text.prompt + text.written)


def find_text(config: ExperimentConfig, rows: int | None) -> tuple[Text, PreTrainedTokenizerBase | None]:
    """Rows and lengths as far as they can be had without the network, else as they are assumed.

    Args:
        rows: the number of training rows, where the user gives it.

    Returns:
        The text, and the student's tokenizer if it is on this machine.

    Raises:
        UserError: bad rows, or a number of rows that nothing tells.
    """
    found = _readable_rows(config)
    if rows is not None:
        count, rows_from = rows, "as given by --rows"
    elif found is not None:
        count, rows_from = len(found), f"read from {config.data.train}"
    elif config.data.train == DOLLY:
        # the training split of MiniLLM and DistiLLM, without rows that stand in their dev or test split too
        count, rows_from = (
            DOLLY_ROWS,
            "assumed: Dolly's training split in the paper's protocol; --rows N for another",
        )
        count = min(count, config.data.train_limit or count)
    else:
        raise UserError(f"plan: `data.train` {config.data.train} is not on this machine; give --rows N or a file")
    tests = _test_rows(config, here=found is not None)
    synthetic = config.data.train == SYNTHETIC
    teacher_rows = config.data.synthetic.teacher_rows if synthetic else count
    tokenizer = _tokenizer(config) if found is not None or not _needs_rows(config) else None
    if found is None or tokenizer is None:
        if _needs_rows(config):
            raise UserError("plan: the tokenizer of `source: init` is trained on the rows; give data.train=FILE")
        prompt = config.data.max_prompt_length
        response = config.data.max_length - prompt
        written = config.scrg.max_new_tokens
        missing = "rows" if found is None else "tokenizer"
        lengths_from = f"assumed, no {missing} here: the most that data.max_length and scrg.max_new_tokens allow"
        longest = max(config.data.max_length, prompt + written if config.scrg.enabled else 0)
        return Text(
            count, teacher_rows, prompt, response, written, longest, rows_from, lengths_from, *tests
        ), tokenizer
    report = Report()
    look_at_lengths(config, tokenizer, {"train": found}, report)
    figures = report.figures.get("lengths.train")
    if figures is None:
        raise UserError(report.findings[0].text)
    # a chat template may leave rows out
    usable = len(found) - figures["left_out"]
    if rows is None and figures["left_out"]:
        count, rows_from = usable, f"{rows_from}, {figures['left_out']} left out"
        teacher_rows = teacher_rows if synthetic else count
    prompt = figures["prompt_tokens"] / usable
    response = figures["tokens"] / usable - prompt
    written = min(response, config.scrg.max_new_tokens)
    lengths_from = "measured on the rows; written answers are assumed as long as theirs"
    longest = longest_sequence(config, report)
    return Text(
        count, teacher_rows, prompt, response, written, longest, rows_from, lengths_from, *tests
    ), tokenizer


def _test_rows(config: ExperimentConfig, *, here: bool) -> tuple[int, str]:
    """Rows of all test sets, and where that is from; of data elsewhere, as many as the configuration cuts off."""
    count, unknown = 0, []
    for name in ("test", *config.data.test_sets):
        try:
            if not here:
                raise UserError("elsewhere")
            count += len(read_split(config.data, name))
        except UserError:
            if name == "test":
                count += min(config.data.split.test, config.data.test_limit or config.data.split.test)
            unknown.append(name)
    told = "read" if not unknown else f"{', '.join(unknown)} not here: data.split.test assumed"
    return count, told if set(unknown) <= {"test"} else f"{told}, further sets not counted"


def _readable_rows(config: ExperimentConfig) -> list[Row] | None:
    """The training rows, if they are on this machine."""
    source = config.data.train
    if source != SYNTHETIC and not is_file(source):
        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{hub_id(source).replace('/', '--')}"
        if not folder.is_dir():
            return None
    return read_split(config.data, "train")


def _needs_rows(config: ExperimentConfig) -> bool:
    return "init" in (config.teacher.source, config.student.source)


def _tokenizer(config: ExperimentConfig) -> PreTrainedTokenizerBase | None:
    """The student's tokenizer, if both models' are on this machine.

    Raises:
        UserError: they are, and do not work or do not agree.
    """
    if not all(_is_here(model) for model in (config.teacher, config.student)):
        return None
    report = Report()
    tokenizer = look_at_tokenizers(config, report)
    wrong = [finding for finding in report.findings if finding.level == "error"]
    if wrong:
        raise UserError(f"{wrong[0].section}: {wrong[0].text}")
    return tokenizer


def _is_here(model: ModelConfig) -> bool:
    if model.source in ("", "init", "teacher"):
        return True
    if models.resolve_source(model.source, gguf_file=model.gguf_file or None).is_local:
        return True
    return isinstance(try_to_load_from_cache(model.source, "tokenizer_config.json"), str)


def sft_stage(name: str, train: TrainConfig, rows: int, world_size: int) -> Stage:
    """Supervised fine-tuning of the teacher or the student before the main job."""
    length = training_length(train, rows, world_size)
    return Stage(name, length, _forward_rows(train, length, world_size), _sequences(length, rows))


def main_job(config: ExperimentConfig, rows: int, world_size: int) -> Stage:
    """The main job: ground truth and written text, and the rounds that write it."""
    train, every = config.train, config.scrg.every_n_epochs
    length = training_length(train, rows, world_size)
    sequences = _sequences(length, rows)
    share = text_share(config.mixture) if config.scrg.enabled else 0.0
    rounds = math.ceil(length.epochs / every) if share else 0
    # in one epoch a prompt is drawn with probability `share`, in `every` of them at least once with this one
    drawn = 1 - (1 - share) ** every
    written = share * sequences if every == 1 else drawn * rows * rounds
    if config.mixture.kind == "adaptive" and share:
        written = rows * rounds if every > 1 else sequences
    return Stage(
        "main job",
        length,
        _forward_rows(train, length, world_size),
        truth=(1 - share) * sequences,
        text=share * sequences,
        written=written,
        rounds=rounds,
    )


def text_share(mixture: MixtureConfig) -> float:
    """Share of written text over a whole run; `adaptive` is planned at 1, which it may reach but not pass.

    >>> text_share(MixtureConfig(kind="linear", student_fraction=0.5, student_fraction_start=0.1))
    0.3
    """
    if mixture.kind == "adaptive":
        return 1.0
    if mixture.kind == "linear":
        return (mixture.student_fraction_start + mixture.student_fraction) / 2
    return mixture.student_fraction


def _forward_rows(train: TrainConfig, length: Length, world_size: int) -> int:
    return math.ceil(train.batch_size / (length.micro_batches * world_size))


def _sequences(length: Length, rows: int) -> float:
    """Sequences trained on in all: an epoch's last step may be smaller."""
    return rows * length.total_steps / length.steps_per_epoch
