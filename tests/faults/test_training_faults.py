"""FAULTS.md D and the rest of E: divergence, spikes, memory, threads; disks, versions, missing files, budgets."""

import errno
import json
import math
import os
import shutil
import signal
import time

import pytest
import torch
from toy_run import STEPS, Toy, finish, in_child, outcome, train, wait

from luthier.core import atomic
from luthier.core.errors import Diverged, LuthierError, OutOfResource
from luthier.core.events import read_jsonl
from luthier.core.resources import told_as_resource
from luthier.train import checkpoint, keeping
from luthier.train.checkpoint import FILES, Checkpoints
from luthier.train.loss import LossOutput


def finite_on_disk(folder):
    points = Checkpoints(folder / "checkpoints")
    loaded = [points.load(step) for step in points.steps()]
    tensors = [tensor for one in loaded for group in (one.weights, one.optimizer) for tensor in group.values()]
    return all(bool(torch.isfinite(tensor.float()).all()) for tensor in tensors)


def diverging(folder, call, poison):
    """A run whose `call`-th loss is spoiled; returns the error."""
    toy, calls = Toy(), []

    def loss(batch):
        calls.append(1)
        made = toy.loss(batch)
        return poison(toy, made) if len(calls) == call else made

    with pytest.raises(Diverged) as caught:
        train(folder, toy=toy, loss=loss, evaluate_every="never", early_stop=None)
    return caught.value, toy


def not_finite(value):
    def poison(toy, made):
        return LossOutput(made.total * value, made.count, made.row_losses * value, made.row_counts)

    return poison


@pytest.mark.parametrize("step", range(1, 11))
def test_fault_D1_a_loss_that_is_not_finite(tmp_path, step):
    error, toy = diverging(tmp_path, 2 * step - 1, not_finite([math.nan, math.inf][step % 2]))
    assert error.exit_code == 4
    assert f"step {step}" in str(error)
    assert "rows r" in str(error)
    assert all(bool(torch.isfinite(weight).all()) for weight in toy.state().values())
    assert finite_on_disk(tmp_path)
    assert not (tmp_path / "adapter").exists()


