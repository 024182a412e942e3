"""Runs all probes and gathers their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from luthier.core.events import Emit
from luthier.core.types import Row
from luthier.health.facts import Facts, LayerNumbers
from luthier.health.probes import ablation, behaviour, gradients, prompts, states, weights

CARD_KEYS = ("template", "stop_ids", "context")


def collect(adapted: Any, rows: Sequence[Row], run: Mapping[str, Any], seed: int, emit: Emit) -> Facts:
    """Facts of an adapted model; encoder-decoder models are looked at by their weights only."""
    facts = Facts(virtual=adapted.attached.virtual_tokens > 0, model_layers=len(adapted.base.anatomy.layers))
    facts.has_head = bool(adapted.base.head)
    facts.answers_expected = adapted.task.name == "instruct" and not facts.has_head
    if adapted.base.kind == "encoder_decoder":
        rows = []
    emit("stage", name="health.rows", rows=len(rows))
    behaviour.look_at_labels(rows, facts, adapted.base.stop_ids)
    usable = [row for row in rows if row.target is not None or row.trained_tokens]
    seen = states.look(adapted, usable) if usable else None
    _layers(adapted, facts, seen)
    _identity(adapted, facts, run)
    _history(facts, run.get("events") or ())
    if seen is not None:
        _rows(adapted, usable, facts, seen, seed)
    _general(adapted, facts, run, seed)
    _answers(facts, run.get("evaluation") or {})
    _window(facts, run.get("window") or {})
    return facts


def _rows(adapted: Any, rows: Sequence[Row], facts: Facts, seen: states.Seen, seed: int) -> None:
    facts.effect, facts.finite = seen.effect, seen.finite and seen.final.finite
    for numbers in facts.layers if facts.finite else ():
        if numbers.layer is not None and (like := seen.likeness.get(adapted.base.anatomy.layers[numbers.layer][0])):
            numbers.state_cosine, numbers.state_cka = like.cosine, like.cka
    final = LayerNumbers("final")
    seen.final.fill(final)
    facts.state_change = final.relative_strength
    if not facts.finite:
        return
    if len(rows) > 1:
        found = ablation.difference(seen.base, seen.tuned, seed)
        facts.loss_change_ci = (found["ci95"][0], found["ci95"][1])
    units = max(1.0, seen.tuned[:, 1].sum())
    facts.base_loss, facts.tuned_loss = float(seen.base[:, 0].sum() / units), float(seen.tuned[:, 0].sum() / units)
    behaviour.look_at_batching(adapted, rows, seen, facts)
    behaviour.look_at_classes(rows, seen, facts)
    behaviour.look_at_answers(adapted, rows, facts)
    gradients.measure(adapted, rows, facts.layers)
    facts.prompt = prompts.drift(adapted, rows)
    facts.ablation = ablation.measure(adapted, rows, _by_layer(adapted), seed)


def layer_of(adapted: Any, name: str) -> int | None:
    """Index of the base's layer that holds this module or weight."""
    for index, (layer, _) in enumerate(adapted.base.anatomy.layers):
        if name == layer or name.startswith(layer + "."):
            return index
    return None


def _by_layer(adapted: Any) -> dict[int, list[Any]]:
    """layer → its branches that can be switched off."""
    found: dict[int, list[Any]] = {}
    for name, part in adapted.attached.branches():
        layer = layer_of(adapted, name)
        if layer is not None and isinstance(part, nn.Module):
            found.setdefault(layer, []).append(part)
    return found


def _layers(adapted: Any, facts: Facts, seen: states.Seen | None) -> None:
    """Numbers of every branch; of whole layers for weights trained in place and for virtual tokens without branches."""
    covered: set[int] = set()
    inside = False
    for name, part in adapted.attached.branches():
        numbers = LayerNumbers(name, layer_of(adapted, name))
        if isinstance(part, nn.Module):
            weights.measure(part, numbers)
        if seen is not None and name in seen.branches:
            seen.branches[name].fill(numbers)
        if numbers.layer is not None:
            covered.add(numbers.layer)
            inside = True
            whole = adapted.base.anatomy.layers[numbers.layer][0]
            if seen is not None and numbers.relative_strength is None and whole in seen.layers:
                seen.layers[whole].fill(numbers)  # a branch that hooks cannot see: the change of its layer's output
        facts.layers.append(numbers)
    changes = weights.inplace_changes(adapted)
    heads = tuple(head + "." for head in adapted.base.head)
    body = {name: pair for name, pair in changes.items() if not name.startswith(heads)}
    facts.inplace = bool(body)
    _head(facts, {name: pair for name, pair in changes.items() if name.startswith(heads)})
    names = [weights.of_base(name) for name in adapted.parameters_by_name()]
    trained = [name for name in names if layer_of(adapted, name) is not None]
    covered |= {layer for name in trained if (layer := layer_of(adapted, name)) is not None}
    if body or not inside:
        for index, (name, _) in enumerate(adapted.base.anatomy.layers):
            numbers = LayerNumbers(name, index)
            mine = {key: pair for key, pair in body.items() if key.startswith(name + ".")}
            if mine:
                weights.measure_inplace(mine, numbers)
            if seen is not None and name in seen.layers:
                seen.layers[name].fill(numbers)
            facts.layers.append(numbers)
    elsewhere = facts.virtual or facts.inplace  # the method acts before, after or beside the layers
    facts.covered_layers = None if elsewhere and not trained and not inside else len(covered)


