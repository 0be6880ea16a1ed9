"""Layouts of a prompt that are the same for every tokenizer: text with a row's instruction and input in it."""

from __future__ import annotations

from dataclasses import dataclass

from mgsr.data.chat import CHAT
from mgsr.data.rows import Row
from mgsr.runtime.errors import ConfigError, UserError, did_you_mean


@dataclass(frozen=True)
class Template:
    """Two layouts with the places ``{instruction}`` and ``{input}``; both end with the response header."""

    with_input: str
    without_input: str


TEMPLATES = {
    # Taori et al. 2023 (Stanford Alpaca).
    "alpaca": Template(
        with_input=(
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        without_input=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Response:\n"
        ),
    ),
    # Three tokens of frame, for models with a small vocabulary. It ends with a line break and not with a
    # space: byte-level vocabularies attach a space to the word after it.
    "plain": Template(with_input="{instruction}\n{input}\n=>\n", without_input="{instruction}\n=>\n"),
}


def render(row: Row, template: str = "alpaca") -> str:
    """The prompt as text, up to and including the response header.

    A blank input takes the layout without one. A conversation of one turn is an instruction.

    Raises:
        ConfigError: no template has that name.
        UserError: the row has several turns, or one of the system's, which only the template `chat` renders.

    >>> render(Row(0, "Say the opposite.", "The cat is big.", ("The cat is small.",)), "plain")
    'Say the opposite.\\nThe cat is big.\\n=>\\n'
    """
    if template not in TEMPLATES:
        raise ConfigError(
            f"no prompt template {template!r}; take one of {', '.join(TEMPLATES)}, {CHAT}"
            + did_you_mean(template, [*TEMPLATES, CHAT])
        )
    if [turn.role for turn in row.messages] not in ([], ["user"]):
        roles = ", ".join(turn.role for turn in row.messages)
        raise UserError(
            f"{row.where or f'row {row.id}'}: a conversation ({roles}) does not fit the `{template}` template; "
            f"take the one that renders every turn (data.template={CHAT}, or --template {CHAT}), or rows of one "
            "question"
        )
    layouts = TEMPLATES[template]
    layout = layouts.with_input if row.input.strip() else layouts.without_input
    return layout.format(instruction=row.instruction, input=row.input)
