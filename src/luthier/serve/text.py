"""Tokens to text while they come: whole characters only, stop strings never shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CONTEXT = 8
"""Earlier tokens that are decoded along, so that spaces between tokens are right."""


class Stream:
    """Feeds on tokens, gives text deltas. Holds back incomplete UTF-8 and what may begin a stop string.

    Decoding stays incremental: a window of tokens since the last settled place, never the whole answer.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._ids = list(prompt[-CONTEXT:])
        self._settled = len(self._ids)
        self._shown = self._decode(self._ids)
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def push(self, token: int) -> str:
        """The text that may be shown after this token; empty while something is held back."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith("\ufffd") and len(self._ids) - self._settled < 16:
            return ""
        fresh = text[len(self._shown) :] if text.startswith(self._shown) else text
        self._ids = self._ids[-CONTEXT:]
        self._settled = len(self._ids)
        self._shown = self._decode(self._ids)
        return self._filter(fresh)

    def _filter(self, fresh: str) -> str:
        self._held += fresh
        cut = min((place for stop in self._stops if (place := self._held.find(stop)) >= 0), default=-1)
        if cut >= 0:
            shown, self._held, self.stopped = self._held[:cut], "", True
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def end(self) -> str:
        """What was held back, once nothing more comes."""
        pending = self._decode(self._ids)[len(self._shown) :] if len(self._ids) > self._settled else ""
        shown, self._held = self._held + pending, ""
        return "" if self.stopped else shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
