"""What the slot engine cannot compute exactly: each answer by the model's own forward, with a cache of its own.

Soft caps, attention sinks, positions that move with the length, encoder-decoder models. Answers still come side by
side, a token each in turn, but nothing is shared between them: slower, and exact by construction.
"""

from __future__ import annotations

from collections import deque

import torch

from luthier.core.types import IGNORE, Row
from luthier.engine.batch import from_rows
from luthier.models import decode, forward
from luthier.models.base import Base
from luthier.serve.adapters import Served
from luthier.serve.engine import Counters, Engine
from luthier.serve.request import Finish, Request
from luthier.serve.sampling import choose


class NoPool:
    """Nothing is kept between requests."""

    def bytes_per_slot(self) -> int:
        """Unknown before the answer: each has a cache of its own."""
        return 0


class OneByOne(Engine):
    """The engine's interface over `decode`."""

    def __init__(self, base: Base, slots: int = 16):
        self.base, self.counters = base, Counters()
        self.inbox: deque[Request] = deque()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.free = list(range(slots))[::-1]
        self.window = base.anatomy.window
        self.pool = NoPool()  # type: ignore[assignment]
        self.plain = Served("base", None, base)
        self._states: dict[Request, decode.State] = {}

    @torch.inference_mode()
    def step(self) -> bool:
        """Admit, then one token for every request. False when there was nothing to do."""
        self._admit()
        if not self.running:
            return False
        self.counters.steps += 1
        for request in list(self.running):
            try:
                self._next(request)
            except BaseException as error:  # a failed forward fails its own request; the thread lives on
                self._finish(request, "error", error=f"{type(error).__name__}: {error}")
        return True

    def _place(self, request: Request) -> None:
        request.virtual = request.served.virtual(request.prompt)
        request.slot = self.free.pop()
        self.running.append(request)

    def _next(self, request: Request) -> None:
        tree, device = request.served.base, next(self.base.model.parameters()).device
        if (state := self._states.get(request)) is None:
            ids = torch.tensor(request.prompt)
            row = Row("prompt", ids.numpy(), torch.full_like(ids, IGNORE).numpy(), task=request.served.task)
            state = self._states[request] = decode.start(tree, from_rows([row]).to(device), request.virtual)
            self.counters.prompt_tokens += len(request.prompt)
        else:
            decode.advance(tree, state, torch.tensor([request.made[-1]], device=device))
        self._take(request, choose(forward.logits(tree, state.last).float(), [request])[0])

    def _release(self, request: Request, finish: Finish) -> None:
        request.finish = finish
        self._states.pop(request, None)
        self.counters.finished[finish] = self.counters.finished.get(finish, 0) + 1
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)
        if request.slot >= 0:
            self.free.append(request.slot)
            request.slot = -1
