"""E1, E2, E10, E12: killed or signalled anywhere, the same command ends bitwise where the undisturbed run ends."""

import os
import random
import signal
import time

import pytest
from toy_run import finish, in_child, outcome, train, wait

from luthier.core import atomic
from luthier.core.events import read_jsonl
from luthier.train.checkpoint import Checkpoints

KINDS = ("direct", "reparam")
BOUNDARIES = 90  # about as many as one run has


def kill_at_random(folder, kind, seed, undisturbed):
    """One kill -9: half of them at a random time, half at a random system call of a save."""
    source = random.Random(seed)
    if seed % 2:
        pid = in_child(lambda: train(folder, kind))
        time.sleep(source.uniform(0, 0.4))
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    else:
        at = source.randrange(1, BOUNDARIES)
        wait(in_child(lambda: train_and_die(folder, kind, at)))
    finish(lambda: train(folder, kind))
    assert outcome(folder) == undisturbed(kind)


def boundaries_of(folder, kind="direct"):
    """How many system calls that order writing one undisturbed run makes."""
    pipe_out, pipe_in = os.pipe()

    def work():
        count = watch(lambda number: None)
        train(folder, kind, background=False)
        os.write(pipe_in, str(count[0]).encode())

    assert wait(in_child(work)) == 0
    os.close(pipe_in)
    with os.fdopen(pipe_out) as handle:
        return int(handle.read())


def watch(act):
    """Call `act(n)` before the n-th fsync, rename or exchange; returns the counter."""
    count = [0]
    for module, name in ((os, "fsync"), (os, "replace"), (atomic, "exchange")):
        original = getattr(module, name)

        def counted(*args, original=original):
            count[0] += 1
            act(count[0])
            return original(*args)

        setattr(module, name, counted)
    return count


def train_and_die(folder, kind, at, **options):
    """Ends by SIGKILL just before system call number `at`."""

    def act(number):
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(act)
    train(folder, kind, **options)


