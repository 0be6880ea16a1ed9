"""Messages for users are one line, whatever the names are that they quote."""

from __future__ import annotations

import pytest

from mgsr.runtime.errors import ConfigError, DataError, RowsError, RunInterruptedError, UserError


@pytest.mark.parametrize(
    "error",
    [UserError, ConfigError, DataError, RunInterruptedError, lambda message: RowsError([message])],
)
def test_a_message_holds_no_control_character(error) -> None:
    said = str(error("`a\nb\x1b[2J\u2028c\x85` of C:\\new is no key"))
    assert said == r"`a\nb\x1b[2J\u2028c\x85` of C:\new is no key"


def test_a_quoted_message_stays_as_it_is() -> None:
    inner = UserError("a\tb")
    assert str(UserError(f"rank 0: {inner}")) == r"rank 0: a\tb"
