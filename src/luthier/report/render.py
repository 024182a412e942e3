"""The HTML page: one file, no network, no script. Jinja escapes everything; here is only what to show."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from luthier.report import flight, inspection, longer, memory, words
from luthier.report.collect import Facts, number
from luthier.report.headline import interval, noise_floor, side, significant
from luthier.report.samples import text_of

LAYER_COLUMNS = (
    "activation_entropy",
    "activation_rate",
    "relative_strength",
    "weight_norm_ratio",
    "effective_rank",
    "gradient_norm",
    "prefix_mass",
    "state_cosine",
)
FEW = 30
"""Slices with fewer rows are marked."""
MOST_FACTS = 80


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        name: getattr(words, name) for name in ("show", "signed", "percent", "duration", "size", "plain")
    }
    return environment.from_string(files("luthier.report").joinpath("template.html").read_text("utf-8"))


def page(
    facts: Facts, story: Mapping[str, Any], texts: dict[str, str], png: bytes, window_png: bytes | None = None
) -> str:
    """The whole page as text; the pictures are the curves and, of a longer window, its losses and passkeys."""
    template = _template()
    return template.render(
        facts=facts,
        t=texts,
        say=partial(words.say, texts),
        metric_name=partial(words.metric, texts),
        css=files("luthier.report").joinpath("style.css").read_text("utf-8"),
        png=base64.b64encode(png).decode("ascii"),
        window_png=base64.b64encode(window_png or b"").decode("ascii"),
        window=longer.losses(facts.window),
        window_tasks=longer.tasks(facts.window),
        window_attention=longer.attention(facts.window),
        head=story["headline"],
        over=over(story["overfitting"], facts.metrics),
        memory=memory.shown(facts.metrics),
        flown=flight.counts(facts.metrics),
        flight=flight.rows(facts.metrics),
        spikes=flight.spikes(facts),
        method=spec(facts.recipe.get("method")),
        task=spec(facts.recipe.get("task")),
        done=done(facts, texts),
        metrics=metric_rows(facts.metrics),
        slices=slices(facts.metrics),
        classes=classes(facts.metrics),
        confusion=confusion(facts.metrics),
        samples=[sample(item) for item in facts.samples],
        tokens=[line for item in facts.samples if (line := token_lines(item))],
        layers=heatmap(facts.health.get("layers")),
        data=inspection.facts(facts.data),
        data_table=inspection.table(facts.data),
        splits=inspection.SPLITS,
        extremes=extremes(facts.metrics),
        guards=guards(facts.metrics),
        env=flat(facts.environment),
        version=_version(),
    )


def spec(value: Any) -> str:
    """`lora` or {name: lora, r: 8} → lora (r 8)"""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} {words.show(item)}" for key, item in value.items() if key != "name")
        name = words.plain(value.get("name", ""))
        return f"{name} ({inner})" if inner else name
    return words.plain(value) if value is not None else "–"


def over(verdict: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict with the names that the string tables use, and the numbers of whatever probe tells it."""
    found = memory.shown(metrics)
    held, canaries = found.get("held_out", {}), found.get("canaries", {})
    low, high = verdict.get("band") or (None, None)
    numbers = {"known": canaries.get("by_heart"), "planted": canaries.get("planted"), "bits": canaries.get("tuned")}
    numbers |= dict(zip(("trained", "held_out"), held.get("tuned", (None, None)), strict=True))
    numbers |= {"most": canaries.get("most_bits"), "low": words.signed(low), "high": words.signed(high)}
    names = {"before": verdict.get("train_before"), "after": verdict.get("train_after")}
    return {**verdict, **names, "key": memory.key(verdict), "numbers": numbers}


def done(facts: Facts, texts: dict[str, str]) -> list[tuple[str, str]]:
    """What was done, as pairs of name and text; what is not known is left out."""
    recipe, say = facts.recipe, partial(words.say, texts)
    rows = {name: (facts.start.get("rows") or {}).get(name) for name in ("train", "validation", "test")}
    train, epochs = recipe.get("train") or {}, [p.get("epoch") for p in facts.curves.get("train", ())]
    lr = train.get("lr")
    found: list[tuple[str, Any]] = [
        ("model", (recipe.get("model") or {}).get("path")),
        ("task", spec(recipe.get("task")) if recipe else None),
        ("method", spec(recipe.get("method")) if recipe else None),
        ("context", None if recipe.get("context") in (None, "none") else spec(recipe["context"])),
        ("data", sources(recipe)),
        ("rows", say("did.rows_text", **rows) if any(rows.values()) else None),
        ("augment", ", ".join(spec(item) for item in recipe.get("augment") or ()) or None),
        ("trained", trained(facts, texts)),
        ("lr", texts["did.auto"] if lr == "auto" else lr),
        ("length", _length(facts, epochs, say)),
        ("best", say("did.best_text", step=facts.finished["best_step"]) if "best_step" in facts.finished else None),
        ("reason", _reason(facts, texts)),
        ("seed", recipe.get("seed")),
    ]
    return [(texts[f"did.{name}"], words.show(value)) for name, value in found if value is not None]


