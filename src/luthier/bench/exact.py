"""Correctness before speed: every exact arm's loss and adapter gradients against high precision, one row at a time.

The reference shares with the engine no more than the model: padded layout of a single row, logits of every token,
torch's own cross entropy, autograd, in float64 (float32 for a bfloat16 base). What plain float32 is itself off by, one
row at a time, is measured beside it, and an arm may be that much further off: 2e-6 on `llama25m`, but 4.5e-4 on
`opt125m` at random weights, where every float32 layout, padded or flat, is off by the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4
HALF_TOLERANCE = 3e-2
"""Where the base is in bfloat16, as in the product's own self-check."""


def reference(folder: Path, objectives: list[str]) -> dict[str, Any]:
    """Write loss and gradients of the checked rows for each objective; {objective: {"rounding": …}}."""
    from safetensors.torch import save_file

    work = json.loads((folder / "work.json").read_text("utf-8"))
    half = work["dtype"] != "float32"
    found: dict[str, Any] = {}
    for objective in objectives:
        loss, gradients = _one_by_one(folder, objective, torch.float32 if half else torch.float64)
        rounding = {"loss_error": 0.0, "gradient_error": 0.0}
        if not half:
            rounding = distance(_one_by_one(folder, objective, torch.float32), (loss, gradients))
        save_file(gradients, folder / f"reference-{objective}.safetensors")
        found[objective] = {
            "loss": loss,
            "rounding": rounding,
            "tolerance": HALF_TOLERANCE if half else TOLERANCE,
        }
    (folder / "reference.json").write_text(json.dumps(found), "utf-8")
    return found


def _one_by_one(folder: Path, objective: str, dtype: torch.dtype) -> tuple[float, dict[str, Tensor]]:
    """Mean loss and its gradients by the weights' names: over trained tokens, or over the rows' own means (`rows`)."""
    from luthier.bench.worker import Bench
    from luthier.engine.batch import from_rows
    from luthier.models import forward

    bench = Bench(folder, {"layout": "padded", **({"adapter": "top"} if objective == "top" else {})})
    bench.load(str(folder / f"probe{bench.ending}"))
    adapted, model = bench.adapted, bench.adapted.base.model
    torch.nn.Module.to(model, dtype)
    adapted.train()
    reduction = "mean" if objective == "rows" else "sum"
    total, count = 0.0, 0
    for row in bench.checked:
        batch = from_rows([row]).to(adapted.device)
        targets = batch.targets
        if objective == "everything":
            targets = torch.cat([batch.input_ids[1:], torch.full_like(targets[:1], -100)])
        logits = forward.logits(adapted.base, adapted.hidden(batch))
        loss = torch.nn.functional.cross_entropy(logits.to(dtype), targets, ignore_index=-100, reduction=reduction)
        loss.backward()
        total += float(loss.detach())
        count += 1 if objective == "rows" else int((targets != -100).sum())
    weights = adapted.parameters_by_name()
    return total / count, {name: w.grad.double().cpu() / count for name, w in weights.items() if w.grad is not None}


def compare(folder: Path, found: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """{"loss_error", "gradient_error", "rounding", "tolerance", "ok"} of one arm's answer to `check`.

    Errors are relative; that of the gradients is the largest of any adapter weight's, each relative to its own size.
    """
    from safetensors.torch import load_file

    facts = json.loads((folder / "reference.json").read_text("utf-8"))[objective]
    wanted = load_file(folder / f"reference-{objective}.safetensors")
    off = distance((found["loss"], load_file(found["gradients"])), (facts["loss"], wanted))
    near = {name: off[name] <= facts["tolerance"] + facts["rounding"][name] for name in off}
    finite = {name: value if math.isfinite(value) else None for name, value in off.items()}
    return {**finite, "rounding": facts["rounding"], "tolerance": facts["tolerance"], "ok": all(near.values())}


def distance(one: tuple[float, Mapping[str, Tensor]], other: tuple[float, Mapping[str, Tensor]]) -> dict[str, float]:
    """Of loss and gradients from the `other`, relative to it; infinite where weights are missing or NaN."""
    loss = abs(one[0] - other[0]) / max(abs(other[0]), 1e-12)
    mine, theirs = ({name.replace(".default.", "."): value for name, value in each[1].items()} for each in (one, other))
    if mine.keys() != theirs.keys():
        return {"loss_error": loss, "gradient_error": math.inf}
    worst = 0.0
    for name, wanted in theirs.items():
        off = float((mine[name].double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))
        worst = max(worst, math.inf if math.isnan(off) else off)
    return {"loss_error": math.inf if math.isnan(loss) else loss, "gradient_error": worst}
