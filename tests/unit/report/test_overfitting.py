"""R2: overfitting is a validation loss that rises while the training loss falls, and never a falling one."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.report.overfitting import judge

FALLING_TRAIN = [(step, 3 * math.exp(-step / 30) + 0.05) for step in range(1, 101)]


def curve(*losses):
    return [(10 * place, loss) for place, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ((3.0, 2.0, 1.0), "underfit"),
        ((3.0, 1.5, 1.2, 1.15, 1.14, 1.14), "healthy"),
        ((3.0, 1.5, 1.2, 1.3, 1.5, 1.8), "memorising"),
        ((1.0, 2.0, 3.0), "memorising"),
        ((2.0, 1.8, 2.05, 1.75, 2.1, 1.8, 2.0), "noisy"),
        ((3.0, 1.5), "unknown"),
    ],
)
def test_known_curves(losses, verdict):
    assert judge(FALLING_TRAIN, curve(*losses)).verdict == verdict


def test_the_step_and_the_numbers_are_told():
    train = [(step, 3 * math.exp(-step / 30) + 0.6) for step in range(1, 101)]
    found = judge(train, curve(3.0, 1.5, 1.2, 1.3, 1.5, 1.8))
    assert (found.verdict, found.since, found.best, found.last) == ("overfit", 20, 1.2, 1.8)


def test_rising_training_loss_is_divergence_not_overfitting():
    train = [(step, 0.5 + step / 50) for step in range(1, 101)]
    assert judge(train, curve(3.0, 1.5, 1.2, 1.5, 2.0, 2.5)).verdict == "diverging"


def test_no_curves():
    assert judge([], []).verdict == "unknown"


@given(st.lists(st.floats(1e-4, 2.0), min_size=3, max_size=40), st.floats(0.001, 5))
def test_a_falling_validation_loss_is_never_overfitting(steps, floor):
    losses, value = [], floor + sum(steps)
    for step in steps:
        losses.append(value)
        value -= step
    assert judge(FALLING_TRAIN, curve(*losses)).verdict in ("healthy", "underfit")


@given(st.integers(0, 10_000), st.floats(0.0, 0.006))
def test_noise_on_a_plateau_is_not_overfitting(seed, noise):
    rng = random.Random(seed)
    losses = [1.0 + 2 * math.exp(-place) + rng.gauss(0, noise) for place in range(12)]
    assert judge(FALLING_TRAIN, curve(*losses)).verdict in ("healthy", "underfit")


@given(st.floats(0.05, 1.0), st.integers(3, 8))
def test_planted_overfitting_is_found(slope, turn):
    losses = [1.0 + 0.3 * abs(turn - place) if place < turn else 1.0 + slope * (place - turn) for place in range(14)]
    found = judge(FALLING_TRAIN, curve(*losses))
    assert found.verdict in ("overfit", "memorising")
    assert found.since == 10 * turn
