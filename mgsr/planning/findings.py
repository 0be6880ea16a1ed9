"""What the doctor says: findings by section, and figures that people and programs read alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]


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
        self.findings.append(Finding(level, section, " ".join(text.split())))

    @property
    def well(self) -> bool:
        return all(finding.level != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        findings = [asdict(finding) for finding in self.findings]
        return {"well": self.well, "findings": findings, "figures": self.figures}


def size(count: float) -> str:
    """Bytes for people.

    >>> size(3 * 2**30), size(900)
    ('3.00 GiB', '900 B')
    """
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"
