"""The end of `run` and `resume`: what came out of it, in words or as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.text import Text

from luthier.cli.console import json_out, out, safe, show
from luthier.cli.progress import Progress


def told(work: Callable[[], Any], progress: Progress, json: bool) -> int:
    """Do the work and tell its result; the exit code is that of the run's health."""
    run = work()
    progress.stop()
    status = run.dir.read(run.dir.status) or {}
    code = int(status.get("exit_code") or 0)
    if json:
        json_out(summary(run, status))
        return code
    if run.was_finished:
        out().print(Text("this run is already finished (--run-dir NEW repeats it): ") + safe(run.dir.path))
    verdict(run)
    out().print(Text("run     ") + safe(run.dir.path))
    out().print(Text("report  ") + safe(run.report))
    return code


def summary(run: Any, status: dict[str, Any]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "run": str(run.dir.path),
        "already_finished": run.was_finished,
        "state": status.get("state"),
        "step": status.get("step"),
        "metrics": run.metrics,
        "health": run.health.verdict,
        "report": str(run.report),
    }


def verdict(run: Any) -> None:
    """Base against tuned in one short table."""
    from luthier.cli.tables import metrics

    metrics(run.metrics)
    health = run.health.verdict
    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}.get(health, "")
    out().print(Text("health  ") + Text(show(health), style=style))
    judged = run.metrics.get("overfitting") or {}
    if judged.get("verdict") not in (None, "healthy", "unknown"):
        out().print(Text("curve   ") + safe(judged.get("reason") or judged["verdict"]))
        if judged.get("advice"):
            out().print(Text("        → ") + safe(judged["advice"]))
