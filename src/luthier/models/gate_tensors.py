"""A safetensors file is read by our own bounded parser before any library allocates by its header.

8 bytes length | JSON header {name: {dtype, shape, data_offsets}} | data, without holes or overlaps
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.errors import ModelError

MOST_HEADER = 16 << 20
MOST_TENSORS = 100_000
MOST_DIMENSIONS = 8
MOST_NAME = 512
BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
}
_EXPONENT: dict[str, tuple[Any, int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
}
"""All bits of the exponent set means infinity or not-a-number (for E4M3: all bits but the sign)."""
BLOCK = 1 << 22


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in its file (bytes from the start of the data)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A checked header."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data: int
    """Offset of the data in the file."""


def read_header(path: Path) -> Header:
    """Parse and check; ModelError says what is wrong. Allocates no more than the header itself."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 10 or length < 2 or length > size - 8:
                raise _wrong(path, f"its header length {length} does not fit a file of {size} bytes")
            if length > MOST_HEADER:
                raise _wrong(path, f"its header of {length >> 20} MB is larger than {MOST_HEADER >> 20} MB")
            raw = handle.read(length)
    except OSError as error:
        raise _wrong(path, f"it cannot be read: {error.strerror}") from None
    made = parse_object(raw, path)
    metadata = made.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _wrong(path, "its metadata is not text")
    if len(made) > MOST_TENSORS:
        raise _wrong(path, f"it has {len(made)} tensors, more than {MOST_TENSORS}")
    tensors = {name: _info(path, name, value) for name, value in made.items()}
    _refuse_holes(path, tensors, size - 8 - length)
    return Header(path, tensors, metadata, 8 + length)


def parse_object(raw: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without repeated keys, NaN or deep nesting; ModelError for anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number")

    def finite(word: str) -> float:
        return float(word) if math.isfinite(float(word)) else refuse(word)

    try:
        made = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise _wrong(path, f"its JSON is not valid: {what}") from None
    if not isinstance(made, dict):
        raise _wrong(path, "its JSON is no object")
    return made


def _info(path: Path, name: str, value: Any) -> TensorInfo:
    shown = repr(name[:80])
    if len(name) > MOST_NAME or not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _wrong(path, f"the entry {shown} is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _wrong(path, f"{shown} has the unknown dtype {str(dtype)[:20]!r}")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS or not all(_is_count(side) for side in shape):
        raise _wrong(path, f"{shown} has no valid shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(place) for place in offsets):
        raise _wrong(path, f"{shown} has no valid data_offsets")
    if offsets[1] - offsets[0] != math.prod(shape) * BITS[dtype] // 8:
        raise _wrong(path, f"{shown} of shape {shape} does not fill its {offsets[1] - offsets[0]} bytes")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _refuse_holes(path: Path, tensors: Mapping[str, TensorInfo], data: int) -> None:
    place = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != place:
            raise _wrong(path, f"{name[:80]!r} overlaps or leaves a hole at byte {info.start}")
        place = info.stop
    if place != data:
        raise _wrong(path, f"its tensors fill {place} of {data} bytes (truncated, or with something appended)")


def refuse_not_finite(header: Header) -> None:
    """Stream through every float tensor; ModelError names the first with NaN or infinity."""
    with open(header.path, "rb") as handle:
        for name, info in header.tensors.items():
            if info.dtype not in _EXPONENT:
                continue
            kind, mask = _EXPONENT[info.dtype]
            handle.seek(header.data + info.start)
            left = info.stop - info.start
            while left:
                block = handle.read(min(BLOCK, left))
                if not block:
                    raise _wrong(header.path, "it ended while it was read")
                left -= len(block)
                bits = np.frombuffer(block, dtype=kind)
                if bool(((bits & kind(mask)) == kind(mask)).any()):
                    raise _wrong(header.path, f"{name!r} holds NaN or infinity")


def refuse_other(tensors: Mapping[str, TensorInfo], expected: Mapping[str, Sequence[int]], where: Path) -> None:
    """ModelError unless there are exactly the expected names, with the expected shapes."""
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing:
        raise _wrong(where, f"{len(missing)} of {len(expected)} tensors are missing, for example {missing[0]}")
    if extra:
        raise _wrong(where, f"{len(extra)} tensors belong nowhere, for example {extra[0][:120]}")
    for name, shape in expected.items():
        if tensors[name].shape != tuple(shape):
            raise _wrong(where, f"{name} has the shape {list(tensors[name].shape)}, here it is {list(shape)}")


def _wrong(path: Path, what: str) -> ModelError:
    return ModelError(f"{path.name}: {what}", where=str(path), remedy="take the file again from where it came from")
