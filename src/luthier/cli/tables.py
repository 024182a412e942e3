"""Tables that several verbs print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from luthier.cli.console import safe, show, table
from luthier.report.render import metric_rows

MARKS = {"better": ("▲", "green"), "worse": ("▼", "red"), "same": ("·", "dim")}


def metrics(found: Mapping[str, Any]) -> None:
    """Base, tuned, difference and interval of every metric."""
    rows = []
    for row in metric_rows(found):
        mark, style = MARKS.get(row["mark"], ("", ""))
        ends = "" if row["low"] is None else f"{show(row['low'])} … {show(row['high'])}"
        difference = Text(f"{mark} {show(row['value'])}".strip(), style=style)
        rows.append((row["name"], show(row["base"]), show(row["tuned"]), difference, ends))
    if rows:
        title = f"{found.get('rows', '?')} rows of the {found.get('split', '?')} split"
        table(("metric", "base", "tuned", "difference", "95 % interval"), rows, title)


def diagnoses(found: Mapping[str, Any]) -> None:
    """Every diagnosis with its number."""
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    rows = []
    for item in found.get("diagnoses", ()):
        status = str(item.get("status"))
        advice = item.get("advice") if status != "ok" else ""
        evidence = safe(item.get("evidence") or "")
        if advice:
            evidence = evidence + Text("\n→ ") + safe(advice)
        cells = (safe(status, styles.get(status, "")), item.get("name"), show(item.get("value")))
        rows.append((*cells, show(item.get("threshold")), evidence))
    table(("status", "diagnosis", "value", "threshold", "evidence"), rows)
