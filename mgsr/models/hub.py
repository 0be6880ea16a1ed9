"""Models of the hub: whether they lie in its cache, and what its exceptions mean in one line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mgsr.runtime.devices import is_out_of_memory
from mgsr.runtime.errors import UserError, did_you_mean
from mgsr.runtime.network import SECONDS

_MOST = 300


def are_cached(hub_id: str, revision: str | None) -> bool:
    """Whether the weights of a hub model, in one file or several, lie in the cache."""
    names = "model.safetensors", "model.safetensors.index.json"
    return any(isinstance(try_to_load_from_cache(hub_id, name, revision=revision), str) for name in names)


def near_names(source: str) -> str:
    """A hint at the folder beside which `source` would lie, where one there has nearly its name."""
    path = Path(source).expanduser()
    try:
        beside = [entry for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix == ".gguf"]
        names = [entry.name for entry in beside if not entry.name.endswith(".partial")]
    except (OSError, ValueError):
        return ""
    known = names if path.parent == Path() else [str(path.parent / name) for name in names]
    return did_you_mean(source, [name for name in known if Path(name) != path])


@contextmanager
def one_line_errors(what: str, remedy: str = "", *, done: str = "loaded") -> Iterator[None]:
    """Turn whatever building or loading a model raises into one line; all of it happens inside of this.

    Args:
        what: the model's source, or the file that is read.
        remedy: what to do where it lies on this machine and cannot be used.
        done: what happens to it, `loaded` or `made`.

    Raises:
        UserError: in place of any other exception.
    """
    try:
        with warnings.catch_warnings():
            # what libraries warn of is refused here, or harmless
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except (
        Exception
    ) as error:  # transformers, tokenizers and safetensors raise of every kind, Exception itself too
        raise UserError(f"model `{what}` cannot be {done}: {_reason(error, what, remedy)}") from error


def _reason(error: BaseException, what: str, remedy: str) -> str:
    """The cause in one line: the hub's own exceptions say more than what transformers wraps around them."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    unreachable = f"{_UNREACHABLE}{near_names(what)}"
    hub_reasons: list[tuple[type[BaseException] | tuple[type[BaseException], ...], str]] = [
        ((LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError), unreachable),
        (GatedRepoError, "it is gated on the hub: accept its terms there, then `hf auth login`"),
        (
            RepositoryNotFoundError,
            f"no folder and no public hub model has this name (private? `hf auth login`){near_names(what)}",
        ),
        (RevisionNotFoundError, "the hub has no such revision of it"),
        (EntryNotFoundError, "the hub repository lacks a config or safetensors weights (pickle is not read)"),
    ]
    for kinds, reason in hub_reasons:
        if any(isinstance(link, kinds) for link in chain):
            return reason
    if "connect to 'http" in str(error):
        return unreachable
    if is_out_of_memory(error) or "Storage size calculation overflowed" in str(error):
        return "it does not fit into this machine's memory: choose a smaller one"
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    # the first line of a validation error only says which field the second one is about
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    bare = isinstance(error, (LookupError, ArithmeticError, AttributeError, TypeError, AssertionError)) or not said
    if "Unrecognized configuration class" in said:
        return "it is no causal language model: choose one that writes from left to right"
    if "attn_implementation" in said:
        return f"{said.partition('. ')[0]}: set attn_implementation to eager or sdpa, or leave it out"
    if len(said) > _MOST:
        said = said.partition(". ")[0]
    told = (f"{type(error).__name__} {said}" if bare else said)[:_MOST].rstrip(" .")
    return f"{told}; {remedy}" if remedy else told


_UNREACHABLE = (
    f"the hub cannot be reached (no answer within {SECONDS} s), and neither a folder nor the hub cache holds it"
)
