"""FAULTS E12: a target is absent, old or new, never half."""

import errno
import os
from pathlib import Path

import pytest

from luthier.core import atomic
from luthier.core.errors import OutOfResource


class Killed(BaseException):
    """Stands for a process that ends here."""


def test_write_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    atomic.write_json(target, {"old": 1})
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *args: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                atomic.write_json(target, {"new": 2})
        assert target.read_text() == '{\n  "old": 1\n}\n'
        assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    with atomic.publish_folder(tmp_path / "adapter") as staged:
        (staged / "one").write_text("old")
    with pytest.raises(RuntimeError), atomic.publish_folder(tmp_path / "adapter") as staged:
        (staged / "one").write_text("new")
        raise RuntimeError
    assert (tmp_path / "adapter" / "one").read_text() == "old"
    assert os.listdir(tmp_path) == ["adapter"]


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError):
        atomic.write_json(tmp_path / "x", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_folder_whose_replacement_fails_is_put_back(tmp_path, monkeypatch):
    """Without renameat2 the old folder is moved aside first; an error of the second rename must not lose it."""
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("old")
    monkeypatch.setattr(atomic, "exchange", lambda first, second: False)
    original = os.replace

    def full(first, second):
        if Path(first).name.startswith(f".staging-{os.getpid()}-") and Path(second) == target:
            raise OSError(errno.ENOSPC, "full")
        original(first, second)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutOfResource), atomic.publish_folder(target) as staged:
        (staged / "new").write_text("new")
    assert os.listdir(tmp_path) == ["adapter"]
    assert os.listdir(target) == ["old"]


def test_sweep_removes_what_dead_processes_staged(tmp_path):
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    (tmp_path / f".staging-{dead}-status.json").write_text("half")
    (tmp_path / f".staging-{dead}-adapter").mkdir()
    (tmp_path / f".staging-{os.getpid()}-report").mkdir()
    (tmp_path / "status.json").write_text("{}")
    atomic.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [f".staging-{os.getpid()}-report", "status.json"]
