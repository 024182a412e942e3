"""The model card that travels with an export: what it is, on what it was trained, what was measured, how to load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.redact import redact, visible

if TYPE_CHECKING:
    from luthier.export.base import Export

LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
KINDS = {
    "merged": "merged model",
    "bundle": "model that needs nothing but transformers",
    "gguf": "GGUF model",
    "vllm": "model for vLLM",
    "ollama": "model for ollama",
}


def model_card(export: Export, kind: str, loading: str = "") -> str:
    """Markdown with Hugging Face metadata. Numbers come from the run's own files; none are invented."""
    adapted, facts = export.adapted, export.facts
    card = adapted.card()
    name = str(adapted.base.fingerprint.get("name") or Path(adapted.base.path).name)
    licence = licence_of(Path(adapted.base.path))
    library = "peft" if kind == "adapter" and card.get("peft_type") else "transformers"
    head = ["---", f"library_name: {library}", f"base_model: {json.dumps(name)}"]
    head += [f"license: {json.dumps(licence)}"] if licence else []
    method = card["method"]
    title = KINDS.get(kind, f"{method.get('name')} adapter")
    lines = [*head, "---", f"# {_cell(title)} made with luthier", "", f"Base model: `{_cell(name)}`"]
    lines += ["", "## Licence", "", _licence(licence), "", "## How it was made", ""]
    made = {"method": method, "task": card.get("task"), "labels": card.get("labels"), "context": card.get("context")}
    shown = json.dumps({key: value for key, value in made.items() if value}, ensure_ascii=False, indent=2)
    lines += ["```json", shown.replace("```", "` ` `"), "```"]
    lines += _data(facts.get("manifest") or {}) + _metrics(facts.get("metrics") or {}) + _health(facts)
    lines += ["", "## Is it the trained model?", ""]
    lines += ["`certificate.json` compares this folder with the model of the run, on held-out rows."]
    lines += _trained_on(export.trained_on or {})
    lines += _sizes(facts)
    lines += ["", "## Loading", "", loading or _loading(export, kind), ""]
    return redact("\n".join(lines))


def licence_of(folder: Path) -> str:
    """What the base's own card or config says, or "other" where a licence file lies there, else nothing."""
    card = folder / "README.md"
    if card.is_file():
        lines = card.read_text("utf-8", "replace").split("\n")
        if lines[0].strip() == "---":
            head = lines[1 : lines.index("---", 1)] if "---" in lines[1:] else []
            found = [line.partition(":")[2].strip().strip("\"'") for line in head if line.startswith("license:")]
            if found and found[0]:
                return visible(found[0])[:80]
    return "other" if any((folder / name).is_file() for name in LICENCE_FILES) else ""


def _licence(licence: str) -> str:
    said = f"The base model's licence ({_cell(licence)}) applies" if licence else "The licence of the base applies"
    return f"{said} to this artefact too, and so may that of the training data."


def _data(manifest: Mapping[str, Any]) -> list[str]:
    sources = manifest.get("sources") or []
    rows = [
        f"| `{_cell(Path(str(s.get('path'))).name)}` | {s.get('rows', '')} | `{str(s.get('sha256', ''))[:12]}` |"
        for s in sources
    ]
    return ["", "## Data", "", "| file | rows | sha256 |", "|---|---|---|", *rows] if rows else []


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    if not metrics:
        return []
    lines = ["", f"## Measured on the {metrics.get('split')} split ({metrics.get('rows')} rows)", ""]
    lines += ["| metric | base | tuned | difference (95 % interval) |", "|---|---|---|---|"]
    for name, tuned in (metrics.get("tuned") or {}).items():
        base = (metrics.get("base") or {}).get(name)
        difference = (metrics.get("difference") or {}).get(name) or {}
        low, high = difference.get("ci95") or ("", "")
        shown = f"{_number(difference.get('value'))} [{_number(low)}, {_number(high)}]" if difference else ""
        lines.append(f"| {_cell(name)} | {_number(base)} | {_number(tuned)} | {shown} |")
    return lines


def _health(facts: Mapping[str, Any]) -> list[str]:
    health = facts.get("health") or {}
    if not health.get("verdict"):
        return []
    found = [d for d in health.get("diagnoses") or () if d.get("status") in ("warn", "fail")]
    told = [f"- {_cell(d.get('name'))}: {_cell(d.get('status'))}. {_cell(d.get('advice') or '')}" for d in found]
    return [
        "",
        "## Health",
        "",
        f"Verdict of the diagnosis: **{_cell(health['verdict'])}**",
        *([""] if told else []),
        *told,
    ]


def _trained_on(seen: Mapping[str, Any]) -> list[str]:
    if not seen:
        return []
    found = seen["difference_to_the_quantised_model"]
    told = (
        f"Training saw the base quantised ({_cell(seen['quantize'])}); this artefact is merged into the unquantised "
        "base, and the certificate compares it with the adapter on that base."
    )
    figures = (
        f"The two differ by at most {_number(found.get('max_logit_difference'))} (mean "
        f"{_number(found.get('mean_logit_difference'))}) in their logits, and agree in "
        f"{_number(100 * found.get('top1_agreement', 0))} % of the greedy next tokens."
    )
    return ["", told, *([figures] if "top1_agreement" in found else [])]


def _sizes(facts: Mapping[str, Any]) -> list[str]:
    sizes = facts.get("sizes") or {}
    if not sizes.get("base") or not sizes.get("adapter"):
        return []
    share = 100 * sizes["adapter"] / sizes["base"]
    told = f"The adapter takes {sizes['adapter']:,} bytes, {share:.2f} % of the base's {sizes['base']:,}."
    return ["", "## Size", "", told]


def _loading(export: Export, kind: str) -> str:
    if kind == "merged":
        from luthier.export.certificate import loader_name

        loader = loader_name(export.adapted)
        return _code(
            f"from transformers import AutoTokenizer, {loader}",
            f'model = {loader}.from_pretrained("THIS FOLDER", dtype="{export.dtype}")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")',
        )
    lines = ["import luthier", 'adapted = luthier.load("THIS FOLDER", base="THE BASE MODEL")']
    lines.append(
        'adapted.generate("…")' if not export.adapted.task.has_head else "adapted.labels  # served by `luthier serve`"
    )
    if export.adapted.card().get("peft_type"):
        lines += ["", "# or with PEFT alone:", "from peft import PeftModel"]
        lines += ['model = PeftModel.from_pretrained(base_model, "THIS FOLDER")']
    return _code(*lines)


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _cell(value: Any) -> str:
    plain = visible(str(value)).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;")
    return plain.replace("|", "\\|").replace("`", "'").replace("[", "\\[")
