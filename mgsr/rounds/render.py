"""Revised sequences for people: what stood there, what the teacher put in its place, how it went on."""

from __future__ import annotations

import re
from typing import Any

from mgsr.data.encoding import decode
from mgsr.scrg import RevisedSequence

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~-])")


def escape_markdown(text: str) -> str:
    """Text of a model as literal Markdown: no markup, no HTML, line breaks kept.

    >>> escape_markdown("<b>*x*")
    '&lt;b&gt;\\\\*x\\\\*'
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text).replace("\n", "<br>")


def name_token(tokenizer: Any, token: int) -> str:
    """One token as text that can be seen: special tokens by name, blanks as an open box."""
    text = tokenizer.decode([token])
    return text.replace("\n", "⏎").replace(" ", "␣") if text.strip() == "" else text


def pieces(revised: RevisedSequence, tokenizer: Any) -> list[tuple[str, str, str, str]]:
    """Per correction: text before the error, the student's token, the teacher's token, text behind it.

    The text behind is the final one for the last correction; an earlier one shows what the last kept of it.
    """
    out = []
    for correction in revised.corrections:
        before = decode(tokenizer, revised.response_ids[: correction.position])
        after = decode(tokenizer, revised.response_ids[correction.position + 1 :])
        student = name_token(tokenizer, correction.student_token)
        out.append((before, student, name_token(tokenizer, correction.teacher_token), after))
    return out


def markdown_revision(revised: RevisedSequence, tokenizer: Any) -> str:
    """One revised sequence as Markdown; a correction shows as [student's token → **teacher's token**]."""
    lines = [
        f"**prompt** {escape_markdown(decode(tokenizer, revised.prompt_ids))}",
        f"**before** {escape_markdown(decode(tokenizer, revised.rollout_ids))}",
    ]
    for correction, (before, student, teacher, after) in zip(
        revised.corrections, pieces(revised, tokenizer), strict=True
    ):
        lines.append(
            f"**pass {correction.pass_}**, position {correction.position}, KL {correction.kl:.2f} nats: "
            f"{escape_markdown(before)} \\[{escape_markdown(student.strip() or student)} → "
            f"**{escape_markdown(teacher.strip() or teacher)}**\\] {escape_markdown(after)}"
        )
    return "\n\n".join(lines)