def sources(recipe: Mapping[str, Any]) -> str | None:
    """The training files of the recipe in one line."""
    train = (recipe.get("data") or {}).get("train")
    listed = train if isinstance(train, list) else [train]
    names = [item.get("path") if isinstance(item, Mapping) else item for item in listed]
    return ", ".join(words.plain(name) for name in names if name) or None


def trained(facts: Facts, texts: dict[str, str]) -> str | None:
    """12 345 (1.2 % of all)"""
    count = facts.start.get("trainable")
    if number(count) is None:
        return None
    share = words.say(texts, "tile.of_all", share=words.percent(facts.start.get("share")))
    return f"{words.show(count)} ({share})"


def _length(facts: Facts, epochs: Sequence[Any], say: Any) -> str | None:
    if not facts.cost.get("steps"):
        return None
    known = [value for value in epochs if number(value) is not None]
    return str(say("did.length_text", steps=facts.cost["steps"], epochs=int(max(known)) + 1 if known else 1))


def _reason(facts: Facts, texts: dict[str, str]) -> str | None:
    reason = facts.finished.get("reason")
    return texts.get(f"reason.{reason}", words.plain(reason)) if reason else None


def metric_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a metric: base, tuned, difference, interval, and a mark for better, worse or chance."""
    base, tuned = metrics.get("base") or {}, metrics.get("tuned") or {}
    rows = []
    for name in dict.fromkeys([*base, *tuned]):
        before, after = number(base.get(name)), number(tuned.get(name))
        if before is None and after is None:
            continue
        found = (metrics.get("difference") or {}).get(name) or {}
        low, high = interval(found)
        value = number(found.get("value"))
        if value is None and before is not None and after is not None:
            value = after - before
        mark = ""
        if low is not None:
            sure = significant(found, noise_floor(metrics, name))
            mark = side(metrics, name, value or 0.0) if sure else "same"
        rows.append({"name": name, "base": before, "tuned": after, "value": value, "mark": mark})
        rows[-1] |= {"low": low, "high": high, "p": number(found.get("p"))}
    return rows


def slices(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`slices` of metrics.json as a flat list: {group, name, rows, base, tuned, low, high, value, small}."""
    found = metrics.get("slices") or {}
    listed = found.items() if isinstance(found, Mapping) else [("", found)]
    rows = []
    for group, members in listed:
        named = members.items() if isinstance(members, Mapping) else ((item.get("name"), item) for item in members)
        for name, item in named:
            if isinstance(item, Mapping):
                rows.append(_slice(str(group), name, item))
    return rows


def _slice(group: str, name: Any, item: Mapping[str, Any]) -> dict[str, Any]:
    base, tuned = _first_number(item.get("base")), _first_number(item.get("tuned"))
    difference = item.get("difference")
    difference = difference if isinstance(difference, Mapping) else {"value": difference}
    inner = difference.get("loss", difference)
    low, high = interval(inner if "ci95" in inner else item)
    value = number(inner.get("value"))
    count = number(item.get("rows", item.get("n"))) or 0
    return {
        "group": group,
        "name": name,
        "rows": int(count),
        "base": base,
        "tuned": tuned,
        "value": tuned - base if value is None and base is not None and tuned is not None else value,
        "low": low,
        "high": high,
        "small": count < FEW,
    }


def _first_number(value: Any) -> float | None:
    if isinstance(value, Mapping):
        return next((number(item) for item in (value.get("loss"), *value.values()) if number(item) is not None), None)
    return number(value)


