"""The model hub, asked once whether it is there at all.

Its clients try five times per file before they give up: most of a minute for a name with a typing error.
"""

from __future__ import annotations

from functools import cache

from huggingface_hub import constants, get_session

SECONDS = 5
"""How long the hub has to answer."""


def is_reachable() -> bool:
    """Whether the hub answers; where it doesn't, only its cache on this machine is read."""
    return not constants.is_offline_mode() and _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    try:
        return get_session().head(endpoint, timeout=SECONDS).status_code < 500
    except Exception:  # whatever a client of the network can raise
        return False
