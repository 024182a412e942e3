"""FAULTS E12: a target is absent, old or new, never half."""

import os

import pytest

from luthier.core import atomic


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