class Exploding(torch.autograd.Function):
    """Forward is harmless; the gradient is infinite."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.inf


@pytest.mark.parametrize("step", range(1, 11))
def test_fault_D2_a_gradient_or_weight_that_is_not_finite(tmp_path, step):
    def gradient(toy, made):
        return LossOutput(Exploding.apply(made.total), made.count, made.row_losses, made.row_counts)

    def weight(toy, made):
        toy.net[2].weight.data[0, 0] = math.inf
        return made

    error, _ = diverging(tmp_path, 2 * step - 1, gradient if step % 2 else weight)
    assert error.exit_code == 4
    assert "gradient" in str(error) or "weight" in str(error)
    assert finite_on_disk(tmp_path)


POISON = 22
"""The step after which row r7 is poisonous."""


def poisoned(folder, policy, events, look=None):
    """A run of 30 steps with a poisonous row; (state, what `look(toy)` gave after each step). `events` is filled."""
    import toy_run

    toy, seen, looks = Toy(), {"step": 0}, {}

    def loss(batch):
        made = toy.loss(batch)
        if "r7" in batch.row_ids and seen["step"] >= POISON:
            factor = torch.ones(len(batch.row_ids))
            factor[list(batch.row_ids).index("r7")] = 40
            rows = made.row_losses * factor
            return LossOutput(made.total * float(rows.sum() / made.row_losses.sum()), made.count, rows, made.row_counts)
        return made

    def listen(record):
        events.append(record)
        if record["kind"] == "train":
            seen["step"] = record["step"]
            looks[record["step"]] = look(toy) if look else None

    before, toy_run.STEPS = toy_run.STEPS, 30
    options = {"spikes": policy, "save_every": 5, "evaluate_every": "never", "early_stop": None}
    try:
        _, state = train(folder, toy=toy, loss=loss, listen=listen, **options)
    finally:
        toy_run.STEPS = before
    return state, looks


@pytest.mark.parametrize("policy", ["record", "stop", "rollback", "skip_row"])
def test_fault_D3_a_planted_poison_row_is_found(tmp_path, policy):
    events = []
    if policy == "stop":
        with pytest.raises(Diverged, match="r7") as caught:
            poisoned(tmp_path, policy, events)
        assert caught.value.exit_code == 4
        last = max(record["step"] for record in events if record["kind"] == "train")
        assert Checkpoints(tmp_path / "checkpoints").latest()[0].step == last - last % 5, "the last good one is kept"
    else:
        state, _ = poisoned(tmp_path, policy, events)
        assert state.finished
        assert state.skipped == (["r7"] if policy == "skip_row" else [])
    spikes = [record for record in events if record["kind"] == "spike"]
    assert spikes
    assert spikes[0]["rows"][0] == "r7"
    assert spikes[0]["policy"] == policy


def weights_of(toy):
    return {name: tensor.clone() for name, tensor in toy.state().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_fault_D3_a_rollback_is_the_last_regular_checkpoint_bit_for_bit(tmp_path):
    events = []
    _, looks = poisoned(tmp_path, "rollback", events, weights_of)
    at = next(record["step"] for record in events if record["kind"] == "spike")
    anchor = at - 1 - (at - 1) % 5
    assert equal(looks[at], looks[anchor])
    assert not equal(looks[at - 1], looks[anchor]) or at - 1 == anchor


def test_fault_D3_record_applies_the_step_and_skip_row_leaves_the_row_out_from_then_on(tmp_path):
    events, skipped = [], []
    _, looks = poisoned(tmp_path / "record", "record", events, weights_of)
    at = next(record["step"] for record in events if record["kind"] == "spike")
    assert not equal(looks[at], looks[at - 1])
    poisoned(tmp_path / "skip", "skip_row", skipped)
    rows = read_jsonl(tmp_path / "skip" / "rows.jsonl")
    assert any("r7" in record["rows"] for record in rows if record["step"] < at)
    assert not any("r7" in record["rows"] for record in rows if record["step"] >= at)
    assert [record["kind"] for record in skipped].count("spike") == 1


def test_fault_D4_out_of_memory_is_told_when_one_row_does_not_fit(tmp_path):
    def loss(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfResource, match="one row does not fit") as caught:
        train(tmp_path, loss=loss, evaluate_every="never", early_stop=None)
    assert caught.value.exit_code == 5


def test_fault_D7_an_early_stopped_run_is_not_trained_on(tmp_path):
    options = {"early_stop": {"patience": 1, "min_delta": 10.0}, "evaluate_every": 2}
    assert wait(in_child(lambda: train(tmp_path, **options))) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    steps = [record["step"] for record in read_jsonl(tmp_path / "events.jsonl") if record["kind"] == "train"]
    assert max(steps) < STEPS
    assert wait(in_child(lambda: train(tmp_path, **options))) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = [record["step"] for record in read_jsonl(tmp_path / "events.jsonl") if record["kind"] == "train"]
    assert again == steps


def test_fault_D8_the_log_has_each_step_once_after_a_kill(tmp_path, undisturbed):
    def dying(record):
        if record["kind"] == "train" and record["step"] == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait(in_child(lambda: train(tmp_path, listen=dying))) == -9
    finish(lambda: train(tmp_path))
    found = outcome(tmp_path)
    assert found["events"] == undisturbed()["events"]
    assert found["rows"] == undisturbed()["rows"]
    last = json.loads(found["events"])[-1]
    steps = [record for record in json.loads(found["events"]) if record["kind"] == "train"]
    whole = sum(r["loss"] * r["supervised_tokens"] for r in steps) / sum(r["supervised_tokens"] for r in steps)
    assert last["kind"] == "finished"
    assert last["mean_loss"] == pytest.approx(whole)


def test_fault_D9_another_thread_count_or_version_warns(tmp_path, monkeypatch):
    def stop(record):
        if record["kind"] == "train" and record["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    assert wait(in_child(lambda: train(tmp_path, listen=stop))) == 3

    def other():
        keeping.environment = lambda: {"threads": 7, "torch": "9.9", "device": "cpu"}
        train(tmp_path)

    assert wait(in_child(other)) == 0
    told = [record["what"] for record in read_jsonl(tmp_path / "events.jsonl") if record["kind"] == "warning"]
    assert any("threads was 1, is now 7" in what for what in told)
    assert any("torch was" in what for what in told)


# ---- E
CODES = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE,
         errno.EFBIG, errno.ENOMEM, errno.ENOENT, errno.ESTALE]  # fmt: skip


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_fault_E5_a_disk_that_refuses_is_exit_5_and_loses_nothing(tmp_path, undisturbed, code, call):
    def work():
        original, count = getattr(os, call), [0]

        def failing(*args):
            count[0] += 1
            if count[0] > 12:
                raise OSError(code, os.strerror(code))
            return original(*args)

        setattr(os, call, failing)
        train(tmp_path)

    began = time.monotonic()
    assert wait(in_child(work)) == 5
    assert time.monotonic() - began < 30
    assert not (tmp_path / "adapter").exists()
    finish(lambda: train(tmp_path))
    assert outcome(tmp_path) == undisturbed()


def test_fault_E9_what_torch_says_of_a_full_table_is_told_with_the_limit(tmp_path):
    """Its errors are RuntimeErrors; a number in brackets that is no errno of those words is left alone."""
    words = "unable to open file </run/weights.safetensors> in read-only mode: Too many open files (24)"
    with pytest.raises(OutOfResource, match=r"Too many open files .*RLIMIT_NOFILE is"), told_as_resource(tmp_path):
        raise RuntimeError(words)
    for other in ("a shape: expected something else (24)", "", "odd: Too many open files (2)"):
        with pytest.raises(RuntimeError), told_as_resource(tmp_path):
            raise RuntimeError(other)


def test_fault_E5_a_run_directory_deleted_under_the_run_is_exit_5(tmp_path):
    """Its logs would go on into nowhere, and checkpoints into a new folder of the same name."""
    folder = tmp_path / "run"
    folder.mkdir()

    def delete(record):
        if record["kind"] == "train" and record["step"] == 5:
            while folder.exists():  # a checkpoint is being written into it meanwhile
                shutil.rmtree(folder, ignore_errors=True)

    assert wait(in_child(lambda: train(folder, listen=delete))) == 5
    assert not (folder / "adapter").exists()


def test_fault_E5_words_name_the_place_the_need_and_the_cause(tmp_path):
    with pytest.raises(OutOfResource) as caught, told_as_resource(tmp_path, 5_000_000):
        raise OSError(errno.ENOSPC, "x")
    assert "5.0 MB needed" in str(caught.value)
    assert "No space left" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_fault_E5_a_run_directory_that_is_a_file_or_read_only(tmp_path):
    from luthier.core.lock import RunLock

    (tmp_path / "run").write_text("I am a file")
    with pytest.raises((LuthierError, OSError)), RunLock(tmp_path / "run" / ".lock"):
        pass


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_fault_E7_without_one_file_the_one_before_is_used_and_the_run_ends_right(tmp_path, undisturbed, name):
    def stop(record):
        if record["kind"] == "train" and record["step"] == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    assert wait(in_child(lambda: train(tmp_path, listen=stop))) == 3
    points = Checkpoints(tmp_path / "checkpoints")
    (points.path(points.steps()[-1]) / name).unlink()
    found, problems = points.latest()
    assert found.step == points.steps()[-2]
    assert len(problems) == 1
    finish(lambda: train(tmp_path))
    told = [record for record in read_jsonl(tmp_path / "events.jsonl") if record["kind"] == "warning"]
    assert any("is not whole" in record["what"] for record in told)
    weights = outcome(tmp_path)["weights"]
    assert weights == undisturbed()["weights"]


def test_fault_E11_the_disk_budget_is_kept_at_every_moment(tmp_path):
    tensors = {"w": torch.zeros(25_000)}  # 100 KB
    points = Checkpoints(tmp_path / "c", keep=9, max_disk="450KB")
    peak = 0
    original = atomic.publish_folder

    for step in range(1, 20):
        points.save(step, tensors, {}, {"a": 1}, best=1.0 if step == 3 else None)
        used = sum(path.stat().st_size for path in (tmp_path / "c").rglob("*") if path.is_file())
        peak = max(peak, used)
    assert original is atomic.publish_folder
    assert peak <= 450 * 1024
    assert points.best_step() == 3
    assert len(points.steps()) == 4
    tight = Checkpoints(tmp_path / "d", max_disk="150KB")
    tight.save(1, tensors, {}, {})
    with pytest.raises(OutOfResource, match="max_disk"):
        tight.save(2, tensors, {}, {})
    assert tight.latest()[0].step == 1


def test_fault_E11_the_estimate_before_the_start_is_within_a_tenth(tmp_path):
    toy = Toy()
    toy.net[0].wide = torch.nn.Linear(300, 300)  # beside the forward
    guesses = []
    original = keeping.require_space

    def listen(loop):
        guesses.append(keeping.checkpoint_bytes(loop))
        original(loop)

    keeping.require_space = listen
    try:
        train(tmp_path, toy=toy, loss=lambda batch: wider(toy, batch), evaluate_every="never", early_stop=None)
    finally:
        keeping.require_space = original
    points = Checkpoints(tmp_path / "checkpoints")
    real = checkpoint.folder_bytes(points.path(points.steps()[-1]))
    assert abs(guesses[0] - real) <= 0.1 * real


def wider(toy, batch):
    made = toy.loss(batch)
    beside = 0 * (toy.net[0].wide.weight.sum() + toy.net[0].wide.bias.sum())
    return LossOutput(made.total + beside, made.count, made.row_losses, made.row_counts)


def reformatted(points, step, change):
    """Rewrite manifest and state of a checkpoint as another version would have."""
    folder = points.path(step)
    state = change(json.loads((folder / "state.json").read_text()))
    (folder / "state.json").write_text(json.dumps(state))
    hashes = {name: checkpoint.of_file(folder / name) for name in FILES}
    (folder / "manifest.json").write_text(json.dumps({"format": state["format"], "sha256": hashes}))


def test_fault_E13_the_format_of_another_version_is_refused_by_number_or_migrated(tmp_path, monkeypatch):
    points = Checkpoints(tmp_path)
    points.save(1, {"w": torch.ones(2)}, {}, {"train": {"step": 1}})
    points.save(2, {"w": torch.ones(2)}, {}, {"train": {"step": 2}})
    reformatted(points, 2, lambda state: state | {"format": 99})
    found, problems = points.latest()
    assert found.step == 1
    assert "format 99" in problems[0]
    reformatted(points, 2, lambda state: state | {"format": 0, "train": {"old_name": 2}})
    assert points.latest()[0].step == 1
    migrate = {0: lambda state: state | {"format": 1, "train": {"step": state["train"]["old_name"]}}}
    monkeypatch.setattr(checkpoint, "MIGRATIONS", migrate)
    found, problems = points.latest()
    assert not problems
    assert found.state["train"] == {"step": 2}


def test_fault_E13_the_golden_checkpoint_of_format_1_still_loads():
    from pathlib import Path

    points = Checkpoints(Path(__file__).parent / "golden_format_1")
    found, problems = points.latest()
    assert problems == []
    assert found.weights["w"].tolist() == [1.0, 2.0]
    assert found.optimizer["0.exp_avg"].tolist() == [0.5, 0.25]
    assert found.state["train"]["step"] == 3
