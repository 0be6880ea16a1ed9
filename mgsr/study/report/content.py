"""What a report says, before it is laid out: the same for README.md and the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgsr.config.layers import read_words
from mgsr.config.shipped import as_typed, shipped
from mgsr.runtime.wording import plural
from mgsr.study.analysis import Comparison
from mgsr.study.report import plots
from mgsr.study.report.tables import FLOOR, Table, all_tables, main_table, never_right, rows_of
from mgsr.study.report.why import corrections, why
from mgsr.study.report.words import interval, listed, sentence, shown, signed
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
    compared = {name: view.compared(rouge_l(name)) for name in view.test_sets}
    elsewhere = _elsewhere(study, place)
    subjects = [arm for arm in study.asked if arm in view.arms]
    answers = [
        sentence(f"`{arm}`" + _on(name), found.get(arm), study.baseline)
        for arm in subjects
        for name, found in compared.items()
    ]
    answers += [
        sentence(f"{label[0].upper()}{label[1:]}{_on(name)}: `{arm}`", found, other.study.baseline)
        for label, other, arm in elsewhere
        for name in other.test_sets
        if (found := other.compared(rouge_l(name)).get(arm))
    ]
    answers += [sentence(name, one) for name, one in view.contrasted(rouge_l()).items()]
    others = {arm: one for arm, one in compared["test"].items() if arm not in subjects}
    if others or not answers:
        answers.append(_overview(others, study.baseline))
    answers += [said for name, found in compared.items() if (said := _turned(view, name, found))]
    answers = [*_below_floors(view), *answers]
    return Content(
        f"Study: {study.name}",
        study.question,
        answers,
        _plots(view, compared, elsewhere),
        [main_table(view, name, found) for name, found in compared.items()],
        why(view, subjects),
        corrections(view),
        _scope(view, folder, [label for label, _, _ in elsewhere]),
        _command(view, folder),
        all_tables(view),
    )


def _on(test_set: str) -> str:
    return "" if test_set == "test" else f" on {test_set}"


def _below_floors(view: View) -> list[str]:
    """Who scores less, greedily, than what needs no model."""
    said = []
    for name in view.test_sets:
        scores = {label: view.mean(arm, f"{place}/rouge_l") for label, (arm, place) in rows_of(view, name).items()}
        floors = {label: score for label, score in scores.items() if label.startswith(FLOOR)}
        for floor, score in floors.items():
            below = [
                f"`{label}`" if label in view.arms else label
                for label, own in scores.items()
                if label not in floors and own is not None and score is not None and own < score
            ]
            if below:
                words = floor.removeprefix(FLOOR)
                said.append(f"Below the floor of {words}{_on(name)} ({shown(score)}): {listed(below)}.")
    return said


MANY = 5
"""Arms beside the baseline; more are told by name."""


def _overview(compared: Mapping[str, Comparison], baseline: str) -> str:
    """Which arms are better and which are worse, in one sentence each."""
    said, few = [], len(compared) <= MANY
    verdicts = {
        "better": "Better than",
        "worse": "Worse than",
        "equivalent": "Equivalent to",
        "open": "Open against",
        "": "No spread, and so no verdict against",
    }
    for verdict, words in verdicts.items():
        # of many arms the figures stand in the table alone
        arms = [
            f"`{arm}`" + (f" ({', '.join(filter(None, (signed(one.effect), interval(one))))})" if few else "")
            for arm, one in compared.items()
            if one.verdict == verdict
        ]
        if arms:
            said.append(f"{words} `{baseline}`: {listed(arms)}.")
    return " ".join(said) or f"Nothing can be compared with `{baseline}` yet."


def _turned(view: View, test_set: str, compared: Mapping[str, Comparison]) -> str:
    """Arms that sampled answers tell from the baseline otherwise than greedy ones do."""
    sampled = view.compared(rouge_l(test_set, sampled=True))
    both = {arm: (one.verdict, sampled[arm].verdict) for arm, one in compared.items() if arm in sampled}
    told = ("better", "worse")
    base, whole = f"`{view.study.baseline}`", "by the whole interval"
    turned = {
        f"above {base}, {whole}": [arm for arm, (was, now) in both.items() if now == "better" != was],
        f"below {base}, {whole}": [arm for arm, (was, now) in both.items() if now == "worse" != was],
        f"not told from {base}": [arm for arm, (was, now) in both.items() if was in told and now not in told],
    }
    said = [f"{listed(f'`{arm}`' for arm in arms)} {where}" for where, arms in turned.items() if arms]
    return f"Sampled at temperature {_temperature(view):g}{_on(test_set)}: {'; '.join(said)}." if said else ""


def _elsewhere(study: Study, place: Path) -> list[tuple[str, View, str]]:
    """The question in other settings: label, view, arm."""
    found = []
    for label, (name, arm) in study.settings.items():
        path = study.path.parent.parent / name / "study.yaml"
        view = look(load_study(path if path.exists() else name), place)
        if arm in view.arms and not {arm, view.study.baseline} & set(view.absent):
            found.append((label, view, arm))
    return found


def _plots(
    view: View, compared: Mapping[str, Mapping[str, Comparison]], elsewhere: Sequence[tuple[str, View, str]]
) -> dict[str, tuple[str, str]]:
    study = view.study
    judged = [arm for arm in view.arms if arm not in view.absent and arm != study.baseline]
    first = [arm for arm in judged if arm in study.asked]
    order = [*first, *(arm for arm in judged if arm not in first)]
    rows = [_row(arm, view, arm, "test") for arm in order]
    rows[len(first) : len(first)] = [
        _row(label + _on(name), other, arm, name) for label, other, arm in elsewhere for name in other.test_sets
    ]
    further = [name for name in view.test_sets if name != "test"]
    rows += [_row(arm + _on(name), view, arm, name) for name in further for arm in order]
    caption = f"Difference to {study.baseline} with 95 % intervals; a dot is a seed, and the margin is shaded."
    if contrasts := _contrasts(view):
        rows = [*contrasts, *rows]
        caption += f" First, {'; '.join(row.label for row in contrasts)}."
    if any(one is not None and one.alone for row in rows for one, _ in row.panels):
        caption += " What is analysed alone goes on beyond the axis where an arrow stands."
    titles = ("greedy", f"temperature {_temperature(view):g}")
    drawn = {"forest.svg": (caption, plots.forest(rows, titles, study.margin))}
    for label, name in plots.CURVES.items():
        file = name.replace("/", "-") + ".svg"
        drawn[file] = (f"{label} while training, mean over seeds", plots.curve(view, name, label))
    return {name: (words, svg) for name, (words, svg) in drawn.items() if svg is not None}


def _temperature(view: View) -> float:
    sampled = view.runs[0].result["metrics"]["result"]["test"].get("sampled") or {}
    return float(sampled.get("temperature", 1.0))


def _row(label: str, view: View, arm: str, test_set: str) -> plots.Row:
    sides = [arm], [view.study.baseline]
    names = rouge_l(test_set), rouge_l(test_set, sampled=True)
    each = [(view.compared(name).get(arm), plots.differences(view, sides, name)) for name in names]
    return plots.Row(label, each)


def _contrasts(view: View) -> list[plots.Row]:
    """A row per contrast."""
    names = rouge_l(), rouge_l(sampled=True)
    found = {name: view.contrasted(name) for name in names}
    return [
        plots.Row(label, [(found[name].get(label), plots.differences(view, sides, name)) for name in names])
        for label, sides in view.study.contrasts.items()
        if label in found[names[0]]
    ]


def _sampling(view: View) -> str:
    sampled = view.runs[0].result["metrics"]["result"]["test"].get("sampled") or {}
    seeds = len(sampled.get("rouge_l_by_seed") or {})
    return f"Sampled at temperature {_temperature(view):g}, {plural(seeds, 'sampling seed')}. " if seeds else ""


def _scope(view: View, folder: Path, elsewhere: Sequence[str]) -> list[str]:
    """What was run, on what, and what is missing."""
    study = view.study
    environments = [run.result["environment"] for run in view.runs]
    cpus = dict.fromkeys(_processor(environment) for environment in environments)
    torches = dict.fromkeys(str(e.get("torch")) for e in environments)
    base = study.typed.get("base") or as_typed(study.base, "config", folder)
    typed = _typed_besides(study)
    told = f", with {listed(f'`{word}`' for word in typed)}" if typed else ""
    starts = [{run.result["start"]["student"] for run in view.of(arm)} for arm in view.arms]
    changed = "the student's start, the order of rows" if max(map(len, starts)) > 1 else "the order of rows"
    lines = [
        f"Base `{base}`{told}, {plural(len(view.runs), 'run')} of {plural(len(view.seeds), 'training seed')}. "
        f"There is one teacher and one set of rows; a seed changes {changed} and what is drawn.",
        f"Margin {study.margin:g} ROUGE-L. {_sampling(view)}Processors: {listed(cpus)}. torch {listed(torches)}.",
    ]
    if len(view.arms) > 1 and not any(key.startswith("train.lr") for arm in view.arms for key in study.arms[arm]):
        whose = "typed" if any("train.lr" in said for said in read_words(typed)) else "base's"
        lines.append(f"All arms have the {whose} learning rate.")
    for name in view.test_sets:
        if kinds := never_right(view, name):
            lines.append(f"Kinds of task{_on(name)} of which no arm has more than 1 % right: {listed(kinds)}.")
    absent = [label for label in study.settings if label not in elsewhere]
    if absent:
        lines.append(f"Not complete yet in other settings: {'; '.join(absent)}.")
    if view.missing:
        lines.append(f"Without a verdict, as declared seeds are not recorded yet: {listed(view.missing)}.")
    if view.undeclared:
        lines.append("Seeds that this study does not declare are recorded too, and in no figure.")
    if view.other_data:
        lines.append(f"Left out: {plural(view.other_data, 'run')} with other rows, or another teacher.")
    return lines


def _typed_besides(study: Study) -> list[str]:
    """Words of the command line that have a part in the figures, and that the base is not named with."""
    if not study.typed:
        return []
    named = shlex.split(study.typed.get("base", ""))
    # of a key that was typed twice the later word counts
    words = {word.partition("=")[0]: word for word in study.arguments}
    return [w for key, w in words.items() if key not in ("run_root", "trainer.threads") and w not in named]


def _processor(environment: Mapping[str, Any]) -> str:
    """Its name and, where the system says it, its model: some name several models alike."""
    name, model = environment.get("cpu") or environment.get("machine") or "unknown", environment.get("cpu_model")
    return f"{name} ({model})" if model else str(name)


def _command(view: View, folder: Path) -> str:
    """What records these runs again."""
    study, typed = view.study, view.study.typed
    name = typed.get("study") or as_typed(study.path, "study", folder)
    options = [word for key in ("config", "question") if key in typed for word in (f"--{key}", typed[key])]
    head = ["mgsr", "ablate", name, *options]
    named = ["--arms", *view.arms] if typed or len(view.arms) < len(study.arms) else []
    seeds = ["--seeds", *map(str, view.seeds)]
    threads = {run.result["environment"].get("threads") for run in view.runs}
    same = [f"trainer.threads={threads.pop()}"] if len(threads) == 1 and None not in threads else []
    more = study.arguments if typed else [*same, *study.arguments]
    line = shlex.join([*head, *named, *seeds, *([] if typed else ["--record"]), *more])
    where = [] if typed or name in shipped("study") else ["# in this folder"]
    return "\n".join([*where, line, shlex.join(["mgsr", "report", typed.get("folder") or name])])
