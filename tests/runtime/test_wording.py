"""Times, counts and foreign text as people read them."""

from __future__ import annotations

import pytest

from mgsr.runtime.wording import duration, literal, plural


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (45, "45 s"),
        (59.4, "59 s"),
        # rounded up into the next unit, never 60 of one
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3599.7, "1 h"),
        (3629, "1 h"),
        (37080, "10 h 18 min"),
        (7199, "2 h"),
        (3600 * 1234, "1,234 h"),
    ],
)
def test_a_time_has_at_most_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_one_of_a_thing_is_singular() -> None:
    assert plural(1, "row") == "1 row" and plural(2, "row") == "2 rows" and plural(0, "row") == "0 rows"
    assert plural(1, "batch", "batches") == "1 batch" and plural(12345, "batch", "batches") == "12,345 batches"


@pytest.mark.parametrize("steering", ["\x1b[31m", "\r", "\x07", "\x9b31m", "\u202e", "\u2028", "\ud800"])
def test_foreign_text_cannot_steer_a_terminal(steering: str) -> None:
    shown = literal(f"a{steering}b\n", keep="\n")
    assert steering[0] not in shown and shown.startswith("a\\") and shown.endswith("b\n")


def test_every_script_is_shown_as_it_is() -> None:
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680"
    text = f"na\u00efve \u6f22\u5b57 {joined} a\u00a0b"
    assert literal(text) == text
