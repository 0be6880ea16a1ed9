"""What ends a command: its exit code, or one line for whatever went wrong."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence

from mgsr.cli.parsing import parse
from mgsr.cli.streams import output_is_broken, tell
from mgsr.runtime.errors import RunInterruptedError, UserError
from mgsr.runtime.files import refused

Command = Callable[[argparse.Namespace], int | None]

# what a rank says when the connection to another one has broken
_BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Connection refused")


def answer(commands: Mapping[str, Command], argv: Sequence[str] | None) -> int:
    """Run the command that the words ask for; returns its exit code, see `main`.

    Args:
        commands: by name.
        argv: what stands behind `mgsr`; None takes it from `sys.argv`.
    """
    debug = False
    try:
        arguments = parse(argv)
        debug = arguments.debug
        _prepare()
        with warnings.catch_warnings():
            # of libraries, about libraries: nothing that a user could do
            warnings.simplefilter("default" if debug else "ignore", FutureWarning)
            return commands[arguments.command](arguments) or 0
    except KeyboardInterrupt:
        tell("stopped")
        return 130
    except RunInterruptedError as error:
        if debug:
            raise
        # no error, and true of all ranks: the first one says it
        if _who() in ("", "rank 0: "):
            tell(str(error))
        return error.exit_code
    except UserError as error:
        if debug:
            raise
        tell(f"error: {_who()}{error}")
        return error.exit_code
    except OSError as error:
        if output_is_broken():
            return UserError.exit_code
        if debug:
            raise
        # a full disk, a folder that cannot be read: the system's own words name it
        place = error.filename or "a file or the connection to another machine"
        tell(f"error: {refused(place, error, 'used')}")
        return UserError.exit_code
    except (RuntimeError, MemoryError) as error:
        if debug:
            raise
        if _who() and any(word in str(error) for word in _BROKEN):
            # a rank that dies takes the connections of the others with it
            tell(f"error: {_who()}another rank is gone, and this one ends too")
            return 1
        # torch is here already: it has raised this, or was about to
        from mgsr.runtime.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        tell(f"error: {_who()}out of memory; take smaller models or batches (mgsr doctor says what fits)")
        return UserError.exit_code


def _prepare() -> None:
    """What has to be settled before numpy, torch, Lightning and transformers are imported."""
    from mgsr.runtime.launchers import forget_strangers
    from mgsr.runtime.processor import prefer_quick_sorts, rest_soon

    prefer_quick_sorts()
    rest_soon()
    # forked tokenizer threads would only warn
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    strange = forget_strangers()
    if strange:
        tell(f"{', '.join(strange)} in the environment: neither torchrun nor srun started this process; ignored")


def _who() -> str:
    """Which of several ranks speaks."""
    ranks = sys.modules.get("mgsr.runtime.ranks")
    return f"rank {ranks.rank()}: " if ranks is not None and ranks.several() else ""
