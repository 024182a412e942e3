"""Real trainings of a small model, planted to overfit and to end early: each gets its verdict."""

import numpy as np
import pytest

from luthier.core.seeding import generator
from luthier.core.types import IGNORE, Row
from luthier.evaluate.overfitting import diagnose, from_events, histories
from luthier.health.plants.world import FIRST, WORDS, train
from luthier.report.overfitting import judge


def by_chance(rows, seed=0):
    """The same questions with answers that hang on nothing: only the rows themselves can be learnt."""
    made = []
    for row in rows:
        ids = row.input_ids.copy()
        places = np.flatnonzero(row.labels != IGNORE)[:-1]
        ids[places] = generator(seed, "chance", row.id).integers(0, WORDS, len(places)) + FIRST
        made.append(Row(row.id, ids, np.where(row.labels == IGNORE, IGNORE, ids).astype(np.int32)))
    return made


def told(world, rows, held_out, **options):
    """The verdict of the curves with the losses of single validation rows, and the events."""
    events = train(world.fresh({"name": "full"}, 0), rows, seed=options.pop("seed", 0), held_out=held_out, **options)
    named = {"row_losses": "loss", "row_units": "units", "step": "step"}
    kept = [{named[key]: one[key] for key in named} for one in events if one["kind"] == "validate"]
    return diagnose(*from_events(events), histories(kept)), events


def verdict(*arguments, **options):
    return told(*arguments, **options)[0]


@pytest.mark.slow
def test_r2_thirty_epochs_on_fifty_rows_are_found_with_the_step(world):
    rows, held_out = by_chance(world.rows(50, "few")), by_chance(world.rows(48, "other"))
    found = verdict(world, rows, held_out, lr=3e-3, steps=150, batch=10, every=10)
    assert found.verdict in ("overfit", "memorising")
    assert found.since is not None
    assert found.since <= 60
    assert found.band[0] > 0.1
    assert f"stop at step {found.since}" in found.advice


@pytest.mark.slow
def test_r2_a_training_that_ends_while_it_learns_is_underfit(world):
    found = verdict(world, world.rows(200, "much"), world.rows(24, "other"), lr=1e-3, steps=120, batch=10, every=6)
    assert found.verdict == "underfit"
    assert "train longer" in found.advice


@pytest.mark.slow
def test_r2_a_lucky_minimum_on_four_rows_is_no_overfitting(world):
    rows, held_out = by_chance(world.rows(1200, "n"), 1), by_chance(world.rows(4, "o"), 9)
    found, events = told(world, rows, held_out, seed=1, lr=1e-2, steps=96, batch=10, every=6)
    assert found.band[0] <= 0
    assert found.verdict in ("noisy", "healthy")
    if judge(*from_events(events)).verdict in ("overfit", "memorising"):  # what the curve alone would have said
        assert found.verdict == "noisy"


@pytest.mark.slow
def test_r2_no_falling_part_of_a_real_curve_is_ever_flagged(world):
    rows, held_out = world.rows(200, "much"), world.rows(24, "other")
    _, events = told(world, rows, held_out, lr=1e-3, steps=60, batch=10, every=6)
    training, validation = from_events(events)
    falling = 0
    for end in range(1, len(validation) + 1):
        if end > 1 and validation[end - 1][1] > validation[end - 2][1]:
            break
        until = validation[end - 1][0]
        found = diagnose([point for point in training if point[0] <= until], validation[:end])
        assert found.verdict in ("unknown", "healthy", "underfit")
        falling = end
    assert falling >= 5
