"""The inspection: everything that can be wrong with data, found before training, over all rows.

It runs in `check` and inside every run, on the very rows that the trainer gets. Problems are fatal; warnings are
told. All of it is JSON in `data/manifest.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.core.errors import Problem
from luthier.core.types import Row
from luthier.data import inspect_labels, inspect_rows, inspect_texts, twins
from luthier.data.inspect_preview import preview
from luthier.data.load import Loaded
from luthier.data.settings import DataSettings
from luthier.data.split import SIDES, Splits
from luthier.data.split_report import at

CLUSTERS = 20
"""Clusters of twins that are listed."""
ALIKE = 0.9
"""Share of near duplicates among the training rows above which they are told."""


@dataclass
class Inspection:
    """`manifest` is JSON-able; `problems` must stop the run; `preview` is plain text with marks."""

    manifest: dict[str, Any]
    problems: list[Problem]
    warnings: list[Problem]
    preview: str


def inspect(
    loaded: Loaded,
    splits: Splits,
    rows: Mapping[str, Sequence[Row]],
    tokenizer: Any,
    template: Any,
    settings: DataSettings,
) -> Inspection:
    """Look at everything: files, texts, classes, twins, tokens."""
    problems: list[Problem] = []
    warnings: list[Problem] = []
    marks = inspect_rows.Marks.of(tokenizer)
    counted = inspect_rows.mapping(rows, marks)
    documents = _documents(splits)
    tokens = {name: inspect_rows.summary(part, marks, settings.max_length) for name, part in counted.items()}
    for name, facts in tokens.items():
        _judge_tokens(name, facts, counted[name], marks, settings, documents, problems, warnings)
    texts, more = inspect_texts.manifest(inspect_texts.scan([splits.train, splits.validation, splits.test]), tokenizer)
    warnings += more
    labels, more_problems, more = _labels(splits)
    problems += more_problems
    warnings += more
    duplicates, more = _duplicates(splits)
    warnings += more + _loading(loaded)
    manifest = {
        **_sources(loaded),
        "template": getattr(template, "name", str(template)),
        "split": {**splits.report, "ids": splits.ids()},
        "tokens": tokens,
        "labels": labels,
        "duplicates": duplicates,
        **texts,
    }
    return Inspection(manifest, problems, warnings, preview(rows.get("train", ()), tokenizer, settings.split.seed))


def _documents(splits: Splits) -> bool:
    """Whether rows are plain documents, whose windows need no stop token."""
    first = next(iter(splits.train), None)
    return first is not None and all(turn.role == "text" for turn in first.turns)


def _judge_tokens(
    name: str, facts: dict[str, Any], counted: inspect_rows.Counted, marks: inspect_rows.Marks,
    settings: DataSettings, documents: bool, problems: list[Problem], warnings: list[Problem],
) -> None:  # fmt: skip
    where, total = f"data.{name}", facts["rows"] + facts["cut"].get("untrained", 0)
    lost = facts["dropped"]
    if lost:
        what = f"{lost} of {total + lost} rows do not fit {settings.max_length} tokens and are left out"
        warnings.append(Problem(what, where, "raise data.max_length"))
    if not total:
        return
    if cut := facts["cut"].get("prompt_cut", 0):
        what = f"{cut} of {total} prompts are cut to {settings.max_length} tokens (answers are whole)"
        warnings.append(Problem(what, where, "raise data.max_length"))
    if marks.expected_bos and (doubled := int((counted.bos > 1).sum())):
        first = counted.names[int((counted.bos > 1).argmax())]
        problems.append(Problem(f"{doubled} rows begin with more than one BOS token", first, "one BOS a row"))
    if counted.targets:
        return
    none = facts["without_trained"]
    if none:
        what = f"{none} of {total} rows have no trained token ({none / total:.1%})"
        found = Problem(what, ", ".join(facts["without_trained_rows"][:5]), "raise data.max_length, or mend the rows")
        (problems if none / total > settings.max_unsupervised else warnings).append(found)
    missing = facts.get("stop_missing", 0)
    if not documents and missing:
        what = f"{missing} of {total} rows do not train the stop token: the model would not learn to stop"
        first = ", ".join(facts["stop_not_trained_rows"][:5])
        found = Problem(what, first, "each answer must end with the stop token")
        (problems if missing > 0.5 * total else warnings).append(found)


def _labels(splits: Splits) -> tuple[dict[str, Any], list[Problem], list[Problem]]:
    counts = {name: inspect_labels.names(getattr(splits, name).label_texts()) for name in SIDES}
    if not any(counts.values()):
        return {}, [], []
    others = {name: counts[name] for name in SIDES[1:] if counts[name]}
    problems, warnings = inspect_labels.judge(counts["train"], others)
    number = 0
    listed: list[dict[str, Any]] = []
    if splits.twins is not None:
        number, listed = inspect_labels.conflicts(splits.parts, splits.twins, splits.sides >= 0)
    if number:
        first = ", ".join(f"{item['where']} ({item['label']})" for item in listed[:4])
        warnings.append(Problem(f"{number} rows say the same under different labels", first, "decide which is right"))
    facts = {
        "classes": len(set().union(*counts.values())),
        "balance": {name: dict(part.most_common(200)) for name, part in counts.items()},
        "typos": [
            {"label": rare, "rows": few, "like": common, "like_rows": many}
            for rare, few, common, many in inspect_labels.typos(sum(counts.values(), Counter()))
        ],
        "conflicts": {"rows": number, "listed": listed},
    }
    return facts, problems, warnings


def _duplicates(splits: Splits) -> tuple[dict[str, Any], list[Problem]]:
    """Twins inside every side, and across sides."""
    found, warnings = splits.twins, []
    across = splits.report.get("overlap", {})
    for pair, facts in across.items():
        if not facts["exact"] and splits.report.get("by") == "named group":
            continue  # rows of one pattern about different people or documents: alike by intention
        later, _, earlier = pair.partition(" in ")
        first = "; ".join(f"{item['where']} = {item['twin_where']}" for item in facts["rows"][:3])
        what = f"{facts['exact']} of {facts['of']} {later} rows stand in {earlier} too, {facts['near']} nearly"
        warnings.append(Problem(what, first, f"{later} scores are too good; remove these rows from {earlier}"))
    if found is None:
        return {"across": across}, warnings
    inside = {}
    for side, name in enumerate(SIDES):
        here = np.flatnonzero(splits.sides == side)
        exact = len(here) - len(np.unique(found.wholes[here]))
        near = len(here) - len(np.unique(found.clusters[here]))
        inside[name] = {"rows": len(here), "exact": exact, "near": near}
    if inside["train"]["exact"] > 0.01 * max(1, inside["train"]["rows"]):
        what = f"{inside['train']['exact']} of {inside['train']['rows']} training rows repeat another one"
        warnings.append(Problem(what, "data.train", "repeated rows weigh more; remove them unless that is meant"))
    if inside["train"]["near"] > ALIKE * max(1, inside["train"]["rows"]):
        what = (
            f"{inside['train']['near']} of {inside['train']['rows']} training rows say nearly the same as another one"
        )
        warnings.append(Problem(what, "data.train", "the model sees few different rows; more varied ones help most"))
    clusters = []
    used = splits.sides >= 0
    for rows in twins.members(found.clusters):
        kept = rows[used[rows]]
        if len(kept) > 1:
            shown = [at(splits.parts, int(row)) for row in kept[:5]]
            clusters.append({"rows": len(kept), "first": [{"row": row.id, "where": str(row.source)} for row in shown]})
        if len(clusters) == CLUSTERS:
            break
    return {"inside": inside, "across": across, "clusters": clusters}, warnings


def _loading(loaded: Loaded) -> list[Problem]:
    report, found = loaded.report, []
    for kind, advice in (("repaired", "the data are used as repaired"), ("dropped", "these rows are not used")):
        listed, number = getattr(report, kind), report.counts[kind]
        if number:
            reasons = Counter(f"{item['field']}: {item['reason']}" for item in listed).most_common(2)
            what = f"{number} {kind}: {'; '.join(f'{reason} ({count})' for reason, count in reasons)}"
            found.append(Problem(what, listed[0]["where"] if listed else "", advice))
    return found


def _sources(loaded: Loaded) -> dict[str, Any]:
    report = loaded.report
    return {
        "sources": report.sources,
        "read": report.read,
        "repaired": {"count": report.counts["repaired"], "listed": report.repaired},
        "dropped": {"count": report.counts["dropped"], "listed": report.dropped},
        "notes": report.notes,
    }
