"""Small files that a user or a disk has spoiled: read as they are, or refused in one line, and never overwritten.

`make fuzz` gives every reader 10,000 of them, `make test-all` 120, `make test` 20.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mgsr.cli.console import evaluation_table, study_table
from mgsr.data.annotate import PhraseCache
from mgsr.data.chunkers import build_chunker
from mgsr.data.collate import TeacherTop, TrainingSequence
from mgsr.evaluation.model_card import model_card
from mgsr.rounds.store import (
    AFTER,
    SHARD_NAME,
    RoundEntry,
    finish_round,
    is_finished,
    read_after,
    read_manifest,
    read_round,
    write_shard,
)
from mgsr.runtime.errors import UserError
from mgsr.runtime.files import SUFFIX
from mgsr.runtime.locks import OWNER, locked
from mgsr.scrg import RevisedSequence
from mgsr.study import pool
from mgsr.study.report import content as reported
from mgsr.study.report.write import filled
from mgsr.study.summary import summarise
from mgsr.study.view import look
from mgsr.training.run_folder import SHAPES, open_run_folder, read_run_file
from mgsr.training.teacher_cache import INDEX, teacher_tops, text_hash
from tests.conftest import Make
from tests.reliability.test_fuzz import fuzz, plain
from tests.study.pooled import fill, result_of, study_in

TEST = {
    "rouge_l": 12.5,
    "sampled": {"rouge_l": 11.5, "exact_match": 0.0, "rouge_l_std": None},
    "examples": 4,
    "exact_match": 0.0,
    "distinct_2": 0.5,
    "mean_words": 3.0,
}
FILES: dict[str, dict[str, Any]] = {
    "metrics.json": {"steps": 12, "seed": 0, "result": {"test": TEST, "other": {**TEST, "accuracy": 0.5}}},
    "environment.json": {"numerics": 1, "threads": 1, "commit": "0123", "cpu": None, "torch": "2.13"},
    "data.json": {"train": "aa", "dev": "bb", "test": "cc"},
    "teacher.json": {"cache": "teacher-1", "source": "init", "revision": "", "content": "ff"},
    "base.json": {"cache": None, "source": "init", "revision": "", "content": "ff"},
    "start.json": {"teacher": None, "student": "ff"},
}
odd = plain | st.sampled_from([10**400, 1e300, -1, float("nan"), "../../x", "\ud800", [[]] * 3, {"": {}}])


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree of mappings and lists, the whole of it first."""
    yield at
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in inner:
        yield from places(value, (*at, name))


