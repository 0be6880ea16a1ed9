"""Do teacher and student mean the same token by the same id, and on how many ids?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mgsr.data.prompts import Example
from mgsr.models.output_layer import position_limit
from mgsr.runtime.errors import UserError


@dataclass(frozen=True)
class VocabularyConflict:
    """One token that the two tokenizers number differently; None = the tokenizer does not have it."""

    token: str
    teacher_id: int | None
    student_id: int | None


@dataclass(frozen=True)
class VocabularyReport:
    """How two tokenizers compare.

    Attributes:
        teacher_size, student_size: largest id + 1 of each.
        shared_size: ids below this are numbered by both: the smaller of the two sizes.
        conflicts: how many tokens disagree on the ids that both use.
        example: the disagreement with the smallest id, or None.
        bos_ids: of teacher and student.
    """

    teacher_size: int
    student_size: int
    shared_size: int
    conflicts: int
    example: VocabularyConflict | None
    bos_ids: tuple[int | None, int | None]

    @property
    def problem(self) -> str | None:
        """What keeps the two from being compared id by id, in one line; None where they agree."""
        if self.example is not None:
            return (
                f"{self.conflicts} tokens differ: `{self.example.token}` is {_id(self.example.teacher_id)} "
                f"for the teacher and {_id(self.example.student_id)} for the student"
            )
        teacher, student = self.bos_ids
        # models of one family differ in whether they name a beginning token; ends may differ, see `text_ends`
        if teacher != student and None not in (teacher, student):
            return f"the bos token is {_id(teacher)} for the teacher and {_id(student)} for the student"
        return None


def _id(token_id: int | None) -> str:
    return "absent" if token_id is None else f"id {token_id}"


def vocabulary_report(
    teacher_tokenizer: PreTrainedTokenizerBase, student_tokenizer: PreTrainedTokenizerBase
) -> VocabularyReport:
    """Compare two tokenizers token by token, added tokens included.

    A conflict is a token that both have under different ids, or an id that both use for different tokens.
    Tokens that only one has, under ids the other leaves free, are none.
    """
    teacher_vocab = teacher_tokenizer.get_vocab()
    same = teacher_tokenizer is student_tokenizer
    student_vocab = teacher_vocab if same else student_tokenizer.get_vocab()
    conflicts = [] if same or teacher_vocab == student_vocab else _conflicts(teacher_vocab, student_vocab)
    teacher_size, student_size = id_count(teacher_tokenizer), id_count(student_tokenizer)
    return VocabularyReport(
        teacher_size=teacher_size,
        student_size=student_size,
        shared_size=min(teacher_size, student_size),
        conflicts=len(conflicts),
        example=conflicts[0] if conflicts else None,
        bos_ids=(teacher_tokenizer.bos_token_id, student_tokenizer.bos_token_id),
    )


def _conflicts(teacher_vocab: dict[str, int], student_vocab: dict[str, int]) -> list[VocabularyConflict]:
    """All disagreements, ordered by the teacher's id."""
    student_ids = set(student_vocab.values())
    found = []
    for token, teacher_id in teacher_vocab.items():
        student_id = student_vocab.get(token)
        if student_id != teacher_id and (student_id is not None or teacher_id in student_ids):
            found.append(VocabularyConflict(token, teacher_id, student_id))
    return sorted(found, key=lambda conflict: (conflict.teacher_id, conflict.token))


def written_vocab_size(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """How many ids a model may write, from 0: those that its tokenizer knows, without the embedding's padding."""
    return min(id_count(tokenizer), logits_width(model))


def id_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id of a tokenizer + 1: ids may have gaps, so that the number of tokens says little."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def logits_width(model: PreTrainedModel) -> int:
    """How many ids `model` can both read and score: its embedding rows, padding included.

    Raises:
        ValueError: the model has no output embeddings.
    """
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output embeddings")
    return min(embedding.weight.shape[0], head.weight.shape[0])


def knows_all_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `model` has an embedding of every id that its tokenizer may give."""
    return max(tokenizer.get_vocab().values()) < logits_width(model)


def require_shared_ids(
    teacher_tokenizer: PreTrainedTokenizerBase, student_tokenizer: PreTrainedTokenizerBase
) -> VocabularyReport:
    """The comparison of two tokenizers that number alike.

    Raises:
        UserError: they disagree on a token (the message shows both ids).
    """
    report = vocabulary_report(teacher_tokenizer, student_tokenizer)
    if report.problem is not None:
        raise UserError(
            f"teacher and student must share token ids, but {report.problem}: use models of one family"
        )
    return report


def shared_vocab_size(
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_model: PreTrainedModel,
    student_model: PreTrainedModel,
) -> int:
    """The number of ids that both tokenizers number alike and both models can score.

    Ids from there on are padding of the embeddings, or tokens that one side added; logits are cut to this
    width before any softmax, in sampling too.

    Raises:
        UserError: the tokenizers disagree on a token (the message shows both ids).
    """
    report = require_shared_ids(teacher_tokenizer, student_tokenizer)
    return min(report.shared_size, logits_width(teacher_model), logits_width(student_model))


def check_texts(
    name: str,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    new_tokens: int,
    key: str,
    answers: bool = False,
) -> None:
    """See that a model has a position and an embedding for every token that it will read or write.

    Args:
        name: of the model, for the message; model: on any device, also without content.
        new_tokens: that are written to a prompt; key: where that number is set.
        answers: the answers of the examples are read too.

    Raises:
        UserError: it has not; the first such row is named.
    """
    limit, width = position_limit(model), logits_width(model)
    for example in examples:
        where = example.where or f"row {example.id}"
        read = example.response_ids if answers else ()
        ids = (*example.prompt_ids, *read)
        if ids and max(ids) >= width:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(
                f"{name}: {where} has the token `{token}` of id {max(ids)}, and its embedding has {width} rows: "
                "take a tokenizer and weights that belong together"
            )
        prompt, most = len(example.prompt_ids), max(new_tokens, len(read))
        if limit is not None and prompt + most > limit:
            raise UserError(
                f"{name}: {where} takes {prompt} tokens and its answer up to {most}, and the model has {limit} "
                f"positions: {_shorter(key if new_tokens == most else 'data.max_length', prompt < limit)}"
            )


def check_shared(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, shared: int, width: int, answers: bool
) -> None:
    """See that a teacher can read what its student's tokenizer makes of rows, and has a probability of answers.

    Args:
        tokenizer: the student's.
        shared: ids below it both models can write; width: ids below it the teacher can read.
        answers: the answers are read too.

    Raises:
        UserError: it cannot; the first such row is named.
    """
    for example in examples:
        asked, answer = max(example.prompt_ids, default=0), max(example.response_ids, default=0) if answers else 0
        if asked < width and answer < shared:
            continue
        what, most, limit = ("answer", answer, shared) if answer >= shared else ("prompt", asked, width)
        token = tokenizer.convert_ids_to_tokens(most)
        raise UserError(
            f"{example.where or f'row {example.id}'}: its {what} has the token `{token}` of id {most}, and the "
            f"teacher knows the ids below {limit}: leave the row out, or take a student with its tokenizer"
        )


def _shorter(key: str, answer: bool) -> str:
    """What to lower: a key of the configuration, or an option of `mgsr evaluate`; `answer`: less of it may do."""
    prompt = "shorten the texts, or take a shorter --template"
    if not key.startswith("--"):
        prompt = "lower data.max_prompt_length"
    return f"lower {key}, or {prompt}" if answer else prompt
