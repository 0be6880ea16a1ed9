"""Runs that several studies report: recorded once, with the same configuration, data and numerics version."""

from __future__ import annotations

from collections.abc import Mapping

from mgsr.runtime.environment import numerics_of
from mgsr.study.report.evidence import Evidence, Result
from mgsr.study.results import recorded

MARK = "†"


def shared_runs(evidence: Evidence) -> dict[str, dict[int, list[str]]]:
    """Arm -> seed -> where else the same run stands, as `study/arm`, by the hashes of the result files.

    The other studies are those beside this one.
    """
    root = evidence.study.home.parent

    def key(result: Result) -> tuple[object, ...]:
        hashes = result["hashes"]
        numerics = numerics_of(result["environment"])
        # of the same configuration another machine makes another run
        figure = result["metrics"]["result"]["test"]["rouge_l"]
        return str(hashes.get("config")), str(hashes.get("data")), numerics, figure

    places: dict[tuple[object, ...], list[str]] = {}
    for other in recorded(root):
        if other["study"] != evidence.study.name:
            places.setdefault(key(other), []).append(f"{other['study']}/{other['arm']}")
    found: dict[str, dict[int, list[str]]] = {}
    for arm, by_seed in evidence.results.items():
        for seed, result in by_seed.items():
            if key(result) in places:
                found.setdefault(arm, {})[seed] = sorted(places[key(result)])
    return found


def marked(arm: str, shared: Mapping[str, object]) -> str:
    """The arm's name in a table, with a mark where its runs stand in other studies too."""
    return f"{arm} {MARK}" if arm in shared else arm


def footnote(evidence: Evidence, shared: Mapping[str, Mapping[int, list[str]]]) -> str:
    """Which arms' runs are not this study's own; empty where all are."""
    if not shared:
        return ""
    named = []
    for arm, by_seed in shared.items():
        others = sorted({f"`{place}`" for places in by_seed.values() for place in places})
        some = "" if len(by_seed) == len(evidence.results[arm]) else f", seed {', '.join(map(str, by_seed))}"
        named.append(f"`{arm}`{some} (also {', '.join(others)})")
    count = sum(map(len, shared.values()))
    return (
        f"{MARK} {count} of the {len(evidence.runs)} runs stand in other studies too and are no evidence apart "
        f"from those: {'; '.join(named)}."
    )