def with_value(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy in which one place holds another value; the string `drop` removes it."""
    if not at:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(at) == 1 and value == "drop" and isinstance(copy, dict):
        del copy[at[0]]
    else:
        copy[at[0]] = with_value(tree[at[0]], at[1:], value)
    return copy


def spoiled(tree: Any) -> st.SearchStrategy[bytes]:
    """The file with another value at a place, with more fields, cut short, twice over, or as anything at all."""
    whole = json.dumps(tree).encode()
    fields = st.dictionaries(st.text(max_size=5), plain, max_size=3)
    changed = st.tuples(st.sampled_from(list(places(tree))), odd | st.just("drop"))
    return st.one_of(
        changed.map(lambda change: json.dumps(with_value(tree, *change)).encode()),
        fields.map(lambda more: json.dumps({**more, **tree}).encode()),
        st.integers(0, len(whole)).map(lambda end: whole[:end]),
        st.just(whole + whole),
        st.binary(max_size=40),
        st.sampled_from([b"[" * 100_000, b"9" * 5_000, b"{}", b"[]", b"null", b"\xef\xbb\xbf{}"]),
    )


def refused_or_answered(path: Path, content: bytes, read: Callable[[], Any]) -> None:
    """One line that names a file below the folder, or an answer; the file stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        read()
    except UserError as error:
        assert "\n" not in str(error) and str(path.parent) in str(error), error
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", sorted(FILES))
def test_fuzz_files_of_a_run(make_config: Make, tmp_path: Path, name: str) -> None:
    """Also those that a resumed run would compare itself with, and those that a model card shows."""
    config, data = make_config(), {"train": "aa", "dev": "bb", "test": "cc"}
    open_run_folder(tmp_path, config, resume=False, data=data)
    (tmp_path / "scrg").mkdir()
    for other, content in FILES.items():
        if other != "metrics.json":
            (tmp_path / other).write_text(json.dumps(content))

    def read() -> None:
        fields = dict.fromkeys(data, str) if name == "data.json" else None
        found = read_run_file(tmp_path, name, fields=fields)
        if name == "metrics.json":
            assert "other" not in found["result"] or "| other |" in model_card(config, found)
        open_run_folder(tmp_path, config, resume=True, data=data)

    @fuzz
    @given(spoiled(FILES[name]))
    def each(content: bytes) -> None:
        refused_or_answered(tmp_path / name, content, read)

    assert set(FILES) == set(SHAPES)
    each()


def a_round(folder: Path) -> Path:
    revised = [RevisedSequence(i, (2, 3), (4, 1), (4, 1), (), "no_disagreement", 0, 2) for i in range(2)]
    path = folder / SHARD_NAME.format(0, 0)
    write_shard(path, "k", [RoundEntry(one, (-1, -1), "a", "b") for one in revised], {"tokens_scoring": 5.0})
    finish_round(folder, "k", [path.name])
    return path


def test_fuzz_manifests_and_records_of_shards(tmp_path: Path) -> None:
    shard = a_round(tmp_path)
    manifest, written = tmp_path / "manifest.json", read_manifest(tmp_path)
    whole = read_round(tmp_path, "k")
    kept = manifest.read_bytes()

    def read() -> None:
        found = read_round(tmp_path, "k")
        assert found is None or found == whole or json.loads(manifest.read_bytes()) != written

    @fuzz
    @given(spoiled(written), st.booleans())
    def manifests(content: bytes, forged: bool) -> None:
        # with the checksum of what was written, or with its own
        digest = hashlib.sha256(content if forged else kept).hexdigest()
        manifest.with_name(manifest.name + SUFFIX).write_text(f"{digest}  {manifest.name}\n")
        refused_or_answered(manifest, content, read)

    @fuzz
    @given(spoiled(json.loads(shard.with_suffix(".json").read_text())))
    def records(content: bytes) -> None:
        refused_or_answered(
            shard.with_suffix(".json"),
            content,
            lambda: finish_round(tmp_path, "k", [shard.name]) if is_finished(shard, "k") else None,
        )

    @fuzz
    @given(spoiled({"example_id": 1, "teacher_log_likelihood_after": -0.5}))
    @example(b'{"example_id": 1e999, "teacher_log_likelihood_after": 0}')
    def likelihoods(content: bytes) -> None:
        refused_or_answered(tmp_path / AFTER, content, lambda: read_after(tmp_path))

    likelihoods()
    manifests()
    manifest.write_bytes(kept)
    records()


def test_fuzz_recorded_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that is taken can be summarised and reported."""
    # plots take most of a report's time
    monkeypatch.setattr(reported, "_plots", lambda *_: {})
    study = study_in(tmp_path)
    fill(study, {"full": 0.0, "removed": -1.0, "other": 1.0}, seeds=[0, 1])
    result = result_of(study.config("removed", 1), 51.0, start="student-1")
    result["metrics"].update(scrg={"disagreement_rate": 0.5, "corrected_fraction": 0.5})
    path = pool.path_in(study.pool(), result)

    def read() -> None:
        pool.read(path)
        view = look(study, study.pool())
        study_table(summarise(view))
        filled("report.md.j2", reported.content_of(view, study.home, study.pool()))

    @fuzz
    @given(spoiled(result))
    @example(json.dumps(result).encode())
    def each(content: bytes) -> None:
        refused_or_answered(path, content, read)

    each()


def test_fuzz_caches(tmp_path: Path) -> None:
    rows = [TrainingSequence(i, (1, 2), (3, 4 + i), (-1, -1), True) for i in range(2)]
    cache = tmp_path / "top"

    def never(*_: Any) -> Iterator[Any]:
        raise UserError(f"{cache}: asked the teacher anew")

    from mgsr.training import teacher_cache

    index = {"k": 2, "tokens": 4, "kl_sum": 0.1, "kl_max": 0.1, "texts": {}}
    index["texts"] = {text_hash(row): [2 * i, 2] for i, row in enumerate(rows)}
    tensors = TeacherTop(torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int32), torch.zeros(4))._asdict()
    teacher_cache._write_folder(cache, index, tensors)

    @fuzz
    @given(spoiled(json.loads((cache / INDEX).read_text())))
    def tops(content: bytes) -> None:
        refused_or_answered(cache / INDEX, content, lambda: teacher_tops(cache, rows, 2, never))

    chunker = build_chunker("light")
    phrases, path = {chunker.fingerprint: {"ab": [[0, 2, "NP"]]}}, tmp_path / "p/phrases.json"

    @fuzz
    @given(spoiled(phrases))
    @example(b'{"\\n\\u001b[2J": null}')
    def texts(content: bytes) -> None:
        refused_or_answered(path, content, lambda: PhraseCache(chunker, path))

    tops()
    texts()


def test_fuzz_the_owner_of_a_lock(tmp_path: Path) -> None:
    @fuzz
    @given(spoiled({"pid": 3, "host": "here"}))
    def each(content: bytes) -> None:
        def read() -> None:
            with locked(tmp_path):
                pass

        refused_or_answered(tmp_path / OWNER, content, read)

    with locked(tmp_path):
        each()


def test_figures_that_are_not_there_are_shown_as_such() -> None:
    table = evaluation_table({"test": {name: value for name, value in TEST.items() if name != "sampled"}})
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["test", "12.50", "n/a", "0.0 %", "n/a", "0.500", "3.0", "4"]
