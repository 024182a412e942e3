"""E1, E10: the loss is Σ token losses / Σ tokens, equal to a float64 reference, whatever the batches."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from luthier.core.types import IGNORE, Row
from luthier.engine.batch import from_rows
from luthier.evaluate import losses
from luthier.evaluate.losses import row_losses, validation_loss


@torch.no_grad()
def reference(adapted, rows):
    """(Σ loss, tokens, right) in float64 from whole logits, row by row."""
    total = count = right = 0.0
    for row in (rows[i] for i in range(len(rows))):
        batch = from_rows([row])
        logits = adapted.base.model.lm_head(adapted.hidden(batch)).double()
        keep = batch.targets != IGNORE
        shares = torch.log_softmax(logits, -1)[keep]
        targets = batch.targets[keep]
        total -= float(shares.gather(1, targets[:, None]).sum())
        right += float((shares.argmax(-1) == targets).sum())
        count += len(targets)
    return total, count, right


def test_e1_loss_equals_a_float64_reference_to_1e_6(questions):
    total, count, right = reference(questions.adapted, questions.rows)
    found = validation_loss(questions.adapted, questions.rows, 256)
    assert found["loss"] == pytest.approx(total / count, abs=1e-6)
    assert found["token_accuracy"] == pytest.approx(right / count)
    assert found["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-5)


def test_e1_loss_is_not_the_mean_of_batch_means(questions):
    found = row_losses(questions.adapted, questions.rows)
    assert abs(found.loss - found.means.mean()) > 1e-3


@pytest.mark.parametrize("size", [1, 64, 100_000])
def test_batch_size_changes_nothing(questions, size):
    found = row_losses(questions.adapted, questions.rows, size)
    whole = row_losses(questions.adapted, questions.rows)
    np.testing.assert_allclose(found.total, whole.total, atol=1e-4)
    np.testing.assert_array_equal(found.count, whole.count)


def test_rows_with_the_same_id_are_all_measured(questions):
    rows = [questions.rows[0], questions.rows[1], questions.rows[0]]
    found = row_losses(questions.adapted, rows)
    assert found.total[0] == pytest.approx(found.total[2], abs=1e-5)
    assert (found.count > 0).all()


def test_positions_add_up_to_the_loss(questions):
    found = row_losses(questions.adapted, questions.rows)
    parts = found.positions()
    assert sum(part["tokens"] for part in parts) == found.count.sum()
    assert sum(part["tokens"] * part["loss"] for part in parts) == pytest.approx(found.total.sum())
    assert parts[0]["from"] % 32 == 0


def test_position_buckets_double():
    found = losses.RowLosses(np.zeros(1), np.zeros(1), np.zeros(1))
    batch = SimpleNamespace(
        segment_of_token=lambda: torch.zeros(6, dtype=torch.int64),
        targets=torch.ones(6, dtype=torch.int64),
        position_ids=torch.tensor([0, 31, 32, 63, 64, 128]),
    )
    losses._add(found, batch, [0], torch.ones(6), torch.ones(6, dtype=torch.bool))
    assert [(p["from"], p["to"], p["tokens"]) for p in found.positions()] == [
        (0, 32, 2), (32, 64, 2), (64, 128, 1), (128, 256, 1),
    ]  # fmt: skip


def test_e10_validation_loss_of_hand_picked_texts(world):
    adapted = world.fresh({"name": "lora", "r": 2}, 0)
    ids = adapted.base.tokenizer("<s> w1 w2 w3 </s>").input_ids
    row = Row("text", np.array(ids, np.int32), np.array(ids, np.int32))
    found = validation_loss(adapted, [row])
    assert found["loss"] == pytest.approx(np.log(len(adapted.base.tokenizer)), abs=0.5)


def test_memory_does_not_grow_with_the_rows_10000(monkeypatch):
    def scores(base, hidden, targets):
        return hidden[:, 0], torch.zeros(len(targets), dtype=torch.bool)

    monkeypatch.setattr(losses.forward, "token_scores", scores)
    adapted = SimpleNamespace(
        eval=lambda: None, base=None, device="cpu", hidden=lambda batch: torch.zeros(len(batch.input_ids), 64)
    )
    ids = np.arange(20, dtype=np.int32)
    peaks = []
    for count in (1_000, 10_000):
        rows = [Row(str(i), ids, ids) for i in range(count)]
        tracemalloc.start()
        assert row_losses(adapted, rows, 2048).count.sum() == 19 * count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 400 * 9_000
