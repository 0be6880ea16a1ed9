"""Times, counts and foreign text as people read them."""

from __future__ import annotations

import unicodedata

# joiners make up letters of some scripts, and emoji
_JOINERS = "\u200c\u200d"
# controls, directions of writing, halves of characters, line and paragraph separators
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def duration(seconds: float) -> str:
    """Seconds for people, in the two largest units; nothing is said of a unit that is zero.

    >>> duration(45), duration(200), duration(37080), duration(7200)
    ('45 s', '3 min 20 s', '10 h 18 min', '2 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        large, small = divmod(whole, 60)
        units = "min", "s"
    else:
        large, small = divmod(round(seconds / 60), 60)
        units = "h", "min"
    return f"{large:,} {units[0]}" + (f" {small} {units[1]}" if small else "")


def plural(count: float, word: str, words: str = "") -> str:
    """A count with its word.

    Args:
        words: of several, where it is not `word` with an s.

    >>> plural(1, "row"), plural(0.5, "epoch"), plural(1200, "row"), plural(2, "batch", "batches")
    ('1 row', '0.5 epochs', '1,200 rows', '2 batches')
    """
    shown = f"{count:,}" if isinstance(count, int) else f"{count:.3g}"
    return f"{shown} {word if count == 1 else words or word + 's'}"


def literal(text: str, *, keep: str = "") -> str:
    """Text that cannot steer a terminal: control characters and changes of direction are written as escapes.

    Args:
        keep: characters that stay, such as a line break.

    >>> literal("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    kept = keep + _JOINERS
    return "".join(c if c in kept or unicodedata.category(c) not in _UNSEEN else ascii(c)[1:-1] for c in text)
