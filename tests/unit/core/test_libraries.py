"""The collector pauses while torch and transformers are imported, and afterwards collects what it should."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc, sys, weakref
{before}
from luthier.core import libraries

passes = 0
def seen(phase, info):
    global passes
    passes += phase == "start"
gc.callbacks.append(seen)
libraries.start()
assert "transformers.modeling_utils" in sys.modules
during, frozen = passes, gc.get_freeze_count()
class Ring: pass
ring = Ring(); ring.self = ring; gone = weakref.ref(ring)
del ring
{after}
gc.collect()
print(during, frozen > 100_000, gc.isenabled(), gone() is None)
"""


def outcome(before: str = "", after: str = "") -> list[str]:
    """Passes of the collector during the imports, whether much is frozen, whether it runs, whether a ring went."""
    script = SCRIPT.format(before=before, after=after)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_fresh_process_imports_without_the_collector_and_freezes_what_stays() -> None:
    assert outcome() == ["0", "True", "True", "True"]


def test_models_that_were_there_before_stay_collectable() -> None:
    assert outcome(before="import torch") == ["0", "False", "True", "True"]


def test_a_collector_that_was_off_stays_off() -> None:
    assert outcome(before="gc.disable()", after="assert not gc.isenabled()") == ["0", "True", "False", "True"]


def test_nothing_happens_the_second_time() -> None:
    after = "count = gc.get_freeze_count(); libraries.start(); assert gc.get_freeze_count() == count"
    assert outcome(after=after) == ["0", "True", "True", "True"]