@pytest.mark.parametrize("seed", range(8))
def test_fault_E1_killed_at_a_random_instant(tmp_path, undisturbed, seed):
    kill_at_random(tmp_path, KINDS[seed // 2 % 2], seed, undisturbed)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_fault_E1_campaign_100_kills_of_a_toy(tmp_path, undisturbed, kind, figure):
    for seed in range(100, 200):
        folder = tmp_path / str(seed)
        folder.mkdir()
        kill_at_random(folder, kind, seed, undisturbed)
    figure(100, 100)


def at_each_boundary(tmp_path, undisturbed, numbers):
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        assert wait(in_child(lambda n=number, f=folder: train_and_die(f, "direct", n, background=False))) == -9
        finish(lambda f=folder: train(f, background=False))
        assert outcome(folder) == undisturbed("direct"), f"boundary {number}"


def test_fault_E2_killed_at_the_boundaries_of_saving(tmp_path, undisturbed):
    (tmp_path / "count").mkdir()
    total = boundaries_of(tmp_path / "count")
    assert total > 40
    at_each_boundary(tmp_path, undisturbed, [*range(2, 12, 3), *range(12, total + 1, 13)])


@pytest.mark.soak
def test_fault_E2_campaign_every_boundary(tmp_path, undisturbed, figure):
    (tmp_path / "count").mkdir()
    total = boundaries_of(tmp_path / "count")
    at_each_boundary(tmp_path, undisturbed, range(1, total + 1))
    figure(total, total)


def test_fault_E8_a_resave_never_leaves_less_than_one_checkpoint(tmp_path, monkeypatch):
    """Killed between moving the old folder aside and putting the new one there, without renameat2."""
    import torch

    monkeypatch.setattr(atomic, "exchange", lambda first, second: False)
    points = Checkpoints(tmp_path, keep=1)
    points.save(1, {"w": torch.ones(2)}, {}, {"old": True})
    calls = []

    def killed(first, second, original=os.replace):
        calls.append(1)
        if len(calls) == 2:
            raise SystemExit
        original(first, second)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(SystemExit):
        points.save(1, {"w": torch.zeros(2)}, {}, {"old": False})
    monkeypatch.undo()
    found, _ = Checkpoints(tmp_path).latest()
    assert found is not None
    assert found.state["old"] is True


def signalled(folder, number, seed, undisturbed, kind="direct"):
    """One signal at a random instant: exit 3 within 10 s (or done before), then bitwise."""
    pid = in_child(lambda: train(folder, kind))
    time.sleep(random.Random(seed).uniform(0.005, 0.35))
    began = time.monotonic()
    os.kill(pid, number)
    code = wait(pid)
    assert code in (0, 3, -number), "-number: the signal came before the handler was there"
    assert time.monotonic() - began < 10
    assert ends_of(folder) or not (folder / "adapter").exists(), "an unfinished run has no final adapter"
    finish(lambda: train(folder, kind))
    assert outcome(folder) == undisturbed(kind)


def ends_of(folder):
    """Records that say that the training came to its end (the signal may have come between that and the exit)."""
    return [record for record in read_jsonl(folder / "events.jsonl") if record["kind"] == "finished"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("seed", range(2))
def test_fault_E10_a_signal_at_a_random_instant(tmp_path, undisturbed, number, seed):
    signalled(tmp_path, number, seed, undisturbed)


@pytest.mark.soak
def test_fault_E10_campaign_50_signals(tmp_path, undisturbed, figure):
    for seed in range(50):
        folder = tmp_path / str(seed)
        folder.mkdir()
        number = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[seed % 3]
        signalled(folder, number, 100 + seed, undisturbed, KINDS[seed % 2])
    figure(50, 50)


def at_step(step, act):
    """A listener that acts after a step."""
    return lambda record: act() if record["kind"] == "train" and record["step"] == step else None


@pytest.mark.parametrize("step", [1, 3, 4, 6, 12])
def test_fault_E10_a_signal_right_after_a_step_saves_there(tmp_path, undisturbed, step):
    listen = at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert wait(in_child(lambda: train(tmp_path, listen=listen))) == 3
    found, problems = Checkpoints(tmp_path / "checkpoints").latest()
    assert not problems
    assert found is not None
    assert found.step == step
    finish(lambda: train(tmp_path))
    assert outcome(tmp_path) == undisturbed()


def test_fault_E10_a_signal_inside_the_accumulation_drops_it(tmp_path, undisturbed):
    def work():
        from toy_run import Toy

        toy, calls = Toy(), []

        def loss(batch):
            calls.append(1)
            if len(calls) == 9:  # first of two micro-batches of step 5
                os.kill(os.getpid(), signal.SIGTERM)
            return toy.loss(batch)

        train(tmp_path, toy=toy, loss=loss)

    assert wait(in_child(work)) == 3
    found, _ = Checkpoints(tmp_path / "checkpoints").latest()
    assert found is not None
    assert found.step == 4
    finish(lambda: train(tmp_path))
    assert outcome(tmp_path) == undisturbed()


def test_fault_E10_the_second_signal_ends_at_once(tmp_path, undisturbed):
    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    assert wait(in_child(lambda: train(tmp_path, listen=at_step(5, twice)))) == 3
    found, _ = Checkpoints(tmp_path / "checkpoints").latest()
    assert found is None or found.step < 5
    finish(lambda: train(tmp_path))
    assert outcome(tmp_path) == undisturbed()


def test_fault_E12_a_folder_is_absent_or_whole(tmp_path):
    """Killed at every boundary of publishing: nothing, the old, or the new folder, never half of one."""
    for number in range(1, 9):
        target = tmp_path / str(number) / "adapter"
        with atomic.publish_folder(target) as staged:
            (staged / "one").write_text("old")
            (staged / "two").write_text("old")

        def work(target=target, number=number):
            watch(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == number else None)
            with atomic.publish_folder(target) as staged:
                (staged / "one").write_text("new")
                (staged / "two").write_text("new")

        wait(in_child(work))
        assert {path.read_text() for path in target.iterdir()} in ({"old"}, {"new"})
        with atomic.publish_folder(target) as staged:
            (staged / "one").write_text("again")
        assert sorted(os.listdir(target.parent)) == ["adapter"]
