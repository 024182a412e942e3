"""`luthier health --selftest`: plants every fault on a small model and shows which diagnosis finds it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.core.events import Emit, silent
from luthier.health.run import diagnose

SEEDS = 5


def selftest(
    emit: Emit = silent, seeds: int = SEEDS, faults: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """{"planted", "top", "healthy_runs", "false_alarms", "confusion"} and more.

    planted: names of the planted faults. top: fault → the top diagnosis. confusion: fault → {diagnosis: status} of
    everything that is not ok. false_alarms: healthy runs with a warning or failure, with what they said.
    """
    from luthier.health.plants import healthy, world
    from luthier.health.plants.faults import PLANTS

    chosen = sorted(PLANTS) if faults is None else list(faults)
    top: dict[str, str | None] = {}
    confusion: dict[str, dict[str, str]] = {}
    alarms: list[dict[str, Any]] = []
    with _one_thread(), tempfile.TemporaryDirectory(prefix="luthier-selftest-") as scratch:
        emit("stage", name="selftest.base")
        ground = world.build(Path(scratch) / "base", seed)
        for name in chosen:
            case = PLANTS[name](ground, seed)
            found = diagnose(case.adapted, case.rows, run=case.run, seed=seed)
            top[name] = found.top
            confusion[name] = {one.name: one.status for one in found.findings if one.status != "ok"}
            emit("selftest", planted=name, top=found.top, also=list(confusion[name]))
        runs = [(method, number) for method in healthy.METHODS for number in range(seeds)]
        for method, number in runs:
            case = healthy.run(ground, method, seed + number)
            found = diagnose(case.adapted, case.rows, run=case.run, seed=seed + number)
            said = [one.as_json() for one in found.findings if one.status != "ok"]
            alarms += [{"method": method, "seed": seed + number, "findings": said}] if said else []
            emit("selftest", healthy=method, seed=seed + number, verdict=found.verdict)
    return {
        "planted": chosen,
        "top": top,
        "missed": [name for name in chosen if top[name] != name],
        "healthy_runs": len(runs),
        "false_alarms": len(alarms),
        "alarms": alarms,
        "confusion": confusion,
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside: one thread of torch, so that the numbers hang on the seeds only."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def passed(result: dict[str, Any]) -> bool:
    """Every fault found as the top diagnosis, no healthy run alarmed."""
    return not result["missed"] and not result["false_alarms"]
