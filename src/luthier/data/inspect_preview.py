"""Three rows as the trainer gets them, with the trained tokens between marks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from luthier.core.seeding import generator
from luthier.core.types import IGNORE, Row

OPEN, CLOSE = "⟦", "⟧"
"""Around trained tokens; a terminal may colour what stands between."""
LONGEST = 700
"""Characters of one stretch that are shown; its middle is left out."""


def preview(rows: Sequence[Row], tokenizer: Any, seed: int, count: int = 3) -> str:
    """Plain text: a heading and the decoded tokens for each of `count` rows drawn with the seed."""
    if not len(rows):
        return "no training rows"
    drawn = sorted(generator(seed, "preview").permutation(len(rows))[:count].tolist())
    shown = [_shown(rows[at], tokenizer) for at in drawn]
    answers = any(row.target is None for row in (rows[at] for at in drawn))
    trained = f"what stands in {OPEN}…{CLOSE}" if answers else "the target of each row"
    head = f"{len(drawn)} of {len(rows)} training rows; {trained} is trained"
    return "\n\n".join([head, *shown]) + "\n"


def _shown(row: Row, tokenizer: Any) -> str:
    ids = np.asarray(row.input_ids)
    labels = np.asarray(row.labels)
    trained = labels != IGNORE
    trained[:1] = False
    edges = [0, *(np.flatnonzero(np.diff(trained.astype(np.int8))) + 1).tolist(), len(ids)]
    pieces, before = [], ""
    for start, end in pairwise(edges):
        whole = tokenizer.decode(ids[:end].tolist(), skip_special_tokens=False)
        piece = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids[start:end].tolist())
        before = whole
        piece = _shortened(piece)
        pieces.append(f"{OPEN}{piece}{CLOSE}" if len(ids) > start and trained[start] else piece)
    head = f"── {row.id} · {len(ids)} tokens"
    head += f" · {int(trained.sum())} trained" if row.target is None else f" · target {row.target}"
    return f"{head}\n{''.join(pieces)}"


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} … {len(text) - 2 * half} characters … {text[-half:]}"
