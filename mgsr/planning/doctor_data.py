"""The doctor's look at data: rows, tokenizers, and lengths with what is cut of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mgsr import models
from mgsr.config.schema import ExperimentConfig, ModelConfig
from mgsr.data.encoding import pad_id, require_eos
from mgsr.data.prompts import end_id, told_left_out
from mgsr.data.rows import Row
from mgsr.data.splits import cut_splits, encode_quietly, read_split
from mgsr.models.from_config import build_tokenizer, quiet_transformers
from mgsr.planning.findings import Report
from mgsr.runtime.errors import RowsError, UserError
from mgsr.runtime.wording import plural

SHOWN = 3


def look_at_rows(config: ExperimentConfig, report: Report) -> dict[str, list[Row]]:
    """Rows of every split that can be read; the others are findings."""
    found: dict[str, list[Row]] = {}
    for split in ("train", "dev", "test", *config.data.test_sets):
        section = f"data.{split}"
        if "train" not in found and split in ("dev", "test") and not getattr(config.data, split):
            # it would be cut from them
            continue
        try:
            rows = read_split(config.data, split)
        except RowsError as error:
            report.say(
                "error",
                section,
                f"{plural(len(error.bad), 'bad row')}; the first: " + "; ".join(error.bad[:SHOWN]),
            )
            report.figures[section] = {"bad_rows": len(error.bad)}
            continue
        except UserError as error:
            report.say("error", section, str(error))
            continue
        found[split] = rows
        twice = len(rows) - len({row.asked for row in rows})
        cut = ", cut from data.train by a fixed rule (data.split)" if split in cut_splits(found) else ""
        report.figures[section] = {"rows": len(rows), "bad_rows": 0, "repeated": twice}
        if twice:
            there = plural(len(rows), "row") + cut
            report.say("warning", section, f"{there}, {twice} of them ask what another row asks")
        else:
            report.say("ok", section, plural(len(rows), "row") + cut)
    _look_for_leaks(found, report)
    return found


def _look_for_leaks(found: dict[str, list[Row]], report: Report) -> None:
    trained = {row.asked: row for row in found.get("train", [])}
    for split, rows in found.items():
        if split == "train" or not trained:
            continue
        leaked = [row for row in rows if row.asked in trained]
        report.figures[f"data.{split}"]["also_in_train"] = len(leaked)
        if leaked:
            first = leaked[0]
            place = first.where or f"row {first.id}"
            other = trained[first.asked].where or f"row {trained[first.asked].id}"
            report.say(
                "warning",
                f"data.{split}",
                f"trained on too: {len(leaked)} of {plural(len(rows), 'row')}, {place} as {other}: their scores "
                "will flatter; take them out of data.train",
            )


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
        _look_at_padding(name, tokenizer, report)
    if len(known) == 2:
        try:
            found = models.require_shared_ids(known["teacher"], known["student"])
            ends = {name: f"`{tokenizer.eos_token}`" for name, tokenizer in known.items()}
            sizes = found.teacher_size, found.student_size
            of = "all" if min(sizes) == max(sizes) else f"of {sizes[0]} and {sizes[1]}"
            note = f"teacher and student share {of} {found.shared_size} ids"
            if ends["teacher"] != ends["student"]:
                closing = f"`{_end_token(config, known['student'])}`"
                note += (
                    f"; they end with {ends['teacher']} and {ends['student']}: answers are closed with {closing}, "
                    "and written text ends at any of these"
                )
            report.say("ok", "tokenizers", note)
        except UserError as error:
            report.say("error", "tokenizers", str(error))
    return known.get("student")


def _tokenizer(
    config: ExperimentConfig, model: ModelConfig, name: str, known: dict[str, PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase:
    if name == "student" and model.source in ("teacher", "init") and "teacher" in known:
        return known["teacher"]
    split = "teacher" if name == "teacher" else "train"
    return build_tokenizer(config, model, read_split(config.data, split) if model.source == "init" else ())


def _end_token(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    end = end_id(tokenizer, config.data.end_token, config.data.template)
    return str(tokenizer.convert_ids_to_tokens(end))


def _look_at_padding(name: str, tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
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
    for split, some in rows.items():
        try:
            encoded = encode_quietly(some, tokenizer, config.data)
        except UserError as error:
            report.say("error", f"lengths.{split}", str(error))
            continue
        lengths = [len(e.prompt_ids) + len(e.response_ids) for e in encoded.examples]
        figures = _lengths(lengths, [len(e.prompt_ids) for e in encoded.examples])
        figures |= {"cut_prompts": encoded.truncated_prompts, "cut_responses": encoded.truncated_responses}
        figures["encoded_apart"] = encoded.apart
        report.figures[f"lengths.{split}"] = figures
        if split == "train":
            figures["histogram"] = histogram(lengths)
        cut = encoded.truncated_prompts + encoded.truncated_responses
        text = (
            f"{figures['median']} tokens at the median, {figures['longest']} at most; cut: "
            f"{encoded.truncated_prompts} prompts, {encoded.truncated_responses} responses of {len(some)}"
        )
        figures["left_out"] = left_out = sum(encoded.left_out.values())
        if left_out:
            text += f"; left out: {told_left_out(encoded.left_out)}"
        if encoded.apart:
            text += f"; {encoded.apart} responses encoded apart from their prompts"
        # an answer that is cut teaches the student never to end
        much = encoded.truncated_responses > len(some) // 20
        advice = "; raise data.max_length: a cut answer has no end of text" if much else ""
        report.say("warning" if much or left_out else "ok", f"lengths.{split}", text + (advice if cut else ""))
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


def longest_sequence(config: ExperimentConfig, report: Report) -> int:
    """The longest sequence of a training batch: of the rows, or a prompt with the longest written answer."""
    train = report.figures.get("lengths.train")
    if train is None:
        return config.data.max_length
    written = train["longest_prompt"] + config.scrg.max_new_tokens if config.scrg.enabled else 0
    return max(train["longest"], written)


def histogram(lengths: Sequence[int], *, bins: int = 8, width: int = 32) -> list[str]:
    """Bars of a distribution, one line per bin.

    >>> print("\\n".join(histogram([1, 2, 2, 3, 8], bins=2, width=4)))
       1-4     ████ 4
       5-8     █ 1
    """
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    step = max(1, -(-(high - low + 1) // bins))
    counts = [0] * (-(-(high - low + 1) // step))
    for length in lengths:
        counts[(length - low) // step] += 1
    most = max(counts)
    lines = []
    for number, count in enumerate(counts):
        start = low + number * step
        bar = "█" * round(width * count / most)
        lines.append(f"{start:>4}-{min(start + step - 1, high):<5} {bar or '▏'} {count}")
    return lines
