"""What a sweep found: runs in the order of their validation loss, the others paired with the first on the same rows."""

from __future__ import annotations

import math
from typing import Any

from luthier.core import atomic
from luthier.core.rundir import RunDir
from luthier.evaluate.compare import compare, summary
from luthier.sweep.plan import COMPARISON, Plan

SEVERITY = (70, 5, 4, 2, 3, 1)
"""Exit codes from bad to mild: a sweep ends with the worst of its runs."""


def best_validation(run: RunDir) -> float | None:
    """The lowest validation loss of a run. The order of a sweep never looks at the test rows."""
    values = [point[-1] for point in summary(run)["validation"]]
    real = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return min(real, default=None)


def result(plan: Plan, codes: dict[str, int]) -> dict[str, Any]:
    """{"points": [...], "comparison": …}; written into the sweep's directory."""
    lines = []
    for point in plan.points:
        run = plan.run(point)
        metrics = run.read(run.metrics) or {}
        lines.append(
            {
                "run": str(run.path),
                "settings": point.varied,
                "state": run.state,
                "exit_code": codes.get(point.name, (run.read(run.status) or {}).get("exit_code")),
                "validation_loss": best_validation(run) if run.events.is_file() else None,
                "tuned": metrics.get("tuned") or {},
                "health": (run.read(run.health) or {}).get("verdict"),
            }
        )
    lines.sort(key=lambda line: (line["validation_loss"] is None, line["validation_loss"] or 0.0))
    done = [RunDir.open(str(line["run"])) for line in lines if line["state"] == "finished"]
    compared = compare(done) if len(done) > 1 else None
    tests = sum(len(pair["metrics"]) for pair in compared["paired"]) if compared else 0
    found = {"sweep": str(plan.folder), "points": lines, "comparison": compared, "tests": tests}
    atomic.write_json(plan.folder / COMPARISON, found)
    return found


def exit_code(plan: Plan, codes: dict[str, int]) -> int:
    """The worst one; a run that was killed counts as resumable."""
    seen = {3 if code < 0 else code for code in codes.values()}
    seen |= {int((plan.run(point).read(plan.run(point).status) or {}).get("exit_code") or 0) for point in plan.points}
    return next((code for code in SEVERITY if code in seen), 0 if seen <= {0} else 70)
