"""The doctor's look at tokenizers and lengths: shared ids, end of text, what is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mgsr import models
from mgsr.config.schema import ExperimentConfig, ModelConfig
from mgsr.data.prompts import encode_rows, pad_id, require_eos
from mgsr.data.rows import Row
from mgsr.data.splits import read_split
from mgsr.data.tokenizer import train_tokenizer
from mgsr.models.from_config import configured_tokenizer, init_texts, quiet_transformers
from mgsr.planning.doctor_data import histogram
from mgsr.planning.findings import Report, size
from mgsr.runtime.errors import UserError


def look_at_tokenizers(config: ExperimentConfig, report: Report) -> PreTrainedTokenizerBase | None:
    """The student's tokenizer, where it can be had; findings about it and the teacher's."""
    quiet_transformers()
    known: dict[str, PreTrainedTokenizerBase] = {}
    for name, model in (("teacher", config.teacher), ("student", config.student)):
        if not model.source:
            continue
        try:
            known[name] = _tokenizer(config, model, name, known)
        except UserError as error:
            report.say("error", f"{name} tokenizer", str(error))
    for name, tokenizer in known.items():
        _look_at_ends(name, tokenizer, report)
    if len(known) == 2:
        try:
            models.require_shared_ids(known["teacher"], known["student"])
            report.say("ok", "tokenizers", f"teacher and student share all {len(known['student'])} ids")
        except UserError as error:
            report.say("error", "tokenizers", str(error))
    return known.get("student")


def _tokenizer(
    config: ExperimentConfig, model: ModelConfig, name: str, known: dict[str, PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase:
    if name == "student" and model.source in ("teacher", "init") and "teacher" in known:
        return known["teacher"]
    if model.source == "init":
        rows = read_split(config.data, "teacher" if name == "teacher" else "train")
        return train_tokenizer(init_texts(rows, config.data), vocab_size=config.data.synthetic.vocab_size)
    return configured_tokenizer(model)


def _look_at_ends(name: str, tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
    """The trap that swallows ends of text: padding with their id, and masking by id."""
    eos, pad = require_eos(tokenizer), pad_id(tokenizer)
    report.figures[f"{name} tokenizer"] = {"ids": len(tokenizer), "eos": eos, "pad": pad}
    note = f"{len(tokenizer)} ids, end of text {eos}"
    if pad == eos:
        note += ", padding the same: masks go by position here, so no end of text is lost"
    report.say("ok", f"{name} tokenizer", note)


def look_at_lengths(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, rows: dict[str, list[Row]], report: Report
) -> None:
    """Token lengths by split, and how many rows the limits cut."""
    data = config.data
    for split, some in rows.items():
        try:
            encoded = encode_rows(
                some,
                tokenizer,
                template=data.template,
                max_length=data.max_length,
                max_prompt_length=data.max_prompt_length,
            )
        except UserError as error:
            report.say("error", f"lengths.{split}", str(error))
            continue
        lengths = [len(e.prompt_ids) + len(e.response_ids) for e in encoded.examples]
        figures = _lengths(lengths, [len(e.prompt_ids) for e in encoded.examples])
        figures |= {"cut_prompts": encoded.truncated_prompts, "cut_responses": encoded.truncated_responses}
        report.figures[f"lengths.{split}"] = figures
        if split == "train":
            figures["histogram"] = histogram(lengths)
        cut = encoded.truncated_prompts + encoded.truncated_responses
        text = (
            f"{figures['median']} tokens at the median, {figures['longest']} at most; cut: "
            f"{encoded.truncated_prompts} prompts, {encoded.truncated_responses} responses of {len(some)}"
        )
        # an answer that is cut teaches the student never to end
        much = encoded.truncated_responses > len(some) // 20
        advice = "; raise data.max_length: a cut answer has no end of text" if much else ""
        report.say("warning" if much else "ok", f"lengths.{split}", text + (advice if cut else ""))
    _look_at_room(config, report)


def _lengths(lengths: Sequence[int], prompts: Sequence[int]) -> dict[str, Any]:
    ordered = sorted(lengths)
    return {
        "median": ordered[len(ordered) // 2],
        "longest": ordered[-1],
        "longest_prompt": max(prompts),
        "prompt_tokens": sum(prompts),
        "tokens": sum(lengths),
    }


def _look_at_room(config: ExperimentConfig, report: Report) -> None:
    room = config.data.max_length - config.data.max_prompt_length
    for key, value in (
        ("scrg.max_new_tokens", config.scrg.max_new_tokens if config.scrg.enabled else 0),
        ("evaluation.max_new_tokens", config.evaluation.max_new_tokens),
    ):
        if value > room:
            report.say(
                "warning",
                "lengths",
                f"{key} is {value}, and a whole prompt leaves {room} of data.max_length: written text may be "
                "longer than anything the student was trained on",
            )


def text_bytes(config: ExperimentConfig, report: Report) -> int:
    """About what all rounds of text take on the disk: ids and text of prompts and answers, as JSON."""
    train = report.figures.get("lengths.train")
    rows = report.figures.get("data.train", {}).get("rows", 0)
    if not config.scrg.enabled or train is None:
        return 0
    rounds = -(-config.train.epochs // config.scrg.every_n_epochs)
    per_row = 7 * (train["longest_prompt"] + 3 * config.scrg.max_new_tokens) + 900
    total = int(rounds * rows * max(0.0, config.mixture.student_fraction) * per_row)
    report.figures["text"] = {"bytes": total, "readable": size(total)}
    return total
