"""The model card that travels with an export: what it is, on what it was trained, what was measured, how to load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from luthier.core.redact import redact


def model_card(card: Mapping[str, Any], facts: Mapping[str, Any], merged: bool = False) -> str:
    """Markdown with Hugging Face metadata. Numbers come from the run's own files; none are invented."""
    base = str((card.get("base") or {}).get("path", ""))
    method = card.get("method") or {}
    head = ["---", "library_name: " + ("transformers" if merged else "peft"), f"base_model: {json.dumps(base)}", "---"]
    kind = "merged model" if merged else f"{method.get('name', 'adapter')} adapter"
    lines = [*head, f"# {kind} made with luthier", "", f"Base model: `{base}`", ""]
    lines += ["The licence of the base model applies to this artefact too.", "", "## How it was made", ""]
    lines += ["```json", json.dumps({"method": method, "task": card.get("task")}, ensure_ascii=False, indent=2), "```"]
    lines += _data(facts.get("manifest") or {}) + _metrics(facts.get("metrics") or {})
    if verdict := (facts.get("health") or {}).get("verdict"):
        lines += ["", "## Health", "", f"Verdict of the diagnosis: **{verdict}**"]
    lines += ["", "## Loading", "", "```python", *_loading(card, merged), "```", ""]
    return redact("\n".join(lines))


def _data(manifest: Mapping[str, Any]) -> list[str]:
    sources = manifest.get("sources") or []
    rows = [f"| `{_cell(s.get('path'))}` | {s.get('rows', '')} | `{str(s.get('sha256', ''))[:12]}` |" for s in sources]
    return ["", "## Data", "", "| file | rows | sha256 |", "|---|---|---|", *rows] if rows else []


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    if not metrics:
        return []
    lines = ["", f"## Measured on the {metrics.get('split')} split ({metrics.get('rows')} rows)", ""]
    lines += ["| metric | base | tuned | difference (95 % interval) |", "|---|---|---|---|"]
    for name, tuned in (metrics.get("tuned") or {}).items():
        base = (metrics.get("base") or {}).get(name)
        difference = (metrics.get("difference") or {}).get(name) or {}
        interval = difference.get("ci95") or ("", "")
        shown = (
            f"{_number(difference.get('value'))} [{_number(interval[0])}, {_number(interval[1])}]" if difference else ""
        )
        lines.append(f"| {_cell(name)} | {_number(base)} | {_number(tuned)} | {shown} |")
    return lines


def _loading(card: Mapping[str, Any], merged: bool) -> list[str]:
    if merged:
        return ["from transformers import AutoModelForCausalLM", 'model = AutoModelForCausalLM.from_pretrained("…")']
    lines = ["import luthier", 'adapted = luthier.load("…")']
    if card.get("peft_type"):
        lines += [
            "",
            "# or with PEFT alone:",
            "from peft import PeftModel",
            'model = PeftModel.from_pretrained(base, "…")',
        ]
    return lines


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
