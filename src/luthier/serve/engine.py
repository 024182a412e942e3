"""The slot engine: one flat forward a step for the base and all LoRAs, one for every other adapter in use.

Each step takes one token of every decoding request and then prompt chunks up to a budget. A request holds its
adapter object, so loading and unloading never change a running answer. All state belongs to the thread that
calls `step`; other threads only set `cancelled` and append to the inbox.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.methods.targets import packing
from luthier.models.base import Base
from luthier.serve import attention
from luthier.serve.adapters import Served, share
from luthier.serve.attention import Pool, Span, Step
from luthier.serve.lora import LoraLanes
from luthier.serve.request import Finish, Request, Token
from luthier.serve.sampling import choose


@dataclass
class Counters:
    """What /metrics tells."""

    steps: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    reused_tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """What lies in a free slot: keys and values of `ids`, under one version of an adapter."""

    version: int
    virtual: Any
    ids: list[int]

    @classmethod
    def of(cls, request: Request) -> Held:
        """The ids whose keys are in the request's slot."""
        ids = [*request.prompt, *request.made][: max(0, request.cached - request.virtual_rows)]
        return cls(request.served.version, request.virtual, ids)

    def common(self, request: Request) -> int:
        """Leading tokens of the prompt that need not be fed again."""
        if self.version != request.served.version or not _equal(self.virtual, request.virtual):
            return 0
        most = min(len(self.ids), len(request.prompt) - 1)
        return next((at for at in range(most) if self.ids[at] != request.prompt[at]), max(0, most))


@dataclass
class _Work:
    """One request's part of a step: which rows of which ids."""

    request: Request
    rows: int
    last: bool
    """Whether the prompt ends with these rows, so that a token is chosen."""


