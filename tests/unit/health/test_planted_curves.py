"""Real trainings of a small model, planted to overfit and to end early: each gets its verdict."""

import numpy as np
import pytest

from luthier.core.seeding import generator
from luthier.core.types import IGNORE, Row
from luthier.evaluate.overfitting import diagnose, from_events
from luthier.health.plants.world import FIRST, WORDS, train


def by_chance(rows, seed=0):
    """The same questions with answers that hang on nothing: only the rows themselves can be learnt."""
    made = []
    for row in rows:
        ids = row.input_ids.copy()
        places = np.flatnonzero(row.labels != IGNORE)[:-1]
        ids[places] = generator(seed, "chance", row.id).integers(0, WORDS, len(places)) + FIRST
        made.append(Row(row.id, ids, np.where(row.labels == IGNORE, IGNORE, ids).astype(np.int32)))
    return made


def verdict(world, rows, held_out, **options):
    adapted = world.fresh({"name": "full"}, 0)
    return diagnose(*from_events(train(adapted, rows, seed=0, held_out=held_out, **options)))


@pytest.mark.slow
def test_r2_thirty_epochs_on_fifty_rows_are_found_with_the_step(world):
    rows, held_out = by_chance(world.rows(50, "few")), by_chance(world.rows(48, "other"))
    found = verdict(world, rows, held_out, lr=3e-3, steps=150, batch=10, every=10)
    assert found.verdict in ("overfit", "memorising")
    assert found.since is not None
    assert found.since <= 60
    assert f"stop at step {found.since}" in found.advice


@pytest.mark.slow
def test_r2_a_training_that_ends_while_it_learns_is_underfit(world):
    found = verdict(world, world.rows(200, "much"), world.rows(24, "other"), lr=1e-3, steps=120, batch=10, every=6)
    assert found.verdict == "underfit"
    assert "train longer" in found.advice
