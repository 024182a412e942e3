"""T6, T9: the model that comes back from a training is the best one, measured again, and again from its file."""

import pytest

from luthier.adapted import load
from luthier.data.batching import BatchPlan
from luthier.evaluate.losses import validation_loss
from luthier.recipe import Recipe
from luthier.train import loop
from luthier.train.checkpoint import Checkpoints

METHODS = {
    "p_tuning": {"name": "p_tuning", "length": 4},
    "prefix with mlp": {"name": "prefix", "length": 4, "mlp": 16},
    "lora": {"name": "lora", "r": 4, "dropout": 0.1},
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_t6_t9_the_restored_best_is_the_recorded_best(world, tmp_path, method):
    rows, held_out = world.rows(12, "few"), world.rows(12, "other")
    adapted = world.fresh(method, 0)
    settings = Recipe.parse("train: {evaluate_every: 2, save_every: 2, early_stop: null}").train
    early, recorded = [], []

    def validate():
        """Weights that come later than the second validation are called worse: the best ones are not the last."""
        adapted.eval()
        found = validation_loss(adapted, held_out)["loss"]
        weights = sum(float(weight.detach().double().abs().sum()) for weight in adapted.parameters_by_name().values())
        if len(early) < 2:
            early.append(weights)
        recorded.append(found)
        return {"loss": found if weights in early else found + 10.0}

    state = loop.fit(
        adapted,
        BatchPlan(rows, batch_size=4, seed=0),
        adapted.loss,
        settings=settings,
        lr=5e-2,
        total_steps=8,
        checkpoints=Checkpoints(tmp_path / "checkpoints"),
        validate=validate,
        seed=0,
    )
    best = state.best_metric
    assert state.best_step < 8
    assert best in recorded[:2]
    assert abs(recorded[3] - best) > 1e-4, "the last weights are other weights"
    adapted.eval()
    assert validation_loss(adapted, held_out)["loss"] == pytest.approx(best, abs=1e-6)
    adapted.save(tmp_path / "adapter")
    again = load(tmp_path / "adapter", device="cpu")
    assert validation_loss(again, held_out)["loss"] == pytest.approx(best, abs=1e-5)
