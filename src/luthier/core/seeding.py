"""Random streams that depend on names, not on order.

`derive(42, "augment", epoch, row_id)` is the same number whatever ran before it, so worker counts, resumes
and row order change nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed from a base seed and any printable names."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: object) -> np.random.Generator:
    """An independent numpy generator for this purpose."""
    return np.random.default_rng(derive(seed, *names))


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices). Called before the adapter is built, not only before training."""
    import random

    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
