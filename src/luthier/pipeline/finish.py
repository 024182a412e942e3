"""From the best weights to a finished run: save, prove the artefact, measure, diagnose, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core import atomic
from luthier.core.errors import GateFailed
from luthier.core.events import Emitter, read_jsonl
from luthier.core.rundir import RunDir
from luthier.pipeline import canaries, flight
from luthier.pipeline.prepare import Data
from luthier.recipe import Recipe

TRUTH_TOLERANCE = 1e-4
"""Largest logit difference between the model in memory and the one that a fresh load gives (float32)."""


def finish(recipe: Recipe, adapted: Any, data: Data, state: Any, run: RunDir, emit: Emitter) -> str:
    """Write everything that comes after training; the final state is written last. Returns the health verdict."""
    from luthier.report.write import write

    adapted.eval()
    adapted.save(run.adapter)
    emit("stage", name="artefact")
    truth = artefact_truth(adapted, run, data)
    emit("stage", name="evaluate")
    evaluation = measure(recipe, adapted, data, run, emit)
    emit("stage", name="health")
    health = diagnose(recipe, adapted, data, run, evaluation, emit)
    emit("stage", name="report")
    final = {
        "step": state.step,
        "exit_code": 1 if health == "fail" else 0,
        "reason": state.reason,
        "artefact": truth,
        "supervised_tokens": getattr(state, "supervised_tokens", None),
    }
    write(run, {"state": "finished", **final})
    run.write_status("finished", **final)
    return health


def evaluation_split(data: Data) -> str:
    """The test split; validation where there is no test."""
    return "test" if len(data.rows["test"]) else "validation"


def measure(recipe: Recipe, adapted: Any, data: Data, run: RunDir, emit: Emitter) -> dict[str, Any]:
    """Base against tuned on the same rows; writes evaluation/."""
    from luthier.evaluate.run import evaluate
    from luthier.pipeline.evidence import hashes

    split = evaluation_split(data)
    found = evaluate(
        adapted,
        data.rows[split],
        data.examples[split],
        adapted.task.name,
        recipe.evaluate,
        labels=data.labels,
        training=data.examples["train"],
        seed=recipe.seed,
        emit=emit,
    )
    memory = what_it_remembers(recipe, adapted, data, emit)
    judged = {"memorisation": memory, "overfitting": overfitting(run, memory, recipe.seed)}
    judged["training_rows"] = flight.summary(run, data.examples["train"])
    metrics = {**found.as_json(), **judged, "split": split, "evidence": hashes(run)}
    atomic.write_json(run.metrics, metrics)
    write_lines(run.samples, found.samples)
    write_lines(run.predictions, found.predictions)
    return metrics


def what_it_remembers(recipe: Recipe, adapted: Any, data: Data, emit: Emitter) -> dict[str, Any]:
    """Trained rows against held-out ones, and canaries, if there are any. `same_source`: the held-out rows were split
    from the training file and did not come in a file of their own, whose rows may be of another kind."""
    from luthier.evaluate.memorisation import measure

    held = "test" if recipe.data.validation and not recipe.data.test and len(data.rows["test"]) else "validation"
    rows = {"planted": data.planted.planted, "controls": data.planted.controls} if data.planted else {}
    emit("stage", name="evaluate.memorisation", canaries=len(rows.get("planted", ())))
    options: dict[str, Any] = {"batch_tokens": recipe.evaluate.batch_tokens, "seed": recipe.seed, **rows}
    found = measure(adapted, data.rows["train"], data.rows[held], **options)
    same = not getattr(recipe.data, held)
    found["held_out"] |= {"split": held, "same_source": same, "memorised": found["held_out"]["memorised"] and same}
    texts = {one.id: canaries.text_of(one) for one in data.planted.drawn.planted} if data.planted else {}
    for one in found.get("canaries", {}).get("each", ()):
        one["text"] = texts[one["id"]]
    return found


def overfitting(run: RunDir, memory: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The verdict from the curves, the validation rows over time, and what the model remembers."""
    from luthier.evaluate.overfitting import diagnose, from_events, histories

    rows = histories(read_jsonl(run.validation_rows))
    return diagnose(*from_events(read_jsonl(run.events)), rows, seed, memory).as_json()


def diagnose(
    recipe: Recipe, adapted: Any, data: Data, run: RunDir, evaluation: Mapping[str, Any], emit: Emitter
) -> str:
    """Health of the adapter; writes health.json and returns its verdict."""
    from luthier.health.run import diagnose as probe

    facts = {
        "events": read_jsonl(run.events),
        "evaluation": dict(evaluation),
        "manifest": data.manifest,
        "method": adapted.method,
        "card": adapted.card(),
        "window": run.read(run.window) or {},
    }
    health = probe(adapted, data.rows["validation"], run=facts, seed=recipe.seed, emit=emit).as_json()
    atomic.write_json(run.health, health)
    return str(health["verdict"])


def write_lines(path: Any, records: Sequence[Mapping[str, Any]]) -> None:
    """Records as JSONL, atomically."""
    text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False, default=float) + "\n" for record in records)
    atomic.write_text(path, text)


def artefact_truth(adapted: Any, run: RunDir, data: Data) -> dict[str, float]:
    """Load what is on disk and compare it with the model in memory, and with the base.

    GateFailed when the saved adapter is another model than the trained one, or nothing but the base.
    """
    import torch

    from luthier.adapted import load
    from luthier.data.batching import evaluation_batches

    rows = data.rows["validation"]
    batch = next(iter(evaluation_batches([rows[i] for i in range(min(4, len(rows)))], 1 << 20)))
    with torch.no_grad():
        here = _outputs(adapted, batch)
        with adapted.off():
            base = _outputs(adapted, batch)
        again = load(run.adapter, device=str(adapted.device))
        again.layout = adapted.layout
        there = _outputs(again, batch)
    difference, effect = float((here - there).abs().max()), float((here - base).abs().max())
    tolerance = TRUTH_TOLERANCE * max(1.0, float(here.abs().max()))
    if not difference <= tolerance:
        raise GateFailed(
            f"the saved adapter is not the trained model (largest difference {difference:.2g})",
            where=str(run.adapter),
            remedy="this is a fault of luthier; keep the run directory and report it",
        )
    return {"reload_difference": difference, "effect_on_base": effect}


def _outputs(adapted: Any, batch: Any) -> Any:
    return adapted.row_logits(batch).float() if adapted.task.has_head else adapted.token_nll(batch).float()
