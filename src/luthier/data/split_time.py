"""Order of rows by a date column: ISO dates and times, or numbers (seconds, milliseconds, years)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from luthier.core.errors import DataError, Problem
from luthier.data.columns import Examples


def oldest_first(rows: Examples, column: str) -> np.ndarray:
    """Positions sorted by time; rows of one time keep their order. DataError naming rows without a date."""
    times: list[float] = []
    problems: list[Problem] = []
    for row in rows:
        value = row.extra.get(column)
        try:
            times.append(moment(value))
        except ValueError:
            times.append(0.0)
            if len(problems) < 20:
                problems.append(Problem(f"{column}: {value!r} is no date", str(row.source), "2024-05-31, or a number"))
    if problems:
        raise DataError("rows cannot be ordered by time", problems=problems)
    return np.argsort(np.array(times), kind="stable")


def moment(value: Any) -> float:
    """Seconds since 1970 (or the plain number). ValueError for anything else."""
    if isinstance(value, bool) or value is None:
        raise ValueError(value)
    if isinstance(value, int | float):
        return float(value)
    text = str(value).strip()
    if text.replace(".", "", 1).isdigit() and len(text) != 8:
        return float(text)
    found = datetime.fromisoformat(text.replace("/", "-"))
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
