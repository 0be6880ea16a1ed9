"""What `mgsr init` prints: a commented configuration for models and rows of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from mgsr.config.keys import describe
from mgsr.config.layers import layer_of_tree
from mgsr.config.load import keep_inside, unfinished
from mgsr.config.schema import ExperimentConfig

_FIELDS = tuple(f"data.fields.{name}" for name in ("instruction", "input", "output", "messages"))
# what one decides on first; all else stands at its default
_FIRST = (
    *("experiment", "data.train", "data.dev", "data.test", *_FIELDS, "data.template", "data.chat_template"),
    *("data.max_length", "data.max_prompt_length", "teacher.source", "teacher.sft.enabled", "teacher.sft.epochs"),
    *("student.source", "student.sft.enabled", "student.sft.epochs", "student.lora.r"),
    *("scrg.max_new_tokens", "scrg.batch_size", "train.epochs", "train.batch_size", "train.micro_batch_size"),
    *("train.lr", "evaluation.max_new_tokens", "evaluation.seeds", "trainer.accelerator", "trainer.devices"),
    "trainer.precision",
)
_HEAD = """\
# A file to start from. Fill in the empty values under data, teacher and student, then
#   mgsr doctor my.yaml    what will be done, and what would go wrong
#   mgsr train my.yaml
# Values that stand here are the defaults, and any such line may go. A command may give others: train.epochs=3
"""
_FOOT = "# mgsr config lists all keys with their defaults, mgsr config scrg those of one section.\n"
_WIDTH = 34


def starting_file(overrides: Sequence[str] = ()) -> str:
    """The file as YAML, which loads as soon as models and data are named.

    Args:
        overrides: `key=value` words; their keys stand in the file with these values.

    Raises:
        ConfigError: a word that cannot be used, or that no file may say.
    """
    config = unfinished(overrides)
    keep_inside(layer_of_tree({"run_root": config.run_root}))
    told = {word.partition("=")[0].strip() for word in overrides}
    lines = list(_lines(config, told))
    there = {line.partition(":")[0] for line in lines}
    others = [item.name for item in fields(config) if is_dataclass(getattr(config, item.name))]
    rest = ", ".join(name for name in others if name not in there)
    foot = f"# Not shown: further keys of these sections, and the sections {rest}.\n{_FOOT}"
    return "\n".join([_HEAD, *lines, "", foot])


def _lines(config: ExperimentConfig, told: set[str]) -> Iterator[str]:
    leaves = {name: (kind, value, text) for name, kind, value, text in describe(config)}
    more = [
        name
        for name in leaves
        if any(name == one or name.startswith(f"{one}.") or one.startswith(f"{name}.") for one in told)
    ]
    tree: dict[str, Any] = {}
    for name in (*_FIRST, *more):
        branch = tree
        for part in name.split(".")[:-1] if name in leaves else ():
            branch = branch.setdefault(part, {})
        if name in leaves:
            branch[name.rpartition(".")[2]] = leaves[name]
    yield from _branch(tree, dict(_sections(config)), "")


def _branch(tree: Mapping[str, Any], helps: Mapping[str, str], above: str) -> Iterator[str]:
    indent = "  " * above.count(".")
    for key, found in tree.items():
        if isinstance(found, dict):
            if not above:
                yield ""
            yield _with_comment(f"{indent}{key}:", helps[f"{above}{key}"])
            yield from _branch(found, helps, f"{above}{key}.")
        else:
            kind, value, text = found
            choices = f" ({kind})" if " | " in kind and "None" not in kind else ""
            yield _with_comment(f"{indent}{key}:{_written(value)}", text + choices)


def _sections(config: Any, above: str = "") -> Iterator[tuple[str, str]]:
    for item in fields(config):
        if is_dataclass(value := getattr(config, item.name)):
            yield f"{above}{item.name}", item.metadata["help"]
            yield from _sections(value, f"{above}{item.name}.")


def _written(value: Any) -> str:
    """A value behind its key, on one line; nothing where it is to be filled in."""
    if value in ("", None):
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return " " + text.removesuffix("...\n").strip()


def _with_comment(said: str, comment: str) -> str:
    return f"{said:<{_WIDTH}}  # {comment}"
