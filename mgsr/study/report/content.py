"""What a report says, before it is laid out: the same for README.md and the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgsr.config.shipped import as_typed, shipped
from mgsr.runtime.errors import UserError
from mgsr.study.analysis import Comparison, contrast
from mgsr.study.report import plots
from mgsr.study.report.tables import Table, all_tables, main_table
from mgsr.study.report.words import counted, listed, sentence
from mgsr.study.study import Study, load_study
from mgsr.study.view import View, look, rouge_l


@dataclass(frozen=True)
class Content:
    """A report.

    Attributes:
        answers: the sentences that it begins with.
        plots: file name -> (caption, SVG); the forest first.
        main: the tables of the first screen; folded: all others.
        why: sentences; corrections: texts before and after, as (prompt, before, after).
        scope: what the answers hold for.
    """

    title: str
    question: str
    answers: Sequence[str]
    plots: Mapping[str, tuple[str, str]]
    main: Sequence[Table]
    why: Sequence[str]
    corrections: Sequence[tuple[str, str, str]]
    scope: Sequence[str]
    command: str
    folded: Sequence[Table]


def content_of(view: View, folder: Path, place: Path) -> Content:
    """Args: folder: where the report will lie; place: the pool."""
    study = view.study
    compared = {name: view.compared(rouge_l(name), study.margin) for name in view.test_sets}
    elsewhere = _elsewhere(study, place)
    subjects = [arm for arm in study.asked if arm in view.arms]
    answers = [
        sentence(
            f"`{arm}`" + ("" if name == "test" else f" on {name}"),
            found.get(arm),
            study.baseline,
            _seeds(view, arm),
        )
        for arm in subjects
        for name, found in compared.items()
    ]
    answers += _factors(view)
    if not answers:
        answers = [_overview(compared["test"], study.baseline)]
    return Content(
        f"Study: {study.name}",
        study.question,
        answers,
        _plots(view, compared, elsewhere),
        [main_table(view, name, found) for name, found in compared.items()],
        _why(view, subjects),
        _corrections(view),
        _scope(view, folder),
        _command(view, folder),
        all_tables(view),
    )


def _seeds(view: View, arm: str) -> int:
    return len({run.seed for run in view.of(arm)} & {run.seed for run in view.of(view.study.baseline)})


def _factors(view: View) -> list[str]:
    """What the contrasts say."""
    study = view.study
    frame = view.frame(rouge_l())
    if not study.contrasts or study.baseline not in set(frame["arm"]):
        return []
    found = contrast(frame, study.baseline, study.contrasts, study.margin)
    return [sentence(name, one, "without it", len(view.seeds)) for name, one in found.items()]


def _overview(compared: Mapping[str, Comparison], baseline: str) -> str:
    """Which arms are better and which are worse, in one sentence each."""
    said = []
    for verdict, words in (("better", "better than"), ("worse", "worse than"), ("equivalent", "equivalent to")):
        arms = [f"`{arm}`" for arm, one in compared.items() if one.verdict == verdict]
        if arms:
            said.append(f"{listed(arms)} {'is' if len(arms) == 1 else 'are'} {words} `{baseline}`.")
    left = sum(one.verdict in ("open", "") for one in compared.values())
    return " ".join(
        [*said, *([f"{counted(left, 'comparison')} {'is' if left == 1 else 'are'} open."] if left else [])]
    )


def _elsewhere(study: Study, place: Path) -> list[tuple[str, View, str]]:
    """The question in other settings: label, view, arm."""
    found = []
    for label, (name, arm) in study.settings.items():
        path = study.path.parent.parent / name / "study.yaml"
        try:
            view = look(load_study(path if path.exists() else name), [place])
        except UserError:
            # not run yet: a row that is missing says so
            continue
        if arm in view.arms:
            found.append((label, view, arm))
    return found


def _plots(
    view: View, compared: Mapping[str, Mapping[str, Comparison]], elsewhere: Sequence[tuple[str, View, str]]
) -> dict[str, tuple[str, str]]:
    study, found = view.study, {}
    readers = (rouge_l(), rouge_l(sampled=True))
    first = [arm for arm in study.asked if arm in view.arms]
    order = [*first, *(arm for arm in view.arms if arm not in first and arm != study.baseline)]
    rows = [_row(arm, view, arm, readers) for arm in order]
    rows[len(first) : len(first)] = [_row(label, other, arm, readers) for label, other, arm in elsewhere]
    caption = f"Difference to {study.baseline}: simultaneous 95 % intervals, a dot per seed, the margin shaded."
    drawn = {"forest.svg": (caption, plots.forest(rows, ("greedy", "temperature 1"), study.margin))}
    for label, name in plots.CURVES.items():
        file = name.replace("/", "-") + ".svg"
        drawn[file] = (f"{label} while training, mean over seeds", plots.curve(view, name, label))
    for name, (words, svg) in drawn.items():
        if svg is not None:
            found[name] = (words, svg)
    return found


def _row(label: str, view: View, arm: str, readers: Sequence[Any]) -> plots.Row:
    margin = view.study.margin
    each = [(view.compared(read, margin).get(arm), plots.differences(view, arm, read)) for read in readers]
    return plots.Row(label, each)


def _why(view: View, subjects: Sequence[str]) -> list[str]:
    """Three figures of the baseline beside those of the arms that answer the question."""
    from mgsr.study.report.tables import WHY
    from mgsr.study.report.words import shown

    lines = []
    for name, (read, digits) in WHY.items():
        arms = [view.study.baseline, *subjects]
        values = {arm: value for arm in arms if (value := view.mean(arm, read)) is not None}
        if view.study.baseline in values and (
            len(values) > 1 or name.startswith(("ROUGE-L that", "share of corr"))
        ):
            lines.append(f"{name}: " + ", ".join(f"{arm} {shown(value, digits)}" for arm, value in values.items()))
    return lines[:5]


def _corrections(view: View) -> list[tuple[str, str, str]]:
    """Two texts of the baseline before and after correction, as its first run recorded them."""
    for run in view.of(view.study.baseline):
        texts = run.result["metrics"].get("corrections", {}).get("examples") or []
        if texts:
            return [(text["prompt"], text["before"], text["after"]) for text in texts[:2]]
    return []


def _scope(view: View, folder: Path) -> list[str]:
    """What was run, on what, and what is missing."""
    study = view.study
    environments = [run.result["environment"] for run in view.runs]
    cpus = dict.fromkeys(str(e.get("cpu") or e.get("machine") or "unknown") for e in environments)
    torches = dict.fromkeys(str(e.get("torch")) for e in environments)
    base = study.typed.get("base") or as_typed(study.base, "config", folder)
    lines = [
        f"Base `{base}`, {counted(len(view.runs), 'run')} of {counted(len(view.seeds), 'training seed')}. "
        "There is one teacher and one set of rows; a seed changes the student's start, the order, sampling and "
        "dropout.",
        f"Margin {study.margin:g} ROUGE-L. Processors: {listed(cpus)}. torch {listed(torches)}.",
    ]
    if view.missing:
        lines.append("Declared and not recorded: " + "; ".join(view.missing) + ".")
    for arm, seeds in view.undeclared.items():
        lines.append(f"Recorded and not declared, in no figure: {arm}, seeds {', '.join(map(str, seeds))}.")
    if view.other_data:
        lines.append(f"{counted(view.other_data, 'run')} of other rows left out.")
    return lines


def _command(view: View, folder: Path) -> str:
    """What records these runs again."""
    study, typed = view.study, view.study.typed
    name = typed.get("study") or as_typed(study.path, "study", folder)
    head = ["mgsr", "ablate", name, *(["--config", typed["config"]] if "config" in typed else [])]
    named = ["--arms", *view.arms] if typed or len(view.arms) < len(study.arms) else []
    seeds = ["--seeds", *map(str, view.seeds)]
    line = shlex.join([*head, *named, *seeds, *([] if typed else ["--record"]), *study.arguments])
    where = [] if typed or name in shipped("study") else ["# in this folder"]
    return "\n".join([*where, line, shlex.join(["mgsr", "report", typed.get("folder") or name])])
