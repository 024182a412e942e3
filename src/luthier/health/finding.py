"""What a diagnosis says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """Status with the number it rests on, the threshold, the evidence and what to do."""

    name: str
    status: Status
    value: float | None
    threshold: float | None
    evidence: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def verdict(findings: list[Finding]) -> Status:
    """The worst of them."""
    statuses = {finding.status for finding in findings}
    return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "ok"
