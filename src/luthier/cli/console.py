"""What people see: stdout for results, stderr for logs and errors; foreign text can neither colour nor act."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from rich.console import Console
from rich.text import Text

from luthier.core.errors import Problem
from luthier.core.redact import redact, visible


@cache
def out() -> Console:
    """Results, on stdout. No colour where it is not a terminal."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())


@cache
def err() -> Console:
    """Logs, progress and errors, on stderr."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=not sys.stderr.isatty())


def forget() -> None:
    """Look at stdout and stderr again (tests replace them)."""
    out.cache_clear()
    err.cache_clear()


def safe(value: Any, style: str = "") -> Text:
    """Text of data, models or files: markup means nothing, control and direction characters are written out."""
    return Text(visible(redact(str(value))), style=style)


def json_out(value: Any) -> None:
    """Exactly one JSON object on stdout. Control and direction characters stay escaped."""
    text = visible(redact(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False, default=_plain)))
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    for name in ("as_json", "model_dump", "tolist"):
        if callable(getattr(value, name, None)):
            return getattr(value, name)()
    return str(value)


def failure(problems: Sequence[Problem]) -> None:
    """What, where, and how to mend, on stderr."""
    console = err()
    for problem in problems:
        line = Text("error: ", style="bold red")
        if problem.where:
            line += safe(problem.where, "bold") + Text(": ")
        console.print(line + safe(problem.what))
        if problem.remedy:
            console.print(Text("  → ", style="green") + safe(problem.remedy))


def warning(what: str, where: str = "", remedy: str = "") -> None:
    """Something to know, on stderr."""
    line = Text("warning: ", style="yellow")
    if where:
        line += safe(where, "bold") + Text(": ")
    err().print(line + safe(what))
    if remedy:
        err().print(Text("  → ", style="green") + safe(remedy))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """A table on stdout; plain columns without a frame. Cells are Text or foreign values."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(
        title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    listed = [list(row) for row in rows]
    for place, column in enumerate(columns):
        numbers = bool(listed) and all(isinstance(row[place], int | float | type(None)) for row in listed)
        made.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in listed:
        made.add_row(*(cell if isinstance(cell, Text) else safe(show(cell)) for cell in row))
    out().print(made)


def show(value: Any) -> str:
    """A cell: numbers with 4 significant digits, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"
    return str(value)
