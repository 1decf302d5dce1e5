"""What an audit found: one `Check` for each thing that was looked at, and what the bundle certifies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VALID, INVALID, MISSING = "VALID", "INVALID", "MISSING"


@dataclass(frozen=True)
class Check:
    """name: what was checked; where: path in the bundle, local path, or index; status: VALID, INVALID or MISSING;
    reason: a short word for programs, empty when VALID; detail: a sentence for people."""

    name: str
    where: str
    status: str
    reason: str = ""
    detail: str = ""


@dataclass
class Report:
    """The checks in the order they were made. `certified` is empty until all that it says was proven."""

    checks: list[Check] = field(default_factory=list)
    certified: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.certified) and all(check.status == VALID for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.status != VALID]

    def valid(self, name: str, where: str, detail: str = "") -> None:
        self.checks.append(Check(name, where, VALID, "", detail))

    def invalid(self, name: str, where: str, reason: str, detail: str) -> None:
        self.checks.append(Check(name, where, INVALID, reason, detail))

    def missing(self, name: str, where: str, reason: str, detail: str) -> None:
        self.checks.append(Check(name, where, MISSING, reason, detail))
