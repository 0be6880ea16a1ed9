"""What a writer of the user's own returns is checked, and told of in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgsr.cli.main import main
from mgsr.rounds.own_text import checked_text
from mgsr.runtime.errors import ConfigError, UserError

PROMPTS = [(7, (1, 2)), (8, (3,))]
NONE: list[dict[str, Any]] = [{}, {}]


class Own:
    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def unrevised(self, prompts: Any, round_: int) -> Any:
        return self.returned() if callable(self.returned) else self.returned


def checked(returned: Any) -> Any:
    return checked_text(Own(returned).unrevised, PROMPTS, 0, name="m:Own", vocab_size=10, longest=3)


@pytest.mark.parametrize(
    "responses",
    [
        [[1, 2], [3, 4]],
        ((1, 2), (3, 4)),
        torch.tensor([[1, 2], [3, 4]]),
        [torch.tensor([1, 2]), np.array([3, 4])],
        [[torch.tensor(1), np.int64(2)], (3, np.uint8(4))],
    ],
)
def test_whole_numbers_of_any_kind_become_plain(responses: Any) -> None:
    texts, more, readers = checked((responses, NONE, torch.tensor(1)))
    assert (texts, more, readers) == ([(1, 2), (3, 4)], NONE, 1)
    assert {type(token) for text in texts for token in text} == {int} and type(readers) is int


def test_what_else_is_kept_becomes_plain_and_a_text_may_be_empty() -> None:
    more = [{"behaviour_log_probs": torch.tensor([-0.5, -1.0]), "replaced": np.array([1])}, {"by_teacher": 1}]
    texts, kept, _ = checked(([[1, 2], []], more, 0))
    assert texts == [(1, 2), ()]
    assert kept == [{"behaviour_log_probs": (-0.5, -1.0), "replaced": (1,)}, {"by_teacher": True}]


def fails() -> Any:
    raise KeyError("no such\nthing")


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (([[1]], NONE, 1), "as many responses as there are prompts, 2, not 1"),
        (([[1]] * 3, NONE, 1), "as many responses as there are prompts, 2, not 3"),
        (([[1]] * 2, [{}], 1), "as many dicts of what else is kept as there are prompts, 2, not 1"),
        ((None, NONE, 1), "2, not something else"),
        ((torch.tensor(3), NONE, 1), "2, not something else"),
        (([[1], [1]], NONE), "not 2 things"),
        (None, "not NoneType"),
        (([[1], [1]], NONE, None), "how many models have read the responses, not None"),
        (([[1], None], NONE, 1), "for example 8 no sequence of token ids but None"),
        (([[1], "text"], NONE, 1), "no sequence of token ids but 'text'"),
        (([[1], b"text"], NONE, 1), "no sequence of token ids but b'text'"),
        (([[1.0], [1]], NONE, 1), "for example 7 no sequence of token ids but [1.0]"),
        (([[True], [1]], NONE, 1), "no sequence of token ids but [True]"),
        ((torch.ones(2, 2), NONE, 1), "no sequence of token ids but [1.0, 1.0]"),
        ((torch.ones(2, 1, 1).long(), NONE, 1), "no sequence of token ids but [[1]]"),
        (([[1], [9, 10]], NONE, 1), "for example 8 the id 10; the ids that may be written are 0 to 9"),
        (([[-1], [1]], NONE, 1), "for example 7 the id -1"),
        (([[1], [1] * 4], NONE, 1), "for example 8 4 tokens, and `scrg.max_new_tokens` is 3"),
        (([[1], [1]], [{}, None], 1), "for example 8 None beside the text"),
        (
            ([[1], [1]], [{}, {"mine": 1}], 1),
            "{'mine': 1} beside the text; it takes a dict, empty or of behaviour",
        ),
        (([[1], [1]], [{"replaced": [1]}, {}], 1), "{'replaced': [1]} beside the text"),
        (([[1], [1]], [{"behaviour_log_probs": [-1.0, -1.0]}, {}], 1), "beside the text"),
        (([[1], [1]], [{"behaviour_log_probs": ["a"]}, {}], 1), "beside the text"),
        (fails, f"fails at {__file__}:{fails.__code__.co_firstlineno + 1}: KeyError: 'no such"),
    ],
)
def test_what_no_round_can_take_is_refused(returned: Any, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(returned)
    message = str(caught.value)
    assert message.startswith("`scrg.text`: m:Own.unrevised ") and told in message, message
    assert "\n" not in message and caught.value.keys == ("scrg.text",)


@pytest.mark.parametrize(
    "error", [UserError("stopped"), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()]
)
def test_an_end_that_is_not_the_methods_fault_goes_on(error: BaseException) -> None:
    def ends() -> Any:
        raise error

    with pytest.raises(type(error)) as caught:
        checked(ends)
    assert caught.value is error


def test_a_method_with_other_arguments_is_told_with_its_file() -> None:
    class Short:
        def unrevised(self, prompts: Any) -> Any:
            return prompts

    with pytest.raises(ConfigError, match=rf"fails at {__file__}: TypeError: .* positional argument"):
        checked_text(Short().unrevised, PROMPTS, 0, name="m:Short", vocab_size=10, longest=3)  # type: ignore[arg-type]


PLUGIN = """
import torch
from mgsr.rounds.writer import UnrevisedWriter


class Far(UnrevisedWriter):
    def unrevised(self, prompts, round_):
        return [[self.vocab_size] for _ in prompts], [{} for _ in prompts], 1


class Fails(UnrevisedWriter):
    @torch.no_grad()
    def unrevised(self, prompts, round_):
        return torch.zeros(3) @ torch.zeros(4)
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Far", "the id 300; the ids that may be written are 0 to 299"),
        ("Fails", "fails at {here}/my_writers.py:14: RuntimeError: "),
    ],
)
def test_a_run_ends_in_one_line(
    tiny_file: Path,
    shared_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    told: str,
) -> None:
    (tmp_path / "my_writers.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_writers", raising=False)
    words = [f"run_root={shared_root}", f"experiment=own_{name}", f"scrg.text=my_writers:{name}"]
    assert main(["train", str(tiny_file), *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"mgsr: error: command line: `scrg.text`: my_writers:{name}.unrevised "), last
    assert told.format(here=tmp_path) in last
