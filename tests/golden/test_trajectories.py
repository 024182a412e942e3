"""Golden trajectories on the built-in base: how a step is cut into parts must not show in any loss or weight."""

import pytest
import torch

from luthier.core.events import Emitter
from luthier.core.seeding import seed_everything
from luthier.pipeline import learn, prepare
from luthier.recipe import Recipe
from luthier.tasks import TASKS
from luthier.train import loop

STEPS = 12
RECIPE = """
data: {train: "builtin:instruct", max_rows: 160, max_length: 64}
method: {name: lora, r: 4, dropout: 0.0}
train: {steps: 12, batch_size: 8, lr: 3e-3, early_stop: null, evaluate_every: never, save_every: never, threads: 1}
"""


@pytest.fixture(scope="module")
def made():
    """Rows, encoded once."""
    torch.set_num_threads(1)
    recipe = Recipe.parse(RECIPE)
    task = TASKS.parse(recipe.task)
    loaded, splits = prepare.read(recipe, task)
    base = prepare.load_model(recipe, task, (), "single")
    return task, prepare.encode(recipe, loaded, splits, task, base, (), "single", None)


def trajectory(made, *overrides, layout=None, steps=STEPS):
    """(loss of every step, final weights)."""
    task, data = made
    recipe = Recipe.parse(RECIPE, *overrides)
    seed_everything(recipe.seed)
    base = prepare.load_model(recipe, task, (), "single")
    adapted = learn.adapt(recipe, base, task, data, Emitter())
    adapted.layout = layout or adapted.layout
    plan = learn.batches(recipe, data.rows["train"])
    losses = []

    def note(record):
        if record["kind"] == "train":
            losses.append(record["loss"])

    loop.fit(
        adapted, plan, adapted.loss, settings=recipe.train, lr=3e-3, total_steps=steps, emit=Emitter(note),
        seed=recipe.seed,
    )  # fmt: skip
    return torch.tensor(losses), {
        name: weight.detach().clone() for name, weight in adapted.parameters_by_name().items()
    }


@pytest.fixture(scope="module")
def golden(made):
    return trajectory(made)


def same(one, other, tolerance, steps=STEPS):
    assert len(one[0]) == steps
    assert torch.allclose(one[0], other[0], atol=tolerance, rtol=0), (one[0] - other[0]).abs().max()
    for name, weight in one[1].items():
        assert torch.allclose(weight, other[1][name], atol=10 * tolerance), name


def test_the_loss_falls(golden):
    assert golden[0][-3:].mean() < golden[0][:3].mean() - 0.3


def test_batch_of_eight_is_eight_of_one_accumulated(made, golden):
    same(golden, trajectory(made, "train.batch_size=1", "train.accumulate=8"), 1e-6)


def test_padded_is_flat(made, golden):
    same(golden, trajectory(made, layout="padded"), 1e-5)


@pytest.mark.slow
def test_fifty_steps_packed_are_fifty_steps_padded(made):
    """Also with the trie: rounding does not grow into another training."""
    flat = trajectory(made, "train.steps=50", steps=50)
    assert flat[0][-5:].mean() < flat[0][:5].mean() - 1.0
    same(flat, trajectory(made, "train.steps=50", layout="padded", steps=50), 1e-4, 50)
    shared = trajectory(made, "train.steps=50", "train.shared_prefix=true", steps=50)
    assert not torch.equal(shared[0], flat[0])
    same(flat, shared, 1e-4, 50)


def test_padded_is_one_by_one(made):
    padded = trajectory(made, layout="padded")
    same(padded, trajectory(made, "train.batch_size=1", "train.accumulate=8", layout="padded"), 1e-6)


def test_the_same_seed_twice_is_bitwise_the_same(made, golden):
    same(golden, trajectory(made), 0.0)


def test_another_seed_is_another_trajectory(made, golden):
    assert not torch.allclose(golden[0], trajectory(made, "seed=43")[0], atol=1e-3)
