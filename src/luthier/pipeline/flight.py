"""What the row flight recorder says at the end of a run: which training rows did what, with file, line and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.events import read_jsonl
from luthier.core.rundir import RunDir
from luthier.core.types import Example
from luthier.data import columns

MOST_BYTES = 64 << 20
"""A longer rows.jsonl is left to `luthier rows`: a report must not take more memory than the training."""
SHOWN = 160


def summary(run: RunDir, training: Sequence[Example]) -> dict[str, Any]:
    """`trajectories.summary` of the run, every row with its source and the beginning of its text; {} where there is
    no log, or it is too long."""
    from luthier.evaluate.trajectories import summary as of_records

    if not run.rows.is_file() or run.rows.stat().st_size > MOST_BYTES:
        return {}
    spiked = [record for record in read_jsonl(run.events) if record.get("kind") == "spike"]
    found = of_records(read_jsonl(run.rows), spiked)
    listed = [row for kind in ("never_learned", "forgotten", "memorised") for row in found[kind]]
    named = {row["id"] for row in listed} | {name for spike in found["spikes"] for name in spike["rows"]}
    known = _known(named, training)
    for row in listed:
        row |= known.get(row["id"].partition("#")[0], {})
    for spike in found["spikes"]:
        spike["rows"] = [{"id": name, **known.get(name.partition("#")[0], {})} for name in spike["rows"]]
    return found


def _known(names: set[str], training: Sequence[Example]) -> dict[str, dict[str, str]]:
    """id → {"source", "text"} of these rows (of a window: of its document)."""
    wanted, held = {name.partition("#")[0] for name in names}, columns.of(training)
    places = {str(name): place for place, name in enumerate(held.column("id")) if name in wanted}
    found = {}
    for name, place in places.items():
        example = held[place]
        text = " → ".join(" ".join(turn.text.split()) for turn in example.turns if turn.text.strip())
        shown = text if len(text) <= SHOWN else text[:SHOWN].rstrip() + " …"
        source = str(example.source) if example.source.line else example.source.file
        found[name] = {"source": source, "text": shown}
    return found
