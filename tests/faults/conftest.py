"""Faults are tried on one thread, so that sums are the same everywhere and children can be forked.

Folders lie in memory where the machine offers it: thousands of fsyncs are not what is tested here (what a disk
forgets is simulated in power.py). At the end the matrix is printed: fault → result.
"""

import os
import shutil
import tempfile
from pathlib import Path

import matrix
import pytest
import torch
from toy_run import in_child, outcome, train, wait


@pytest.fixture(scope="session", autouse=True)
def warm():
    """What torch imports at the first optimizer is imported once here, not in each forked child."""
    torch.set_num_threads(1)
    folder = quick_folder()
    train(folder)
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ROOM = 2 << 30
"""Bytes that a folder in memory must have free: containers often give 64 MB."""


def quick_folder():
    shared = Path("/dev/shm")
    fits = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > ROOM
    return Path(tempfile.mkdtemp(prefix="luthier-", dir=shared if fits else None))


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


@pytest.fixture
def figure(request):
    """`figure(done, of)`: the number of a test for the printed table; fails unless all are done."""

    def tell(done, of):
        request.node.user_properties.append(("figure", f"{done}/{of}"))
        assert done == of

    return tell


def pytest_terminal_summary(terminalreporter):
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    lines = matrix.table([report for report in reports if "tests/faults/" in report.nodeid])
    if lines:
        terminalreporter.section("fault matrix")
        for line in lines:
            terminalreporter.write_line(line)
