"""Importing the large libraries without the garbage collector looking through them again and again."""

from __future__ import annotations

import gc
import importlib
import sys

HEAVY = ("torch", "transformers.modeling_utils")
"""What every verb that needs a model needs, in this order."""


def start() -> None:
    """Import them; nothing where that was done.

    They make about a million objects that stay for ever. Python's collector runs after every few hundred new objects
    and looks through these over and over: a fifth of the processor time of importing torch and transformers
    (`benchmarks/bench_startup.py`). So it pauses meanwhile. In a fresh process they are frozen afterwards, that is,
    never looked through again. Where torch was there before, its models may be too, which must stay collectable: they
    are moved to the oldest generation.
    """
    missing = [name for name in HEAVY if name not in sys.modules]
    fresh, collecting = "torch" in missing, gc.isenabled()
    if not missing:
        return
    gc.disable()
    try:
        for name in missing:
            importlib.import_module(name)
    finally:
        gc.freeze()
        if not fresh:
            gc.unfreeze()
        if collecting:
            gc.enable()
