"""Holds every threshold of the health diagnoses against healthy runs of every method.

    python benchmarks/calibrate_health.py [--seeds 5] [--out benchmarks/health_calibration.json]

Writes, for every method and diagnosis, the smallest and largest value that a healthy run reached, beside the
threshold; exits 1 when any healthy run warned or failed. Numbers hang on the seeds only (one thread).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from luthier.health import thresholds
from luthier.health.plants import healthy, world
from luthier.health.run import diagnose

LAYER_NUMBERS = (
    "relative_strength",
    "strength_p95",
    "activation_entropy",
    "activation_rate",
    "dead_units",
    "weight_norm_ratio",
    "spectral_ratio",
    "stable_rank",
    "effective_rank",
    "prefix_mass",
    "gradient_norm",
)


def main() -> int:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("health_calibration.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    methods = {**healthy.METHODS, **healthy.MORE}
    found: dict[str, dict[str, Any]] = {}
    alarms: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        ground = world.build(Path(scratch) / "base")
        for method in methods:
            start = time.time()
            runs = [_one(ground, method, seed, alarms) for seed in range(given.seeds)]
            found[method] = _summary(runs)
            print(f"{method}: {len(runs)} runs, {time.time() - start:.0f} s")
    limits = {name: getattr(thresholds, name) for name in dir(thresholds) if name.isupper()}
    record = {"seeds": given.seeds, "runs": given.seeds * len(methods), "thresholds": limits, "methods": found}
    given.out.write_text(json.dumps({**record, "alarms": alarms}, indent=1) + "\n", "utf-8")
    print(f"{record['runs']} healthy runs, {len(alarms)} alarms")
    return 1 if alarms else 0


def _one(ground: world.World, method: str, seed: int, alarms: list[dict[str, Any]]) -> dict[str, list[float]]:
    case = healthy.run(ground, method, seed)
    health = diagnose(case.adapted, case.rows, run=case.run, seed=seed)
    for finding in health.findings:
        if finding.status != "ok":
            alarms.append({"method": method, "seed": seed, **finding.as_json()})
    values = {finding.name: [finding.value] for finding in health.findings if finding.value is not None}
    for name in LAYER_NUMBERS:
        known = [value for one in health.layers if (value := getattr(one, name)) is not None]
        if known:
            values[f"layers.{name}"] = known
    return values


def _summary(runs: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """name → [smallest, largest] over all runs and layers, to four digits."""
    names = sorted({name for run in runs for name in run})
    every = {name: [value for run in runs for value in run.get(name, ())] for name in names}
    return {name: [float(f"{min(values):.4g}"), float(f"{max(values):.4g}")] for name, values in every.items()}


if __name__ == "__main__":
    raise SystemExit(main())
