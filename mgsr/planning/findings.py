"""What the doctor says: findings by section, figures for people and programs, and both as lines of text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mgsr.planning.units import readable
from mgsr.runtime.wording import plural

Level = Literal["ok", "warning", "error"]
SIGNS = {"ok": "ok   ", "warning": "WARN ", "error": "ERROR"}
PARTS = ("student_weights", "teacher_weights", "optimiser", "clip_network", "activations")


@dataclass(frozen=True)
class Finding:
    """One line: what is so, and, where it is not well, what to do."""

    level: Level
    section: str
    text: str


@dataclass
class Report:
    """Everything found. It is well where no finding is an error.

    Attributes:
        figures: by section: counts, lengths, bytes.
    """

    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def say(self, level: Level, section: str, text: str) -> None:
        """Add a finding; its text becomes one line. The same error of two looks is one."""
        line = " ".join(text.split())
        if level != "error" or all(line != finding.text for finding in self.findings):
            self.findings.append(Finding(level, section, line))

    @property
    def well(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Machine-readable: `well`, `findings`, `figures`."""
        findings = [asdict(finding) for finding in self.findings]
        return {"well": self.well, "findings": findings, "figures": self.figures}


def report_lines(report: Report) -> list[str]:
    """What people read: a line per finding, then lengths, memory and the verdict."""
    width = max(len(finding.section) for finding in report.findings)
    out = [f"{SIGNS[f.level]} {f.section:<{width}}  {f.text}" for f in report.findings]
    bars = report.figures.get("lengths.train", {}).get("histogram", [])
    if bars:
        out += ["", "tokens of a training row, prompt and answer:", *bars]
    memory = report.figures.get("memory")
    if memory:
        out += [
            "",
            f"memory for {plural(memory['rows'], 'sequence')} of {memory['length']} tokens in one forward:",
        ]
        out += [f"  {name.replace('_', ' '):<16} {readable(memory[name]):>12}" for name in PARTS]
        for phase in ("training", "generation"):
            out.append(f"  {'in ' + phase:<16} {readable(memory[phase]):>12}")
        if memory["largest_micro_batch"]:
            out.append(f"  largest train.micro_batch_size that fits: {memory['largest_micro_batch']}")
        if memory["largest_written_batch"]:
            out.append(f"  largest scrg.batch_size that fits: {memory['largest_written_batch']}")
    if report.figures.get("outline"):
        out += ["", "what `mgsr train` will do:", *(f"  {line}" for line in report.figures["outline"])]
    counts = [sum(f.level == level for f in report.findings) for level in ("error", "warning")]
    verdict = "ready to run" if report.well else "not ready"
    out += ["", f"{verdict}: {plural(counts[0], 'error')}, {plural(counts[1], 'warning')}"]
    return out
