"""E8: the best checkpoint outlives every kill, and a run whose best is broken goes back to before it."""

import errno
import json
import os
import shutil
import signal

import pytest
from toy_run import in_child, outcome, train, wait

from luthier.core.errors import ModelError
from luthier.core.events import read_jsonl
from luthier.train import checkpoint
from luthier.train.checkpoint import Checkpoints

STOPPED, BEST = 10, 6


def size_of(toy):
    """A number that every step of this toy raises."""
    return sum(float(weight.detach().abs().sum()) for weight in toy.parameters_by_name().values())


@pytest.fixture(scope="module")
def nearest():
    """A measure that is best at step BEST: the distance from the size of the weights there."""
    found = []
    folder = checkpoint.Path(os.environ.get("TMPDIR", "/tmp")) / f"luthier-best-{os.getpid()}"

    def measure(toy):
        found.append(size_of(toy))
        return 1.0

    train(folder, measure=measure, early_stop=None)
    shutil.rmtree(folder)
    at = found[BEST // 3]
    return lambda toy: abs(size_of(toy) - at)


@pytest.fixture(scope="module")
def expected(nearest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert wait(in_child(lambda: train(folder, measure=nearest))) == 0
    assert Checkpoints(folder / "checkpoints").best_step() == BEST
    return outcome(folder)


def stopped(folder, nearest, step=STOPPED):
    """A run that a signal stopped after this step; its checkpoints."""

    def listen(record):
        if record["kind"] == "train" and record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    assert wait(in_child(lambda: train(folder, listen=listen, measure=nearest))) == 3
    return Checkpoints(folder / "checkpoints")


def spoil(points, step):
    file = points.path(step) / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_fault_E8_killed_before_the_best_is_named(tmp_path, nearest, expected):
    """kill -9 between the best checkpoint and best.json: rotation must not take it for an old one."""

    def work():
        original, named = os.replace, []

        def replace(first, second):
            if str(second).endswith("best.json"):
                named.append(second)
                if len(named) == 3:  # steps 0 and 3 were the best before
                    os.kill(os.getpid(), signal.SIGKILL)
            original(first, second)

        os.replace = replace
        train(tmp_path, measure=nearest, background=False)

    assert wait(in_child(work)) == -9
    points = Checkpoints(tmp_path / "checkpoints")
    assert points.latest()[0].step == BEST
    assert points.best_step() == 3
    assert wait(in_child(lambda: train(tmp_path, measure=nearest))) == 0
    assert outcome(tmp_path) == expected
    assert points.best_step() == BEST


def test_fault_E8_a_broken_best_checkpoint_is_trained_again(tmp_path, nearest, expected):
    """A bit of the best (not the newest) flips: from the newest the run could never end, so it goes back."""
    points = stopped(tmp_path, nearest)
    assert points.steps()[-1] == STOPPED
    assert points.best_step() == BEST
    spoil(points, BEST)
    found, problems = points.latest()
    assert found is None or found.step < BEST
    assert any(f"of no use without the best one: {'weights.safetensors'}" in problem for problem in problems)
    assert wait(in_child(lambda: train(tmp_path, measure=nearest))) == 0
    assert outcome(tmp_path)["weights"] == expected["weights"]
    steps = [record["step"] for record in read_jsonl(tmp_path / "events.jsonl") if record["kind"] == "train"]
    assert steps == sorted(set(steps)), "each step stands in the log once"


def test_fault_E8_a_flipped_best_json_loses_nothing(tmp_path, nearest, expected):
    points = stopped(tmp_path, nearest, step=7)
    (points.folder / "best.json").write_text(json.dumps({"step": 1, "metric": 0.5}))
    assert wait(in_child(lambda: train(tmp_path, measure=nearest))) == 0
    assert outcome(tmp_path) == expected


def test_fault_E6_what_came_after_the_place_of_return_is_gone(tmp_path, nearest):
    """Checkpoints of a future that is trained again must not be taken up later, nor count for rotation."""
    points = stopped(tmp_path, nearest)
    newest, before = points.steps()[-1], points.steps()[-2]
    spoil(points, newest)
    found, _ = points.latest()
    assert found.step == before
    points.take_over(found, BEST, 0.5)
    assert points.steps()[-1] == before
    assert points.best_step() == BEST


def test_fault_E5_a_checkpoint_that_cannot_be_read_now_is_passed_over_but_kept(tmp_path, nearest, monkeypatch):
    points = stopped(tmp_path, nearest)
    newest, before = points.steps()[-1], points.steps()[-2]
    original = checkpoint.of_file

    def broken(path):
        if path.parent == points.path(newest):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path)

    monkeypatch.setattr(checkpoint, "of_file", broken)
    found, problems = points.latest()
    assert found.step == before
    assert "Input/output error" in problems[0]
    points.take_over(found, BEST, 0.5)
    assert points.path(newest).is_dir()


def test_fault_E13_a_newer_luthier_s_checkpoint_is_refused_and_kept(tmp_path, nearest):
    points = stopped(tmp_path, nearest)
    newest = points.steps()[-1]
    manifest = points.path(newest) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(ModelError, match="format 2") as caught:
        train(tmp_path, measure=nearest)
    assert caught.value.exit_code == 2
    assert points.path(newest).is_dir()


def test_fault_E9_memory_that_ends_outside_of_a_step_is_exit_5(tmp_path, nearest):
    from luthier.core.errors import OutOfResource

    def measure(toy):
        raise MemoryError

    with pytest.raises(OutOfResource, match="memory"):
        train(tmp_path / "a", measure=measure)

    def allocator(toy):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(OutOfResource, match="memory"):
        train(tmp_path / "b", measure=allocator)

    def system(toy):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with pytest.raises(OutOfResource, match="memory"):
        train(tmp_path / "d", measure=system)

    def other(toy):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="else"):
        train(tmp_path / "c", measure=other)