class Engine:
    """Slots, pool, and the step."""

    def __init__(
        self,
        base: Base,
        slots: int = 16,
        budget: int = 256,
        kv_bytes: int | None = None,
        pack_bytes: int | None = None,
    ):
        if base.kind != "decoder":
            kind = base.kind.replace("_", "-")
            raise ModelError(f"{kind} models cannot share a flat row; only decoder models run in slots")
        _refuse_moving_positions(base)
        if packing(base) == "int8":
            raise ModelError("8-bit layers set outliers of all rows of a forward apart, so requests cannot share one")
        self.base = share(base)
        self.budget = budget
        self.counters = Counters()
        self.inbox: deque[Request] = deque()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.free = list(range(slots))
        facts = self.base.anatomy
        weight = next(self.base.model.parameters())
        shape = (len(facts.layers), slots, facts.num_kv_heads, facts.head_dim)
        position = 2 * shape[0] * shape[1] * shape[2] * shape[3] * weight.element_size()
        self.window = max(1, min(facts.window, (kv_bytes or _spare_memory() // 2) // position))
        """Positions that one request may take: the model's window, or what the memory for keys allows."""
        self.pool = Pool(shape, weight.dtype, weight.device, self.window)
        self.pool.local_layers = facts.local_layers
        self.held: dict[int, Held] = {}
        spare = _spare_memory() // 8 if pack_bytes is None else pack_bytes
        self.lanes = LoraLanes(self.base.model, spare, self._look)
        self.plain = Served("base", None, self.base)

    def _look(self) -> None:
        """One token through the tree, which shows how its layers hang together."""
        attention.begin(Step.of(self.pool, [Span(0, 0, 1)]))
        try:
            self._run(
                self.base, self.base.model.get_input_embeddings()(torch.tensor([[0]], device=self.pool.device)), [0]
            )
        finally:
            attention.end()
            self.pool.clear(0)

    @property
    def idle(self) -> bool:
        """Nothing to do."""
        return not (self.inbox or self.waiting or self.running)

    def submit(self, request: Request) -> None:
        """Thread-safe: the request is picked up by the next step."""
        self.inbox.append(request)

    @torch.inference_mode()
    def step(self) -> bool:
        """Admit, forward once, deliver. False when there was nothing to do."""
        self._admit()
        works = self._plan()
        if not works:
            return False
        self.counters.steps += 1
        for lane in _lanes(works):
            try:
                self._forward(lane)
            except BaseException as error:  # a failed forward fails its own requests; the thread lives on
                for work in lane:
                    self._finish(work.request, "error", error=f"{type(error).__name__}: {error}")
            finally:
                attention.end()
        return True

    def _admit(self) -> None:
        while self.inbox:
            self.waiting.append(self.inbox.popleft())
        now = time.monotonic()
        for request in [*self.running, *self.waiting]:
            late = request.deadline is not None and now > request.deadline
            if request.cancelled or late:
                self._finish(request, "cancelled", error="deadline exceeded" if late else "")
        while self.waiting and self.free:
            request = self.waiting.popleft()
            try:
                self._place(request)
            except Exception as error:
                self._finish(request, "error", error=f"{type(error).__name__}: {error}")

    def _place(self, request: Request) -> None:
        request.virtual = request.served.virtual(request.prompt)
        self._take_slot(request)
        self.running.append(request)
        prefix = getattr(request.virtual, "prefix", None)
        if prefix is None or request.cached:
            return
        rows = prefix[0][0].shape[-3]
        self.pool.reserve(rows)
        for layer, (key, value) in enumerate(prefix):
            for store, part in ((self.pool.keys, key), (self.pool.values, value)):
                entries = part.reshape(-1, *part.shape[-2:])[:rows]  # [P, kv_heads, head_dim]
                store[layer][request.slot, :, :rows] = entries.transpose(0, 1)
        request.cached = rows

    def _take_slot(self, request: Request) -> None:
        """The free slot that holds most of this prompt already, for this very version of the adapter.

        Keys and values depend on the adapter, so tokens alone are no key; and on the virtual tokens, which may
        depend on the prompt. One token is always left to feed.
        """
        best, common = self.free[0], 0
        for slot in self.free:
            shared = self.held[slot].common(request) if slot in self.held else 0
            if shared > common:
                best, common = slot, shared
        self.free.remove(best)
        self.held.pop(best, None)
        request.slot = best
        if common:
            request.cached = request.virtual_rows + common
            request.fed = request.prefix_rows + common
            request.reused = common
            self.counters.reused_tokens += common

    def _plan(self) -> list[_Work]:
        works = [_Work(request, 1, True) for request in self.running if not request.rows_to_feed]
        left = max(0, self.budget - len(works))
        for request in self.running:
            if request.rows_to_feed and left > 0:
                rows = min(left, request.rows_to_feed)
                works.append(_Work(request, rows, rows == request.rows_to_feed))
                left -= rows
        return works

    def _forward(self, works: list[_Work]) -> None:
        """One flat row [1, T] through the tree of this lane."""
        works.sort(key=_order)
        shared = works[0].request.served.shared
        tree = self.base if shared else works[0].request.served.base
        spans = [Span(work.request.slot, work.request.cached, work.rows) for work in works]
        self.pool.reserve(max(span.cached + span.rows for span in spans))
        if shared:
            self.lanes.using(*_chapters(works))
        attention.begin(Step.of(self.pool, spans))
        positions = [place for span in spans for place in range(span.cached, span.cached + span.rows)]
        hidden = self._run(tree, self._embeddings(tree, works), positions)
        self._deliver(tree, works, hidden, shared)

    def _run(self, tree: Base, embeddings: Tensor, positions: list[int]) -> Tensor:
        """[1, T, width] → [T, width]."""
        made: Tensor = tree.anatomy.backbone(
            inputs_embeds=embeddings,
            position_ids=torch.tensor([positions], device=self.pool.device),
            attention_mask=None,
            use_cache=False,
        ).last_hidden_state[0]
        return made

    def _embeddings(self, tree: Base, works: Sequence[_Work]) -> Tensor:
        """[1, T, width]: words that follow each other are looked up at once, virtual rows stand between them."""
        table = tree.model.get_input_embeddings()
        parts: list[Tensor] = []
        words: list[int] = []

        def look_up() -> None:
            if words:
                parts.append(table(torch.tensor(words, device=self.pool.device)))
                words.clear()

        for work in works:
            request = work.request
            if not request.rows_to_feed:
                words.append(request.made[-1])
                continue
            start, stop, head = request.fed, request.fed + work.rows, request.prefix_rows
            if start < head:
                look_up()
                rows = request.virtual.prompt.reshape(-1, request.virtual.prompt.shape[-1])
                parts.append(rows[start : min(stop, head)].to(table.weight.dtype))
            words += request.prompt[max(0, start - head) : max(0, stop - head)]
        look_up()
        return (torch.cat(parts) if len(parts) > 1 else parts[0])[None]

    def _deliver(self, tree: Base, works: Sequence[_Work], hidden: Tensor, shared: bool) -> None:
        from luthier.models import forward

        ends, row = [], 0
        for work in works:
            request = work.request
            decoding = not request.rows_to_feed
            request.cached += work.rows
            request.fed += 0 if decoding else work.rows
            self.counters.prompt_tokens += 0 if decoding else work.rows
            row += work.rows
            if work.last:
                ends.append((work, row - 1))
        if not ends:
            return
        if shared and self.lanes.reach(tree.anatomy.head):
            self.lanes.using(*_chapters([work for work, _ in ends], rows=1))
        places = [place for _, place in ends]
        logits = forward.logits(tree, hidden if len(places) == len(hidden) else hidden[places])
        requests = [work.request for work, _ in ends]
        for request, token in zip(requests, choose(logits.float(), requests), strict=True):
            self._take(request, token)

    def _take(self, request: Request, token: Token) -> None:
        if token.id is None:
            self._finish(request, "error", error=token.error)
            return
        request.made.append(token.id)
        self.counters.new_tokens += 1
        finish: Finish | None = None
        if token.id in request.stop_ids or (request.walk is not None and request.walk.done):
            finish = "stop"
        elif len(request.made) >= request.sampling.max_new_tokens:
            finish = "length"
        request.deliver(Token(token.id, finish, token.logprob, token.alternatives))
        if finish:
            self._release(request, finish)

    def _finish(self, request: Request, finish: Finish, error: str = "") -> None:
        request.deliver(Token(None, finish, error=error))
        self._release(request, finish)

    def _release(self, request: Request, finish: Finish) -> None:
        request.finish = finish
        self.counters.finished[finish] = self.counters.finished.get(finish, 0) + 1
        if request in self.running:
            self.running.remove(request)
        if request in self.waiting:
            self.waiting.remove(request)
        if request.slot >= 0:
            if finish in ("stop", "length"):
                self.held[request.slot] = Held.of(request)
            else:  # 0 · NaN is NaN: masked entries of a sick request would reach the next one
                self.pool.clear(request.slot)
            self.free.append(request.slot)
            request.slot = -1


def _equal(one: Any, other: Any) -> bool:
    """Whether two prompts have the same virtual tokens."""
    if one is None or other is None:
        return one is other
    if one.prompt is not None:
        return torch.equal(one.prompt, other.prompt)
    pairs = zip(one.prefix, other.prefix, strict=True)
    return all(torch.equal(left[0], right[0]) and torch.equal(left[1], right[1]) for left, right in pairs)


def _refuse_moving_positions(base: Base) -> None:
    """Frequencies that follow the longest row of a batch would let one request change another."""
    rope = getattr(base.model.config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) else "default"
    if kind in ("dynamic", "longrope"):
        raise ModelError(
            f"{kind} positions depend on the length of the text, so requests cannot share a forward",
            where="context",
            remedy="`luthier chat`, or train with context yarn",
        )


def _spare_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _order(work: _Work) -> tuple[bool, int, int]:
    """Single tokens first; in each half by adapter, those without LoRA last."""
    served = work.request.served
    return work.rows > 1, served.version if served.lora else sys.maxsize, work.request.slot


def _chapters(works: Sequence[_Work], rows: int = 0) -> list[list[tuple[Served, int]]]:
    """(adapter, rows) of the single tokens, and of the prompt chunks; each work with `rows` rows where given."""
    halves = ([work for work in works if work.rows == 1], [work for work in works if work.rows > 1])
    return [[(work.request.served, rows or work.rows) for work in half] for half in halves]


def _lanes(works: Sequence[_Work]) -> list[list[_Work]]:
    """The base and plain LoRAs together; every other adapter by itself, since it has a tree of its own."""
    lanes: dict[Any, list[_Work]] = {}
    for work in works:
        served = work.request.served
        lanes.setdefault(0 if served.shared else served.version, []).append(work)
    return list(lanes.values())
