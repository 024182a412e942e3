"""The campaigns of the fault matrix, small here and long in `make soak`: kills, power cuts, bit flips, full disks.

Each campaign is a function of its size; the figure (done/of) stands in the printed table.
"""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import real_run
from power import Recorder
from toy_run import STEPS, finish, in_child, outcome, train, wait

from luthier.train.checkpoint import FILES, Checkpoints

BOUNDARIES = 40
"""About as many fsyncs and renames as one real run has."""


def sized(small, large):
    """The same test twice: a small one for every day, the whole one as a soak."""
    return pytest.mark.parametrize("size", [small, pytest.param(large, marks=pytest.mark.soak)])


# ---- E1: kill -9, real methods on the built-in base
@functools.cache
def whole(kind):
    """Outcome and seconds of the undisturbed run."""
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"luthier-whole-{os.getpid()}-{kind}"
    folder.mkdir()
    began = time.monotonic()
    try:
        assert wait(in_child(lambda: real_run.train(folder, kind))) == 0
        return real_run.outcome(folder), time.monotonic() - began
    finally:
        shutil.rmtree(folder)


def die_at(number):
    """SIGKILL just before the system call number `number` that orders writing."""
    from test_kill import watch

    watch(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == number else None)


def killed_and_continued(folder, kind, seed):
    """True when the killed run, continued by the same command, ends bitwise equal."""
    source, (expected, seconds) = random.Random(seed), whole(kind)
    if seed % 2:
        pid = in_child(lambda: real_run.train(folder, kind))
        time.sleep(source.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    else:
        at = source.randrange(1, BOUNDARIES)
        wait(in_child(lambda: (die_at(at), real_run.train(folder, kind))))
    finish(lambda: real_run.train(folder, kind))
    return real_run.outcome(folder) == expected


TENS = [range(1), *(pytest.param(range(k, k + 10), marks=pytest.mark.soak) for k in range(0, 40, 10))]


@pytest.mark.parametrize("seeds", TENS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
@pytest.mark.parametrize("kind", real_run.METHODS)
def test_fault_E1_campaign_kill_real_methods(tmp_path, figure, kind, seeds):
    done = 0
    real_run.stages()
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        done += killed_and_continued(folder, kind, 1000 * list(real_run.METHODS).index(kind) + seed)
        shutil.rmtree(folder)
    figure(done, len(seeds))


# ---- E3: power cuts
@sized(16, 500)
def test_fault_E3_campaign_power_cut(tmp_path, figure, undisturbed, size):
    """A cut anywhere: what is left has a whole checkpoint or none, and the same command ends bitwise equal."""
    run, left = tmp_path / "run", tmp_path / "left"
    run.mkdir()
    recorder = Recorder(str(run))

    def cut_off(seed):
        source = random.Random(seed)
        at = source.randrange(len(recorder.photographs))
        recorder.cut(at, source, left)
        return at

    # recorded in this process: the photographs are needed afterwards
    kept = os.fsync, os.replace, __import__("luthier.core.atomic", fromlist=["exchange"]).exchange
    recorder.install()
    try:
        train(run, background=False)
    finally:
        from luthier.core import atomic

        os.fsync, os.replace, atomic.exchange = kept
    assert len(recorder.photographs) > 60
    done = 0
    for seed in range(size):
        at = cut_off(seed)
        finished = (left / "checkpoints").is_dir() and Checkpoints(left / "checkpoints").latest()[0]
        durable = newest_durable(recorder, at)
        assert (finished.step if finished else 0) >= durable, f"seed {seed}, photograph {at}"
        finish(lambda: train(left))
        done += outcome(left) == undisturbed()
    figure(done, size)


def newest_durable(recorder, at):
    """The newest step whose folder stood in an fsynced listing of checkpoints/ before the cut, and still stands."""
    best = 0
    shot = recorder.photographs[at]
    key = shot["folders"][shot["root"]].get("checkpoints")
    syncs = [n for n in recorder.synced.get(key, []) if n < at]
    if key is None or not syncs:
        return 0
    since = [recorder.photographs[n]["folders"].get(key, {}) for n in range(max(syncs), at + 1)]
    for name in since[0]:
        if name.startswith("step-") and all(listing.get(name) == since[0][name] for listing in since):
            best = max(best, int(name.removeprefix("step-")))
    return best


# ---- E4: disks of many sizes
MOUNTED = """
import os, sys
sys.path[:0] = [{here!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
from toy_run import in_child, train, wait, outcome
sys.stdout.reconfigure(line_buffering=True)
import subprocess, tempfile
train(tempfile.mkdtemp())
for size in {sizes!r}:
    place = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={{size}}k", "none", str(place)], check=True)
    code = wait(in_child(lambda: train(place)))
    half = [path.name for path in place.rglob("adapter/*") if not path.stat().st_size]
    from luthier.train.checkpoint import Checkpoints
    found, problems = Checkpoints(place / "checkpoints").latest() if (place / "checkpoints").is_dir() else (None, [])
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
    again = wait(in_child(lambda: train(place)))
    weights = 0 if again else hash(str(outcome(place)["weights"]))
    print("RESULT", size, code, again, len(half), len(problems), weights)
    subprocess.run(["umount", "-l", str(place)], check=True)
"""


def can_mount():
    """Whether a user may mount a tmpfs in a name space of his own."""
    tried = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"]
    try:
        return subprocess.run(tried, capture_output=True).returncode == 0
    except OSError:
        return False


@sized(5, 20)
def test_fault_E4_campaign_full_disk(tmp_path, figure, size):
    """Disks from nothing to enough: exit 5 or 0, nothing half, and with room again the run ends as it should."""
    if not can_mount():
        pytest.skip("no tmpfs can be mounted here (see the RLIMIT_FSIZE test)")
    sizes = [8 + round(112 * k / max(1, size - 1)) // 4 * 4 for k in range(size)]
    code = MOUNTED.format(here=str(Path(__file__).parent), sizes=sizes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TMPDIR": str(tmp_path)}
    done = subprocess.run(["unshare", "-Urm", sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment, timeout=900)  # fmt: skip
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(found) == size, done.stderr[-3000:]
    codes = {int(line[1]) for line in found}
    assert codes == {0, 5}, found
    good = sum(line[2:5] == ["0", "0", "0"] for line in found)
    assert len({line[5] for line in found}) == 1, "with room again, all end with the same weights"
    figure(good, size)


# ---- E6: bits
@sized(60, 500)
def test_fault_E6_campaign_one_bit(tmp_path, figure, size):
    """A bit anywhere in the newest checkpoint: it is told, and the one before is used."""
    assert wait(in_child(lambda: train(tmp_path))) == 0
    points = Checkpoints(tmp_path / "checkpoints")
    newest = points.path(points.steps()[-1])
    files = [newest / name for name in (*FILES, "manifest.json")]
    sizes = [path.stat().st_size for path in files]
    found = 0
    for seed in range(size):
        source = random.Random(seed)
        path = source.choices(files, sizes)[0] if seed % 3 else source.choice(files)
        clean = path.read_bytes()
        data = bytearray(clean)
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        path.write_bytes(bytes(data))
        loaded, problems = points.latest()
        path.write_bytes(clean)
        found += loaded is not None and loaded.step == points.steps()[-2] and len(problems) == 1
    figure(found, size)


# ---- E8: histories of saving, killing, rotating
@sized(60, 1000)
def test_fault_E8_campaign_histories(tmp_path, figure, monkeypatch, size):
    """Whatever was interrupted, there is a whole checkpoint once there was one, and the best is among them."""
    import torch

    class Killed(BaseException):
        pass

    monkeypatch.setattr(os, "fsync", lambda handle: None)
    real, alive = os.replace, 0
    for seed in range(size):
        source = random.Random(seed)
        folder, step, saved, best = tmp_path / str(seed), 0, 0, None
        for _ in range(source.randrange(3, 12)):
            step += source.randrange(0, 3)
            metric = source.random()
            is_best = best is None or metric < best[0]
            fatal, count = source.choice([None, 1, 2, 3]), [0]

            def replace(first, second, fatal=fatal, count=count):
                count[0] += 1
                if count[0] == fatal:
                    raise Killed
                real(first, second)

            monkeypatch.setattr(os, "replace", replace)
            points = Checkpoints(folder, keep=source.randrange(1, 4))
            try:
                points.save(step, {"w": torch.full((4,), step)}, {}, {"step": step}, metric if is_best else None)
                best = (metric, step) if is_best else best
                saved += 1
            except Killed:
                if points.best_step() == step and is_best:
                    best = (metric, step)
            monkeypatch.setattr(os, "replace", real)
            found, problems = Checkpoints(folder).latest()
            assert not problems, (seed, problems)
            assert found is not None or not saved, seed
            if found is not None and best is not None:
                assert Checkpoints(folder).best_step() == best[1], seed
                assert float(Checkpoints(folder).load(best[1]).weights["w"][0]) == best[1]
        alive += 1
        shutil.rmtree(folder, ignore_errors=True)
    figure(alive, size)


# ---- E9: limits of the operating system
LIMITS = {
    "RLIMIT_FSIZE": [400, 1000, 3000, 6000, 9000],
    "RLIMIT_NOFILE": [0, 1, 2, 3, 4, 5, 8],
    "RLIMIT_AS": [-40, -10, 0, 2, 20],
}
"""Bytes of a file; files to open and megabytes of address space more than the process has when the training begins.

Counted from what is open, not in all: how many that is, is the test runner's affair. Each number ends at another place.
"""


def _file_limit(free):
    """The RLIMIT_NOFILE under which `free` numbers are unused (the limit is on the number, not on the count)."""
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    taken = {number for number in taken if Path(f"/proc/self/fd/{number}").exists()}
    limit = 0
    while limit - len([number for number in taken if number < limit]) < free:
        limit += 1
    return limit


@pytest.mark.parametrize("name", LIMITS)
def test_fault_E9_limits(tmp_path, figure, undisturbed, name):
    """Exit 5 with the need (or 0, where the limit was wide enough), nothing half, and bitwise without the limit."""
    import resource

    import numpy.random  # noqa: F401 (a module that the training would import would be a file to open)
    import psutil  # noqa: F401

    good = 0
    for number, value in enumerate(LIMITS[name]):
        folder = tmp_path / f"{name}-{number}"
        folder.mkdir()

        def limited(folder=folder, value=value):
            at = value
            if name == "RLIMIT_AS":
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                at = pages * resource.getpagesize() + (value << 20)
            elif name == "RLIMIT_NOFILE":
                at = _file_limit(value)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(getattr(resource, name), (at, at))
            train(folder)

        code = wait(in_child(limited))
        assert code in (0, 5), (name, value, code)
        if (folder / "checkpoints").is_dir():
            assert not Checkpoints(folder / "checkpoints").latest()[1]
        finish(lambda folder=folder: train(folder))
        good += outcome(folder) == undisturbed()
    figure(good, len(LIMITS[name]))


# ---- E12: kill while something is published
@sized(12, 200)
def test_fault_E12_campaign_kill_while_publishing(tmp_path, figure, size):
    """Killed at a random instant of writing an adapter of the real kind over an old one: the old or the new, whole."""
    from safetensors.torch import load_file

    from luthier.core import atomic
    from luthier.train import tensor_file

    def publish(folder, value):
        import torch

        with atomic.publish_folder(folder / "adapter") as staged:
            for name in ("a", "b", "c"):
                tensor_file.write(staged / f"{name}.safetensors", {"w": torch.full((200_000,), float(value))})

    publish(tmp_path, 0)
    good = 0
    for seed in range(size):
        pid = in_child(lambda: [publish(tmp_path, value) for value in range(1, 1000)])
        time.sleep(random.Random(seed).uniform(0.0, 0.06))
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        atomic.recover(tmp_path / "adapter")
        values = {
            float(part) for path in (tmp_path / "adapter").iterdir() for part in load_file(path)["w"].unique().tolist()
        }
        good += len(values) == 1 and len(os.listdir(tmp_path / "adapter")) == 3
    figure(good, size)


assert STEPS == 12
