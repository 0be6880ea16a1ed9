"""The teacher and the SFT student that a run began with: runs of one seed can be compared if these are the same.

A result has the fingerprints of both. Where one of two results was recorded before there were any, the models'
test figures are compared instead. Machines of one name can still make different models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgsr.runtime.environment import numerics_of
from mgsr.runtime.errors import UserError
from mgsr.study.results import result_path, results_in


@dataclass(frozen=True)
class StartingModel:
    """A model that a run began with, as far as its result says.

    Attributes:
        content: fingerprint of its weights; None where none was recorded.
        rouge_l: by test set.
    """

    content: str | None
    rouge_l: Mapping[str, float]

    def differs(self, other: StartingModel) -> bool:
        if self.content and other.content:
            return self.content != other.content
        return bool(self.rouge_l and other.rouge_l and self.rouge_l != other.rouge_l)


def starting_models(result: Mapping[str, Any]) -> dict[str, StartingModel]:
    """`teacher` and `SFT student` of a run; empty for arms that set these models themselves."""
    if any(name.startswith(("teacher.", "student.", "data.")) for name in result["overrides"]):
        return {}
    metrics, start = result["metrics"], result.get("start") or {}

    def model(figures: str, content: str) -> StartingModel:
        tests = metrics.get(figures) or {}
        rouge_l = {name: test["rouge_l"] for name, test in tests.items() if "rouge_l" in test}
        return StartingModel(start.get(content), rouge_l)

    return {"teacher": model("teacher", "teacher"), "SFT student": model("sft_start", "student")}


def other_starts(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, StartingModel, StartingModel]]:
    """The models in which the starts of two results are known to differ: what it is, in `a`, in `b`."""
    there = starting_models(b)
    for name, model in starting_models(a).items():
        if name in there and model.differs(there[name]):
            yield name, model, there[name]


def refuse_other_start(folder: Path, result: Mapping[str, Any]) -> None:
    """Runs of one seed are compared with each other: they must have begun with the same models.

    Args:
        folder: of a study's result files.
        result: that is to be recorded there.

    Raises:
        UserError: another arm's run of this seed began with another teacher or SFT student.
    """
    for other in results_in(folder, result["seed"]):
        if numerics_of(other["environment"]) != numerics_of(result["environment"]):
            continue
        for name, mine, theirs in other_starts(result, other):
            raise UserError(
                f"{result_path(folder, result['arm'], result['seed'])}: not recorded, as {other['arm']}, seed "
                f"{result['seed']}, began with another {name} ({_told(theirs, mine)}): another machine made it, "
                "and differences would not be those of the arms alone; take training seeds without results"
            )


def _told(theirs: StartingModel, mine: StartingModel) -> str:
    for test, figure in theirs.rouge_l.items():
        if mine.rouge_l.get(test) != figure:
            return f"ROUGE-L {figure:.2f} on {test}, here {mine.rouge_l.get(test, float('nan')):.2f}"
    return f"fingerprint {str(theirs.content)[:12]}, here {str(mine.content)[:12]}"
