"""FAMILY of diagnoses: pure functions `diagnosis(facts) -> Finding`: numbers become a verdict with evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from luthier.core.family import Family

DIAGNOSES = Family("diagnoses", __name__)

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One diagnosis. `value` and `threshold` are the number that decided and what it was held against."""

    name: str
    status: Status
    value: float | None
    threshold: float | None
    evidence: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        """The contract's keys."""
        return asdict(self)


def rank(place: int) -> Callable[[Any], Any]:
    """Decorator: 0 for causes, higher for what may be their consequence; decides which finding is the top one."""

    def note(diagnosis: Any) -> Any:
        diagnosis.rank = place
        return diagnosis

    return note


def unmeasured(name: str, why: str) -> Finding:
    """Nothing to judge: ok, and says what is missing."""
    return Finding(name, "ok", None, None, f"not measured: {why}")
