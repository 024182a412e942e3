"""Writes report/ of a run: report.html, report.json, curves.png, samples.txt. Reads its other files only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core import atomic
from luthier.core.redact import visible
from luthier.core.rundir import RunDir
from luthier.report import headline, longer, memory, overfitting, plots, render, words
from luthier.report.collect import Facts, collect
from luthier.report.samples import as_text


def write(run: RunDir, status: Mapping[str, Any] | None = None) -> Path:
    """(Re)write the report of a run in any state, finished or not; returns the path of the HTML page.

    `status` is what status.json is about to say: the final state is written after everything else, the report too.
    """
    facts = collect(run)
    facts.status.update(status or {})
    story = judge(facts)
    language = str((facts.recipe.get("report") or {}).get("language", "en"))
    texts = words.table(language)
    png = plots.draw(facts.curves, story["overfitting"], _curve_texts(language, task_name(facts.recipe)))
    atomic.write_bytes(run.curves, png)
    picture = longer.draw(facts.window, _curve_texts(language))
    if picture is not None:
        atomic.write_bytes(run.window_png, picture)
    atomic.write_text(run.samples_text, as_text(facts.samples, texts))
    atomic.write_text(run.report_json, _json({**facts.as_json(), **story}))
    atomic.write_text(run.report_html, render.page(facts, story, texts, png, picture))
    return run.report_html


def judge(facts: Facts) -> dict[str, Any]:
    """The two verdicts: was it worth it, does it overfit."""
    curve = {
        name: [(point["step"], point["loss"]) for point in points if "loss" in point]
        for name, points in facts.curves.items()
    }
    over = overfitting.judge(curve.get("train", ()), curve.get("validation", ()))
    found = headline.judge(facts.metrics, task_name(facts.recipe))
    return {"headline": found.as_json(), "overfitting": memory.recorded(over.as_json(), facts.metrics)}


def task_name(recipe: dict[str, Any]) -> str:
    """`instruct` of both ways to write a task."""
    task = recipe.get("task", "instruct")
    return str(task.get("name", "instruct")) if isinstance(task, dict) else str(task)


def _curve_texts(language: str, task: str = "instruct") -> dict[str, str]:
    """Labels of the picture; English where no installed font has the glyphs (never boxes)."""
    texts = words.table("en" if language == "zh" and plots.cjk_font() is None else language)
    return {**texts, "curve.y": texts["curve.y_rows"]} if task == "classify" else texts


def _json(value: Any) -> str:
    """Readable JSON. Direction and control characters stand as \\u escapes: the same value, but inert."""
    return visible(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False, default=str)) + "\n"