def classes(metrics: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """`per_class` as a table: column names, and (class, values)."""
    found = metrics.get("per_class") or {}
    if isinstance(found, Mapping) and set(found) == {"base", "tuned"}:
        found = found["tuned"]
    if not isinstance(found, Mapping):
        return [], []
    members = {str(name): values for name, values in found.items() if isinstance(values, Mapping)}
    columns = list(dict.fromkeys(key for values in members.values() for key in values))
    return columns, [(name, [values.get(column) for column in columns]) for name, values in members.items()]


def confusion(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The confusion matrix of the tuned model with a shade a cell (share of the true class)."""
    found = metrics.get("confusion")
    if isinstance(found, Mapping) and "tuned" in found:
        found = found["tuned"]
    matrix = found.get("matrix") if isinstance(found, Mapping) else found
    if not isinstance(matrix, list) or not matrix or not all(isinstance(row, list) for row in matrix):
        return None
    labels = (found.get("labels") if isinstance(found, Mapping) else None) or metrics.get("labels")
    labels = [str(label) for label in labels or range(len(matrix))]
    rows = []
    for label, row in zip(labels, matrix, strict=False):
        total = sum(number(value) or 0 for value in row) or 1
        rows.append((label, [(value, shade((number(value) or 0) / total)) for value in row]))
    return {"labels": labels, "rows": rows}


def extremes(metrics: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    """The rows that gained most, lost most, and are hardest still: where each stands, its two losses, its text."""
    found = metrics.get("extremes")
    parts: list[tuple[str, list[Any]]] = []
    for name in ("wins", "losses", "hardest"):
        rows = [
            item
            for item in (found.get(name) if isinstance(found, Mapping) else None) or ()
            if isinstance(item, Mapping)
        ]
        listed = [
            (
                item.get("source") or item.get("id"),
                number(item.get("base_loss")),
                number(item.get("tuned_loss")),
                item.get("text") or "",
            )
            for item in rows
        ]
        parts.append((name, listed[:5]))
    return [part for part in parts if part[1]]


def guards(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """General texts that must not be forgotten: loss of base and tuned, relative change with its interval."""
    found = metrics.get("guards")
    rows = []
    for name, item in (found if isinstance(found, Mapping) else {}).items():
        base = number(item.get("base")) if isinstance(item, Mapping) else None
        if base:
            low, high = interval(item)
            ends = (None, None) if low is None or high is None else (low / base, high / base)
            rows.append(
                {"name": name, "base": base, "tuned": number(item.get("tuned")), "low": ends[0], "high": ends[1]}
            )
    return rows


def sample(item: Mapping[str, Any]) -> dict[str, Any]:
    """One sample with plain texts, None where a part is absent."""
    parts = {name: text_of(item[name]) if name in item else None for name in ("prompt", "reference", "base", "tuned")}
    sampled = item.get("sampled", item.get("tuned_sampled"))
    losses = (number(item.get("base_loss")), number(item.get("tuned_loss")))
    return {
        **parts,
        "sampled": None if sampled is None else text_of(sampled),
        "id": item.get("source") or item.get("row") or item.get("id"),
        "losses": losses,
    }


def token_lines(item: Mapping[str, Any]) -> dict[str, Any] | None:
    """`tokens`: [[text, base nll, tuned nll] …] → two lines of shaded tokens."""
    found = item.get("tokens")
    if not isinstance(found, list) or not found:
        return None
    lines: dict[str, list[tuple[str, str]]] = {"base": [], "tuned": []}
    for entry in found:
        if isinstance(entry, list | tuple) and len(entry) == 3:
            for place, name in ((1, "base"), (2, "tuned")):
                lines[name].append((words.plain(entry[0]), shade(min(1.0, (number(entry[place]) or 0.0) / 8.0))))
    return lines


def heatmap(layers: Any) -> dict[str, Any] | None:
    """Layers × metrics with a shade a cell; every column is scaled by itself."""
    if not isinstance(layers, list) or not layers:
        return None
    rows = [layer for layer in layers if isinstance(layer, Mapping)]
    columns = [name for name in LAYER_COLUMNS if any(number(row.get(name)) is not None for row in rows)]
    scaled = {}
    for name in columns:
        values = [number(row.get(name)) for row in rows]
        known = [value for value in values if value is not None]
        low, high = min(known), max(known)
        scaled[name] = [
            (value, "" if value is None else shade((value - low) / (high - low) if high > low else 0.15))
            for value in values
        ]
    body = [(name, [scaled[name][place] for name in columns]) for place, name in enumerate(_short(rows))]
    return {"columns": columns, "rows": body} if columns else None


def _short(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of layers without the path that all of them share: model.layers.0.mlp.up_proj → 0.mlp.up_proj"""
    names = [words.show(row.get("name")).split(".") for row in rows]
    shared = next((at for at, parts in enumerate(zip(*names, strict=False)) if len(set(parts)) > 1), 0)
    return [".".join(name[shared:]) for name in names]


def shade(strength: float) -> str:
    """0 … 1 → a background between paper and copper, as one of 21 classes of the style sheet."""
    return f"s{round(20 * max(0.0, min(1.0, strength)))}"


def flat(values: Any, path: str = "") -> list[tuple[str, Any]]:
    """Nested JSON as (dotted name, value) pairs; long lists are cut."""
    if isinstance(values, Mapping):
        pairs = [pair for key, value in values.items() for pair in flat(value, f"{path}.{key}".strip("."))]
        return pairs[:MOST_FACTS]
    if isinstance(values, list):
        shown = ", ".join(words.show(item) for item in values[:12])
        return [(path, shown + (f" … ({len(values)})" if len(values) > 12 else ""))] if values else []
    return [(path, values)]


def _version() -> str:
    try:
        return version("luthier")
    except PackageNotFoundError:
        return ""
