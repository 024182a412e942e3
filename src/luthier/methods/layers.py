"""Layer ranges as a recipe writes them."""

from __future__ import annotations

import re


def parse(text: str, count: int) -> range:
    """`4-7` (both included), `3`, or `-2` (the last two) → indices of a model with `count` layers."""
    if found := re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text):
        first, last = int(found[1]), int(found[2])
    elif found := re.fullmatch(r"\s*-\s*(\d+)\s*", text):
        first, last = max(0, count - int(found[1])), count - 1
    elif found := re.fullmatch(r"\s*(\d+)\s*", text):
        first = last = int(found[1])
    else:
        raise ValueError(f"{text!r} is no layer range; write 4-7, 3, or -2 for the last two")
    if first > last or first >= count:
        from luthier.core.errors import ModelError

        raise ModelError(f"no layers {text}: the model has layers 0 to {count - 1}", where="method.layers")
    return range(first, min(last, count - 1) + 1)
