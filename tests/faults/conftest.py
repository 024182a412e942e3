"""Faults are tried on one thread, so that sums are the same everywhere and children can be forked.

Folders lie in memory where the machine offers it: thousands of fsyncs are not what is tested here (what a disk
forgets is simulated in test_power.py).
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from toy_run import in_child, outcome, train, wait


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quick_folder():
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="luthier-", dir=shared if os.access(shared, os.W_OK) else None))


@pytest.fixture
def tmp_path():
    folder = quick_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def undisturbed():
    """What the run gives when nothing happens, by kind."""
    found = {}

    def of(kind="direct", **options):
        key = (kind, tuple(sorted(options.items())))
        if key not in found:
            folder = quick_folder()

            def work():
                torch.set_num_threads(1)
                train(folder, kind, **options)

            assert wait(in_child(work)) == 0
            found[key] = outcome(folder)
            shutil.rmtree(folder)
        return found[key]

    return of
