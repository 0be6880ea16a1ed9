"""The doctor's report in the terminal."""

from __future__ import annotations

import re

from mgsr.planning.findings import Report, size
from mgsr.runtime.errors import ConfigError

SIGNS = {"ok": "ok   ", "warning": "WARN ", "error": "ERROR"}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
PARTS = ("student_weights", "teacher_weights", "optimiser", "clip_network", "activations")


def lines(report: Report) -> list[str]:
    """What people read, a finding per line, the longest account last."""
    width = max(len(finding.section) for finding in report.findings)
    out = [f"{SIGNS[f.level]} {f.section:<{width}}  {f.text}" for f in report.findings]
    bars = report.figures.get("lengths.train", {}).get("histogram", [])
    if bars:
        out += ["", "tokens of a training row, prompt and answer:", *bars]
    memory = report.figures.get("memory")
    if memory:
        out += ["", f"memory for {memory['rows']} sequences of {memory['length']} tokens in one forward:"]
        out += [f"  {name.replace('_', ' '):<16} {size(memory[name]):>12}" for name in PARTS]
        for phase in ("training", "generation"):
            out.append(f"  {'in ' + phase:<16} {size(memory[phase]):>12}")
        if memory["largest_micro_batch"]:
            out.append(f"  largest train.micro_batch_size that fits: {memory['largest_micro_batch']}")
        if memory["largest_written_batch"]:
            out.append(f"  largest scrg.batch_size that fits: {memory['largest_written_batch']}")
    counts = [sum(f.level == level for f in report.findings) for level in ("error", "warning")]
    verdict = "ready to run" if report.well else "not ready"
    out += ["", f"{verdict}: {counts[0]} errors, {counts[1]} warnings"]
    return out


def parse_size(text: str) -> int:
    """Bytes of `80GB`, `24GiB` or a plain number.

    Raises:
        ConfigError: it is none of these.

    >>> parse_size("80GB"), parse_size("1.5 GiB")
    (80000000000, 1610612736)
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS:
        raise ConfigError(f"`{text}` is no size; write 80GB or 24GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])
