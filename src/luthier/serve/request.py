"""A request inside the engine: prompt, sampling, what was made so far. Owned by the model thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from luthier.serve.adapters import Served
    from luthier.serve.constrained import Walk

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature below 1e-5 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_new_tokens: int = 256
    logprobs: int = -1
    """Alternatives to report beside the chosen token; -1: no logprobs."""


@dataclass(eq=False)
class Request:
    """One answer to make. `deliver(token, logprob, finish, error)` is called by the model thread."""

    served: Served
    prompt: list[int]
    sampling: Sampling
    deliver: Callable[[Token], None]
    stop_ids: frozenset[int] = frozenset()
    created: float = field(default_factory=time.monotonic)
    deadline: float | None = None
    cancelled: bool = False
    slot: int = -1
    cached: int = 0
    """Key/value entries of this request in its slot, virtual ones included."""
    fed: int = 0
    """Prompt rows (virtual embeddings included) that went through the model."""
    made: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None
    virtual: Any = None
    walk: Walk | None = None
    """Through a grammar that the answer must keep to."""
    finish: Finish | None = None
    reused: int = 0
    """Prompt tokens whose keys and values an earlier request had left."""

    @property
    def virtual_rows(self) -> int:
        """Entries of the slot that stand before the prompt's own tokens."""
        prefix = getattr(self.virtual, "prefix", None)
        return self.prefix_rows if prefix is None else int(prefix[0][0].shape[-3])

    @property
    def prefix_rows(self) -> int:
        """Virtual embedding rows that stand before the prompt's own tokens (prompt and P-tuning)."""
        prompt = getattr(self.virtual, "prompt", None)
        return 0 if prompt is None else int(prompt.shape[-2])

    @property
    def rows_to_feed(self) -> int:
        """Rows of the prompt that still have to go through the model."""
        return self.prefix_rows + len(self.prompt) - self.fed


@dataclass(frozen=True)
class Token:
    """One step of an answer. `id` is None for a finish without a token (cancelled, error)."""

    id: int | None
    finish: Finish | None = None
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    error: str = ""