def _head(facts: Facts, changes: Mapping[str, Any]) -> None:
    if not facts.has_head:
        return
    size = sum(float(before.double().square().sum()) for before, _ in changes.values()) ** 0.5
    change = sum(float(delta.double().square().sum()) for _, delta in changes.values()) ** 0.5
    facts.head_change = change / size if size else change


def _identity(adapted: Any, facts: Facts, run: Mapping[str, Any]) -> None:
    def parts(card: Mapping[str, Any]) -> dict[str, Any]:
        return {"fingerprint": (card.get("base") or {}).get("fingerprint"), **{k: card.get(k) for k in CARD_KEYS}}

    facts.found = parts(adapted.card())
    if run.get("card"):
        facts.expected = parts(run["card"])
    facts.expected_layers = expected_layers(run.get("method") or adapted.method, facts)


def expected_layers(method: Mapping[str, Any], facts: Facts) -> int | None:
    """How many layers the settings ask for: a list, a count, or all; what was chosen by pattern is not judged."""
    if isinstance(method.get("layers"), list | tuple):
        return max(1, len(method["layers"]))
    if isinstance(method.get("count"), int):
        return max(1, int(method["count"]))
    chosen = [method.get(key) for key in ("layers", "freeze", "train")]
    return max(1, facts.covered_layers or 0) if any(chosen) else None


def _history(facts: Facts, events: Sequence[Mapping[str, Any]]) -> None:
    def curve(kind: str) -> list[tuple[int, float]]:
        found = {e["step"]: e["loss"] for e in events if e.get("kind") == kind and e.get("loss") is not None}
        return [(int(step), float(found[step])) for step in sorted(found)]

    facts.train_curve, facts.validation_curve = curve("train"), curve("validate")
    norms = [e.get("grad_norm") for e in events if e.get("kind") == "train"]
    facts.gradient_norms = [norms[0], norms[min(9, len(norms) - 1)], norms[-1]] if norms else []


def _general(adapted: Any, facts: Facts, run: Mapping[str, Any], seed: int) -> None:
    """Loss on general text, from rows that were given, else from the guards of the evaluation (the worst one)."""
    rows = run.get("general")
    if rows and facts.finite:
        tuned = ablation.losses(adapted, rows)
        with adapted.off():
            base = ablation.losses(adapted, rows)
        found = ablation.difference(base, tuned, seed)
        units = max(1.0, base[:, 1].sum())
        facts.general_base, facts.general_tuned = float(base[:, 0].sum() / units), float(tuned[:, 0].sum() / units)
        facts.general_ci = (found["ci95"][0], found["ci95"][1])
        return
    guards = (run.get("evaluation") or {}).get("guards") or {}
    known = [g for g in guards.values() if g.get("base") and g.get("tuned") and g.get("ci95")]
    if known:
        worst = max(known, key=lambda g: g["tuned"] / g["base"])
        facts.general_base, facts.general_tuned = float(worst["base"]), float(worst["tuned"])
        facts.general_ci = (float(worst["ci95"][0]), float(worst["ci95"][1]))


def _window(facts: Facts, window: Mapping[str, Any]) -> None:
    """What the tuned model looks at in a longer window, as the run measured it."""
    mean = ((window.get("attention") or {}).get("tuned") or {}).get("mean") or {}
    facts.far_mass, facts.even_mass = mean.get("far"), mean.get("even")


def _answers(facts: Facts, evaluation: Mapping[str, Any]) -> None:
    """What the evaluation knows better: it asked more rows and let them answer longer, so its stop rate counts."""
    facts.overfitting = evaluation.get("overfitting") or {}
    tuned, base = evaluation.get("tuned") or {}, evaluation.get("base") or {}
    if facts.answers_expected and tuned.get("stop_rate") is not None:
        facts.stop_rate, facts.base_stop_rate = float(tuned["stop_rate"]), base.get("stop_rate")
