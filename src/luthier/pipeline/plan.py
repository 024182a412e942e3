"""The long form of `check`: with tokenizer, model, inspection, preview, parameters and the estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.pipeline import learn, prepare
from luthier.pipeline.estimate import estimate
from luthier.pipeline.savings import savings
from luthier.recipe import Recipe


def full_check(
    recipe: Recipe, task: Any, loaded: Any, splits: Any, labels: tuple[str, ...], problem: str
) -> dict[str, Any]:
    """Everything `luthier check` shows beyond the quick part. Trains nothing, writes nothing."""
    from luthier.core.events import Emitter
    from luthier.methods import METHODS

    prepare.settle_threads(recipe)
    told: list[dict[str, Any]] = []
    emit = Emitter(told.append)
    base = prepare.load_model(recipe, task, labels, problem, emit)
    data = prepare.encode(recipe, loaded, splits, task, base, labels, problem, cache=None)
    prepare.refuse_short(base, data, recipe)
    adapted = learn.adapt(recipe, base, task, data, emit)
    weights = adapted.parameters_by_name()
    trained = sum(weight.numel() for weight in weights.values())
    total = sum(weight.numel() for weight in base.model.parameters())
    formula = METHODS.parse(recipe.method).formula(base)
    warnings = [{"what": w.what, "where": w.where, "remedy": w.remedy} for w in data.inspection.warnings]
    warnings += [
        {key: str(record.get(key, "")) for key in ("what", "where", "remedy")}
        for record in told
        if record["kind"] == "warning"
    ]
    if formula != trained:
        what = f"{trained} numbers are trained, the method's formula says {formula}"
        warnings.append({"what": what, "where": "method", "remedy": "this is a fault of luthier; please report it"})
    plan = learn.batches(recipe, data.rows["train"], base.context)
    steps = learn.total_steps(recipe, plan)
    return {
        "data": {**data.manifest, "rows": {name: len(rows) for name, rows in data.rows.items()}},
        "model": {
            "path": str(base.path),
            "kind": base.kind,
            "parameters": total,
            "trainable": trained,
            "share": trained / max(1, total),
            "formula": formula,
            "by_layer": by_layer(base, weights),
            "by_weight": {name: weight.numel() for name, weight in weights.items()},
            "fingerprint": base.fingerprint,
        },
        "plan": {
            "steps": steps,
            "learning_rate": learn.learning_rate(recipe, adapted),
            "schedule": learn.schedule(recipe).model_dump(),
            "trained_tokens": sum(row.trained_tokens for row in data.rows["train"]),
            "layout": adapted.layout,
            **estimate(recipe, adapted, plan, steps, data),
            **savings(adapted, plan, data.rows["train"]),
        },
        "warnings": warnings,
        "preview": data.inspection.preview,
    }


def by_layer(base: Any, weights: Mapping[str, Any]) -> dict[str, int]:
    """Trained numbers in each layer of the model, and of all that belongs to none (virtual tokens, heads, …)."""
    found: dict[str, int] = {}
    layers = [layer for layer, _ in base.anatomy.layers]
    for name, weight in weights.items():
        place = next((layer for layer in layers if f".{layer}." in f".{name}."), "elsewhere")
        found[place] = found.get(place, 0) + weight.numel()
    return found
