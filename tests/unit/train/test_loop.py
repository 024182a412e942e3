"""The loop over a ten-line toy: accumulation, resume to the bit, divergence, early stopping, memory."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from luthier.core.errors import Diverged, Interrupted
from luthier.core.events import TIMING, Emitter, JsonLines, read_jsonl
from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.train import early_stop, loop, optim
from luthier.train.checkpoint import Checkpoints
from luthier.train.loss import LossOutput
from luthier.train.settings import EarlyStopSettings, ScheduleSettings, TrainSettings


class Toy:
    """Embedding → dropout → linear, predicting the next token."""

    def __init__(self, seed=0, dropout=0.1):
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Embedding(16, 8), nn.Dropout(dropout), nn.Linear(8, 16))

    def parameters_by_name(self):
        return dict(self.net.named_parameters())

    def state(self):
        return {name: value.clone() for name, value in self.net.state_dict().items()}

    def load_state(self, state):
        self.net.load_state_dict(state)

    def train(self, mode=True):
        self.net.train(mode)

    def eval(self):
        self.net.eval()

    def loss(self, batch):
        logits = self.net(batch.input_ids)
        each = nn.functional.cross_entropy(logits, batch.targets, reduction="none", ignore_index=-100)
        rows = batch.segment_of_token()
        sums = torch.zeros(len(batch.row_ids)).index_add(0, rows, each.detach())
        counts = torch.zeros(len(batch.row_ids)).index_add(0, rows, (batch.targets != -100).float())
        return LossOutput(each.sum(), batch.supervised, sums, counts)


class Source:
    """Rows in groups of 4, as one batch or as `parts` micro-batches."""

    def __init__(self, parts=1):
        made = np.random.default_rng(0)
        self.rows = []
        for index in range(16):
            ids = made.integers(0, 16, made.integers(3, 9)).astype(np.int32)
            self.rows.append(Row(f"r{index}", ids, ids.copy()))
        self.parts = parts

    def steps(self, epoch):
        return 4

    def groups(self, epoch, start=0):
        order = np.random.default_rng(epoch).permutation(16)
        for index in range(start, 4):
            rows = [self.rows[i] for i in order[index * 4 : index * 4 + 4]]
            size = 4 // self.parts
            yield [from_rows(rows[i : i + size]) for i in range(0, 4, size)]


def fit(folder=None, parts=1, steps=12, toy=None, emit=None, loss=None, **settings):
    toy = toy or Toy()
    events = []
    options = {"save_every": 2, "evaluate_every": 4, "early_stop": None, **settings}
    logs = {}
    emitter = Emitter(lambda record: events.append(record))
    if folder:
        logs["events"] = JsonLines(folder / "events.jsonl")
        emitter.listeners.append(logs["events"])
    points = Checkpoints(folder / "checkpoints", logs=logs, emit=emitter) if folder else None

    def validate():
        toy.eval()
        with torch.no_grad():
            made = [toy.loss(batch) for group in Source().groups(99) for batch in group]
        return {"loss": sum(float(m.total) for m in made) / sum(m.count for m in made)}

    if emit:
        emitter.listeners.append(emit)
    state = loop.fit(
        toy,
        Source(parts),
        loss or toy.loss,
        settings=TrainSettings(**options),
        lr=0.05,
        total_steps=steps,
        checkpoints=points,
        validate=validate,
        emit=emitter,
        resume=True,
        seed=1,
    )
    for log in logs.values():
        log.close()
    return toy, state, events


def log_of(folder):
    return [{k: v for k, v in record.items() if k not in TIMING} for record in read_jsonl(folder / "events.jsonl")]


def test_c7_accumulated_equals_one_batch():
    whole, parts = (fit(parts=p, toy=Toy(dropout=0.0))[0].state() for p in (1, 4))
    for name in whole:
        assert torch.allclose(whole[name], parts[name], atol=1e-6)


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 8, 11])
def test_t8_a_resumed_run_is_the_undisturbed_one_to_the_bit(tmp_path, stop_at):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, _, _ = fit(tmp_path / "a")

    def cut(record):
        if record["kind"] == "train" and record["step"] == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", emit=cut)
    second, state, _ = fit(tmp_path / "b")
    assert all(torch.equal(first.state()[name], second.state()[name]) for name in first.state())
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")
    assert state.finished


def test_d7_a_finished_run_is_left_alone(tmp_path):
    fit(tmp_path)
    first = log_of(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    _, state, events = fit(tmp_path)
    assert [record["kind"] for record in events] == ["finished"]
    assert state.step == 12
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in before if after.get(path) != before[path]} <= {"events.jsonl"}
    assert len(log_of(tmp_path)) == len(first)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 5])
def test_d1_divergence_stops_before_the_step_and_names_the_rows(tmp_path, value, step):
    toy, calls = Toy(), []

    def poisoned(batch):
        calls.append(1)
        made = toy.loss(batch)
        if len(calls) == step:
            made.row_losses[1] = value
            return LossOutput(made.total * value, made.count, made.row_losses, made.row_counts)
        return made

    with pytest.raises(Diverged) as caught:
        fit(tmp_path, toy=toy, loss=poisoned)
    assert caught.value.exit_code == 4
    assert f"step {step}" in str(caught.value)
    assert "rows r" in str(caught.value)
    assert all(bool(torch.isfinite(weight).all()) for weight in toy.state().values())
    for saved in Checkpoints(tmp_path / "checkpoints").steps():
        loaded = Checkpoints(tmp_path / "checkpoints").load(saved)
        assert all(bool(torch.isfinite(weight).all()) for weight in loaded.weights.values())


def test_d4_memory_running_out_changes_nothing_but_the_parts():
    plain, _, _ = fit(toy=Toy(dropout=0.0))
    toy, failed = Toy(dropout=0.0), []

    def short(batch):
        if len(batch.row_ids) > 1 and len(failed) < 2:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return toy.loss(batch)

    _, state, events = fit(toy=toy, loss=short)
    assert state.split == 4
    assert any("out of memory" in str(record.get("what")) for record in events)
    for name, weight in plain.state().items():
        assert torch.allclose(weight, toy.state()[name], atol=1e-6)


def test_e10_a_signal_saves_and_the_next_run_goes_on(tmp_path, monkeypatch):
    from luthier.core import signals

    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, _, _ = fit(tmp_path / "a")
    steps = []
    monkeypatch.setattr(signals, "asked", lambda: "SIGTERM" if len(steps) == 3 else None)
    with pytest.raises(Interrupted) as caught:
        fit(tmp_path / "b", emit=lambda record: steps.append(1) if record["kind"] == "train" else None)
    assert caught.value.exit_code == 3
    monkeypatch.undo()
    second, _, _ = fit(tmp_path / "b")
    assert all(torch.equal(first.state()[name], second.state()[name]) for name in first.state())


def test_e6_a_broken_checkpoint_is_skipped_aloud(tmp_path):
    fit(tmp_path, steps=8)
    points = Checkpoints(tmp_path / "checkpoints")
    newest = points.path(points.steps()[-1]) / "weights.safetensors"
    data = bytearray(newest.read_bytes())
    data[-3] ^= 4
    newest.write_bytes(bytes(data))
    found, problems = Checkpoints(tmp_path / "checkpoints").latest()
    assert found.step == points.steps()[-2]
    assert "sha256" in problems[0]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_e7_a_checkpoint_without_one_file_is_no_checkpoint(tmp_path, name):
    fit(tmp_path, steps=8)
    points = Checkpoints(tmp_path / "checkpoints")
    (points.path(points.steps()[-1]) / name).unlink()
    assert points.latest()[0].step == points.steps()[-2]


def test_e8_rotation_keeps_best_and_newest(tmp_path):
    points = Checkpoints(tmp_path, keep=2)
    for step in range(1, 9):
        points.save(step, {"w": torch.ones(2)}, {}, {})
        if step == 2:
            points.mark_best(2, 0.1)
    assert points.best_step() == 2
    assert points.steps() == [2, 7, 8]


def test_t5_early_stopping_says_when_and_why():
    settings = EarlyStopSettings(patience=2, min_delta=0.01)
    assert not early_stop.judge([3, 2, 1], settings).stop
    verdict = early_stop.judge([3, 2, 2.1, 1.995], settings)
    assert verdict.stop
    assert verdict.best == 3, "the best is the lowest, however small the gain; patience asks for min_delta"
    assert "2 evaluations" in verdict.reason
    assert early_stop.judge([0.5, 0.4, 0.3], settings, "accuracy").stop


def test_t3_decay_spares_norms_and_biases():
    net = nn.ModuleDict({"norm": nn.LayerNorm(4), "linear": nn.Linear(4, 4)})
    made = optim.groups(dict(net.named_parameters()), 1e-3, 0.1)
    decayed = {id(p) for group in made if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(net["linear"].weight)}


def test_t2_cosine_with_warmup():
    schedule = ScheduleSettings(name="cosine", warmup=0.1, floor=0.0)
    rates = [optim.rate(schedule, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert max(rates) == 1.0
    assert rates[-1] < 0.001
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_t7_the_mean_loss_is_over_the_whole_run(tmp_path):
    _, state, events = fit(tmp_path)
    steps = [record for record in events if record["kind"] == "train"]
    expected = sum(r["loss"] * r["supervised_tokens"] for r in steps) / sum(r["supervised_tokens"] for r in steps)
    assert state.mean_loss == pytest.approx(expected)
    assert json.loads(json.dumps(state.as_json()))["step"] == 12


def test_memory_is_told_when_no_file_can_be_opened(monkeypatch):
    """RLIMIT_NOFILE reached: a progress line must not end a training."""
    import psutil

    from luthier.train import loop

    now = loop.memory_mb()

    def refused(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(psutil, "Process", refused)
    assert loop.memory_mb() >= 0.9 * now
