"""Functions and classes of a user's own, by their import path."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from mgsr.runtime.errors import ConfigError

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""`package.module:name`."""


def imported(path: str, key: str) -> Any:
    """What stands at `package.module:name`; modules of the working folder are found as `python -m` finds them.

    Args:
        key: of the configuration, for messages.

    Raises:
        ConfigError: there is no such module or name in it, or the module cannot be imported.

    >>> imported("math:tau", "any.key")
    6.283185307179586
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"`{key}`: {module_name} needs {error.name}, which is not installed", key) from None
        raise ConfigError(
            f"`{key}`: no module {module_name} here; write package.module:name, of a module in this folder or "
            "installed",
            key,
        ) from None
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"`{key}`: {module_name} cannot be imported: {type(error).__name__}: {error}", key
        ) from error
    if not hasattr(module, name):
        raise ConfigError(f"`{key}`: {module_name} has no {name}", key)
    return getattr(module, name)
