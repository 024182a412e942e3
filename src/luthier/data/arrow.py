"""Arrow columns from Python lists and numpy arrays, by their buffers.

`pyarrow.array` imports pandas, where that is installed, to see whether it was given a frame: a third of a second at the
start of every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def texts(values: Sequence[str | None]) -> pa.StringArray:
    """A column of texts, None where there is none; at most 2 GB."""
    parts = [b"" if value is None else value.encode() for value in values]
    offsets = np.zeros(len(parts) + 1, np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    missing = [value is None for value in values]
    valid = pa.py_buffer(np.packbits(~np.array(missing, bool), bitorder="little")) if any(missing) else None
    body = pa.py_buffer(b"".join(parts))
    return pa.StringArray.from_buffers(len(parts), pa.py_buffer(offsets), body, valid, sum(missing))


def numbers(values: np.ndarray) -> pa.Int64Array:
    """A column of whole numbers."""
    plain = np.ascontiguousarray(values, np.int64)
    return pa.Int64Array.from_buffers(pa.int64(), len(plain), [None, pa.py_buffer(plain)])
