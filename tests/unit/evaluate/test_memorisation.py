"""What is measured of trained, held-out, planted and control rows of a tiny model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from luthier.core.types import Row
from luthier.evaluate import memorisation
from luthier.evaluate.losses import row_losses
from luthier.evaluate.overfitting import apart
from luthier.evaluate.overfitting import memorisation as gap_of


def test_the_numbers_are_those_of_the_rows(questions):
    adapted, rows = questions.adapted, [questions.rows[i] for i in range(40)]
    found = memorisation.measure(adapted, rows[:20], rows[20:30], rows[30:33], rows[33:40])
    tuned = row_losses(adapted, rows).means
    with adapted.off():
        base = row_losses(adapted, rows).means
    held = found["held_out"]
    assert held["rows"] == {"training": 20, "held_out": 10}
    assert held["tuned"]["training"] == pytest.approx(tuned[:20].mean(), abs=1e-5)
    assert held["base"]["held_out"] == pytest.approx(base[20:30].mean(), abs=1e-5)
    change = tuned - base
    assert held["gap"] == pytest.approx(change[20:30].mean() - change[:20].mean(), abs=1e-5)
    canaries = found["canaries"]
    assert canaries["most_bits"] == 3.0
    assert [one["id"] for one in canaries["each"]] == [row.id for row in rows[30:33]]
    assert [one["loss"] for one in canaries["each"]] == pytest.approx(tuned[30:33].tolist(), abs=1e-5)
    ranks = [1 + int((tuned[33:40] <= loss).sum()) for loss in tuned[30:33]]
    assert [one["exposure"] for one in canaries["each"]] == pytest.approx([3 - np.log2(rank) for rank in ranks])
    json.dumps(found, allow_nan=False)


def test_canaries_are_no_training_rows_and_long_rows_are_few(questions):
    rows = [questions.rows[i] for i in range(10)]
    kept = memorisation._drawn(rows, {rows[0].id, rows[1].id}, 0, "training")
    assert {row.id for row in kept} == {row.id for row in rows[2:]}
    long = [Row(f"d{i}", np.ones(20_000, np.int32), np.ones(20_000, np.int32)) for i in range(30)]
    assert len(memorisation._drawn(long, set(), 0, "training")) == memorisation.LEAST_ROWS
    many = [Row(f"s{i}", np.ones(4, np.int32), np.ones(4, np.int32)) for i in range(200)]
    assert len(memorisation._drawn(many, set(), 0, "training")) == memorisation.MOST_ROWS
    one, other = ([row.id for row in memorisation._drawn(many, set(), seed, "x")] for seed in (1, 2))
    assert one != other


def test_windows_of_one_document_are_one_row():
    rows = [Row(name, np.ones(2, np.int32), np.ones(2, np.int32)) for name in ("a#0", "a#1", "b#0")]
    base, tuned = memorisation._by_document(rows, (np.array([1.0, 3.0, 5.0]), np.array([1.0, 2.0, 7.0])))
    assert (base.tolist(), tuned.tolist()) == ([2.0, 5.0], [1.5, 7.0])


def test_too_few_rows_give_no_interval_and_no_verdict():
    one, many = np.array([5.0]), np.full(20, 5.0)
    assert apart(one, many) == {"gap": 0.0, "ci95": None}
    assert apart(one[:0], many) == {"gap": None, "ci95": None}
    assert not gap_of((one, one * 0.01), (many, many))["memorised"]
    assert not gap_of((np.full(7, 5.0), np.full(7, 0.01)), (many, many))["memorised"]
    assert gap_of((np.full(8, 5.0), np.full(8, 0.01)), (many, many))["memorised"]
