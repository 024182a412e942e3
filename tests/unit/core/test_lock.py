"""RunLock where the disk is not as it should be; the races are in faults/test_recipe_faults.py."""

import errno
import fcntl
import json
import os

import pytest

from luthier.core.errors import OutOfResource
from luthier.core.lock import RunLock


def test_a_file_system_without_locks_is_not_called_in_use(tmp_path, monkeypatch):
    def no_locks(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OutOfResource, match="gives no locks"), RunLock(tmp_path / "lock"):
        pass


def test_a_place_that_cannot_be_written_is_exit_5(tmp_path, monkeypatch):
    def read_only(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OutOfResource, match="Read-only"), RunLock(tmp_path / "lock"):
        pass


def test_a_full_disk_still_locks(tmp_path, monkeypatch):
    def full(handle, data, place):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with RunLock(tmp_path / "lock"):
        monkeypatch.undo()
    with RunLock(tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
