"""Writing a safetensors file in one pass: streamed through Python's own files, hashed on the way.

(`safetensors.save_file` writes from Rust, so that its bytes would have to be read again for the hash.) Format:
8 bytes little-endian header length, JSON header, data; https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
BLOCK = 1 << 22


def write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write CPU tensors; returns the sha256 of the file. Not fsynced: `atomic.publish_folder` does that."""
    ready = {name: tensor.detach().contiguous() for name, tensor in sorted(tensors.items())}
    header, place = {}, 0
    for name, tensor in ready.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as handle:
        first = len(text).to_bytes(8, "little") + text
        handle.write(first)
        digest.update(first)
        for tensor in ready.values():
            for block in _blocks(tensor):
                handle.write(block)
                digest.update(block)
    return digest.hexdigest()


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    """The tensor's bytes without a copy."""
    if not tensor.numel():
        return
    raw = tensor.reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(raw), BLOCK):
        yield raw[start : start + BLOCK]
