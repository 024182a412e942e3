"""Prefixes of many tasks in one batch, and prefixes that depend on the input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cells as battery
import models as tiny
import numpy as np
import pytest
import torch

from luthier.core.errors import ModelError
from luthier.methods import METHODS

SPEC = {"name": "multitask_prefix", "length": 3, "tasks": ("a", "b", "c")}


def test_mixed_batch_equals_each_prefix_alone(tmp_path: Path) -> None:
    """Three tasks in one batch; each answer equals the answer of that prefix alone, through PEFT's format too."""
    base = tiny.base("llama")
    member = METHODS.parse(SPEC)
    attached = member.attach(base, 0)
    battery.shake(attached)
    rows = battery.rows()
    with torch.no_grad():
        mixed = battery.outputs(base, attached, battery.batch(False, rows))
    start = 0
    for row, task in zip(rows, SPEC["tasks"], strict=True):
        member.single(attached, task, tmp_path / task)
        other = tiny.base("llama")
        alone = METHODS.get("prefix").reload(tmp_path / task, other)
        with torch.no_grad():
            found = battery.outputs(other, alone, battery.batch(False, [row]))
        assert torch.allclose(mixed[start : start + len(found)], found, atol=1e-5)
        start += len(found)


def test_only_the_own_prefix_learns_from_a_row() -> None:
    """A row of task b moves b's table and no other."""
    base = tiny.base("llama")
    attached = METHODS.parse(SPEC).attach(base, 0)
    battery.outputs(base, attached, battery.batch(False, battery.rows()[1:2])).square().sum().backward()
    moved = attached.own["tables"].grad.abs().sum((1, 2)) > 0
    assert moved.tolist() == [False, True, False]


def test_unknown_task_is_refused() -> None:
    """A row of a task without a prefix is an error, not the last prefix."""
    base = tiny.base("llama")
    attached = METHODS.parse(SPEC).attach(base, 0)
    with pytest.raises(ModelError, match="task 7"):
        attached.virtual(battery.batch(False, [dataclasses.replace(battery.rows()[0], task=7)]))


def test_dynamic_prefix_never_sees_the_answer() -> None:
    """Changing answer tokens changes nothing of the prefix; changing the prompt does."""
    base = tiny.base("llama")
    attached = METHODS.parse({"name": "dynamic_prefix", "length": 3, "hidden": 8}).attach(base, 0)
    battery.shake(attached, 0.5)
    row = battery.rows()[0]

    def prefix(position: int) -> torch.Tensor:
        ids = row.input_ids.copy()
        ids[position] = (ids[position] + 11) % 90 + 4
        labels = np.where(row.labels >= 0, ids, row.labels).astype(np.int32)
        changed = dataclasses.replace(row, input_ids=ids, labels=labels)
        return attached.virtual(battery.batch(False, [changed])).prefix[0][0].detach()

    plain = attached.virtual(battery.batch(False, [row])).prefix[0][0].detach()
    assert torch.equal(prefix(7), plain)
    assert torch.equal(prefix(6), plain)
    assert not torch.equal(prefix(5), plain)
    assert not torch.equal(prefix(0), plain)


def test_dynamic_prefix_starts_as_the_plain_one() -> None:
    """The network on the input is zero at the first step."""
    base = tiny.base("llama")
    plain = METHODS.parse({"name": "prefix", "length": 3}).attach(base, 4)
    dynamic = METHODS.parse({"name": "dynamic_prefix", "length": 3}).attach(tiny.base("llama"), 4)
    given = battery.batch(False)
    one, many = plain.virtual(given).prefix[1][0], dynamic.virtual(given).prefix[1][0]
    assert all(torch.equal(one, row) for row in many)
