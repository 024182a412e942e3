"""`lr: probe`: short trainings on the real rows, each from the same start, and the rate whose validation loss is least.

The rates lie around the method's default. What was found is kept in the run directory, so that a resumed run uses it.
"""

from __future__ import annotations

import math
from typing import Any

from luthier.core import atomic
from luthier.core.errors import Diverged
from luthier.core.events import Emitter
from luthier.core.rundir import RunDir
from luthier.pipeline.prepare import Data
from luthier.recipe import Recipe

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
STEPS = 20
"""Of one short training, warm-up and decay included; the share of a real training that it stands for is small, so
a tie goes to the lower rate."""


def best_rate(recipe: Recipe, adapted: Any, plan: Any, data: Data, default: float, run: RunDir, emit: Emitter) -> float:
    """The rate with the least validation loss after STEPS steps; `default` × FACTORS are tried."""
    kept = run.path / "lr_probe.json"
    known = run.read(kept)
    if known:
        return float(known["lr"])
    start = adapted.state()
    tried: list[dict[str, Any]] = []
    for factor in FACTORS:
        lr = default * factor
        tried.append({"lr": lr, "loss": _loss_after(recipe, adapted, plan, data, lr)})
        adapted.load_state(start)
        emit("lr_probe", **tried[-1])
    finite = [one for one in tried if one["loss"] is not None]
    if not finite:
        raise Diverged("no learning rate of the probe gave a finite loss", remedy="set train.lr, and check the data")
    lr = min(finite, key=lambda one: (one["loss"], one["lr"]))["lr"]
    atomic.write_json(kept, {"lr": lr, "steps": STEPS, "tried": tried})
    return float(lr)


def _loss_after(recipe: Recipe, adapted: Any, plan: Any, data: Data, lr: float) -> float | None:
    """Validation loss after a short training at this rate; None where it diverged."""
    from luthier.core.seeding import seed_everything
    from luthier.evaluate.losses import validation_loss
    from luthier.train import loop

    changes = {"epochs": None, "steps": STEPS, "early_stop": None, "save_every": "never", "evaluate_every": "never"}
    settings = recipe.train.model_copy(update=changes)
    factors = getattr(adapted.attached, "lr_factors", None)
    seed_everything(recipe.seed)
    try:
        loop.fit(
            adapted,
            plan,
            adapted.loss,
            settings=settings,
            lr=lr,
            total_steps=STEPS,
            seed=recipe.seed,
            multipliers=factors,
        )
    except Diverged:
        return None
    adapted.eval()
    loss = float(validation_loss(adapted, data.rows["validation"], recipe.evaluate.batch_tokens)["loss"])
    seed_everything(recipe.seed)
    return loss if math.isfinite(loss) else None
