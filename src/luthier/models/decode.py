"""Generation for samples and evaluation: batched, sorted by length, with a cache, stops by row, seeded by row.

A row that has ended leaves the batch, and the padding that only it needed goes with it. Prompts are read with others
of their length, and when half of the rows have ended, the next prompts join them.

Greedy output is token-identical to one prompt at a time. Prompts are left-padded with explicit positions, and
virtual tokens stand directly before each row's own tokens, which is where PEFT goes wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from luthier.core.seeding import derive
from luthier.core.types import IGNORE, Row
from luthier.engine.batch import Batch, from_rows
from luthier.models import changing_rope, forward
from luthier.models.base import Base

GREEDY_BELOW = 1e-5
ROWS_AT_ONCE = 32
PADDED = 1.25
"""Prompts that are read together are at most so many times as long as the shortest of them, or SHORT tokens longer."""
SHORT = 8


class Answers(Protocol):
    """What generation needs of an adapted model."""

    base: Base

    def virtual(self, batch: Batch) -> forward.Virtual | None:
        """Virtual tokens of a batch of prompts."""


@dataclass(frozen=True)
class Generation:
    """New tokens, the stop token included, and why it ended."""

    ids: list[int]
    finish: Literal["stop", "length"]


def generate(
    adapted: Answers,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    tasks: Sequence[int] | None = None,
) -> list[Generation]:
    """One Generation a prompt, in the order given. Prompts that leave no room give an empty one.

    `tasks` says which prefix of a multi-task library each prompt takes; without it, the first.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: dict[int, Generation] = {}
    virtual = adapted.virtual(from_rows([_row(prompts[0], 0)]).to(_device(adapted.base))) if len(prompts) else None
    room = adapted.base.anatomy.window - (0 if virtual is None else virtual.length)
    limits = [max(0, min(max_new_tokens, room - len(prompt))) for prompt in prompts]
    for part in _parts(adapted.base, order, prompts, limits, virtual):
        sampler = Sampler(temperature, top_p, top_k, [derive(seed, "decode", index) for index in part])
        rows = [_row(prompts[index], tasks[index] if tasks else 0) for index in part]
        made = _batch(adapted, rows, [limits[index] for index in part], frozenset(stop_ids), sampler)
        results.update(zip(part, made, strict=True))
    return [results[index] for index in range(len(prompts))]


def _parts(
    base: Base,
    order: Sequence[int],
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    virtual: forward.Virtual | None,
) -> list[list[int]]:
    """What is made in one batch; prompts that leave no room are in none of their own.

    A sliding window counts the pads between a prefix and a row's own tokens, so that the prefix would leave it too
    early: there only prompts of one length go together. Rotary frequencies that change with the longest row let a
    row that grows beyond their constant part go alone.
    """
    facts = base.anatomy
    prefixed = facts.sliding_window is not None and virtual is not None and virtual.prefix is not None
    ahead = 0 if virtual is None else virtual.length

    def kind(index: int) -> tuple[int, int]:
        size = len(prompts[index])
        within = facts.rope_constant_within
        alone = within is not None and size + limits[index] + ahead > within
        return (size if prefixed else 0), (index + 1 if alone else 0)

    parts: list[list[int]] = []
    for at, index in enumerate(order):
        if not parts or kind(index) != kind(order[at - 1]):
            parts.append([])
        parts[-1].append(index)
    return parts


def text_of(tokenizer: Any, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
    """The text of new tokens, cut by ids: decoding them alone loses the first space of sentencepiece tokenizers."""
    context = list(prompt_ids[-8:])
    before = tokenizer.decode(context, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    both = tokenizer.decode([*context, *new_ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if both.startswith(before):
        return str(both[len(before) :])
    return str(tokenizer.decode(list(new_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Sampler:
    """Greedy, or temperature / top-k / top-p with one generator a row."""

    def __init__(self, temperature: float, top_p: float, top_k: int, seeds: Sequence[int]):
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """[R] tokens from [R, vocabulary]; `rows` says whose generators draw (all of them, in order)."""
        if self.temperature < GREEDY_BELOW:
            return logits.argmax(dim=-1)
        sources = self.generators if rows is None else [self.generators[index] for index in rows]
        drawn = [self._draw(row, source) for row, source in zip(logits, sources, strict=True)]
        return torch.tensor(drawn, device=logits.device)

    def _draw(self, row: Tensor, source: torch.Generator) -> int:
        scaled = row.double().cpu() / self.temperature
        if self.top_k:
            scaled[scaled < torch.topk(scaled, min(self.top_k, len(scaled))).values[-1]] = -torch.inf
        shares = torch.softmax(scaled, dim=-1)
        if self.top_p < 1:
            ordered, places = shares.sort(descending=True, stable=True)
            outside = ordered.cumsum(0) - ordered >= self.top_p
            outside[0] = False
            shares[places[outside]] = 0.0
        return int(torch.multinomial(shares, 1, generator=source))


@torch.no_grad()
def _batch(
    adapted: Answers, prompts: Sequence[Row], limits: Sequence[int], stops: frozenset[int], sampler: Sampler
) -> list[Generation]:
    """`limits[n]` is the most tokens that prompt n gets."""
    base = adapted.base
    made: list[list[int]] = [[] for _ in prompts]
    waiting = [index for index, limit in enumerate(limits) if limit]
    rows: list[int] = []
    state: State | None = None
    while rows or waiting:
        if len(rows) <= ROWS_AT_ONCE // 2:
            while waiting and len(rows) < ROWS_AT_ONCE and (state is None or _can_join(state)):
                fresh = _next(base, prompts, waiting[: ROWS_AT_ONCE - len(rows)])
                batch = from_rows([prompts[index] for index in fresh]).to(_device(base))
                state = _joined(state, start(base, batch, adapted.virtual(batch)))
                rows, waiting = rows + fresh, waiting[len(fresh) :]
        assert state is not None
        tokens = sampler(forward.logits(base, state.last).float(), rows)
        going = []
        for place, (index, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            made[index].append(token)
            if token not in stops and len(made[index]) < limits[index]:
                going.append(place)
        if going and len(going) < len(rows):
            narrow(state, going)
            tokens = tokens[going]
        rows = [rows[place] for place in going]
        if rows:
            advance(base, state, tokens)
        else:
            state = None
    return [Generation(ids, "stop" if ids and ids[-1] in stops else "length") for ids in made]


def _device(base: Base) -> torch.device:
    return next(base.model.parameters()).device


def _next(base: Base, prompts: Sequence[Row], waiting: list[int]) -> list[int]:
    """Those of the waiting that are read together: of about one length, where others can still join them."""
    if base.kind == "encoder_decoder":
        return waiting
    sizes = [len(prompts[index].input_ids) for index in waiting]
    longest = max(sizes[0] * PADDED, sizes[0] + SHORT)
    return [index for index, size in zip(waiting, sizes, strict=True) if size <= longest]


def _can_join(state: State) -> bool:
    """Whether other rows can come into this batch: not beside the position biases of an encoder-decoder."""
    from luthier.models.growing_cache import can_join

    return state.memory is None and can_join(state.cache)


def _joined(one: State | None, other: State) -> State:
    """The rows of both."""
    from luthier.models.growing_cache import joined

    if one is None:
        return other
    width = max(one.mask.shape[1], other.mask.shape[1])
    masks = [torch.nn.functional.pad(state.mask, (width - state.mask.shape[1], 0)) for state in (one, other)]
    return State(
        torch.cat([one.last, other.last]),
        torch.cat(masks),
        torch.cat([one.positions, other.positions]),
        joined([one.cache, other.cache]),
    )


def _row(prompt: Sequence[int], task: int) -> Row:
    ids = torch.tensor(list(prompt)).numpy()
    return Row("prompt", ids, torch.full((len(ids),), IGNORE).numpy(), task=task)


@dataclass
class State:
    """The cache and what the next step needs."""

    last: Tensor  # [R, hidden]
    mask: Tensor  # [R, entries]
    positions: Tensor  # [R] next position
    cache: Any
    memory: tuple[Tensor, Tensor] | None = None  # encoder states and mask of encoder-decoder models


def start(base: Base, batch: Batch, virtual: forward.Virtual | None) -> State:
    """The prompts read, nothing said yet."""
    if base.anatomy.rope_constant_within is not None:
        changing_rope.reset(base.model)
    if base.kind != "encoder_decoder":
        return _prefill(base, batch, virtual)
    from luthier.models import seq2seq

    prompts = [batch.input_ids[start:stop] for start, stop in zip(batch.bounds[:-1], batch.bounds[1:], strict=True)]
    memory = seq2seq.encode(base, prompts, virtual)
    cache = seq2seq.fresh_cache(base, virtual, len(prompts), always=True)
    begin = torch.full((len(prompts), 1), seq2seq.start_token(base), device=batch.input_ids.device)
    states, cache = seq2seq.decode(base, begin, *memory, cache)
    return State(states[:, -1], memory[1], begin[:, 0], cache, memory)


def _prefill(base: Base, batch: Batch, virtual: forward.Virtual | None) -> State:
    """All prompts at once, left-padded; virtual entries are put between the padding and the row's own tokens."""
    from luthier.models.growing_cache import growing

    lengths = batch.bounds[1:] - batch.bounds[:-1]
    count, width = len(lengths), int(lengths.max())
    extra = 0 if virtual is None else virtual.length
    device = batch.input_ids.device
    places = torch.arange(width, device=device)[None] - (width - lengths.to(device))[:, None]
    inside = places >= 0
    ids = torch.full((count, width), base.pad_id, device=device)
    ids[inside] = batch.input_ids
    positions = places.clamp(min=0) + extra
    mask = inside.long()
    options: dict[str, Any] = {"input_ids": ids}
    cache = growing()
    if virtual is not None and virtual.prompt is not None:
        embeds = _splice(base.model.get_input_embeddings()(ids), virtual, width - lengths.to(device))
        options = {"inputs_embeds": embeds}
        places = torch.arange(width + extra, device=device)[None] - (width - lengths.to(device))[:, None]
        positions, mask = places.clamp(min=0), (places >= 0).long()
    elif virtual is not None and virtual.prefix is not None:
        cache = forward.cache_of(virtual, count, next(base.model.parameters()).dtype, in_place=True)
        mask = torch.cat([torch.ones(count, extra, dtype=torch.int64, device=device), mask], dim=1)
    out = base.anatomy.backbone(
        attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **options
    )
    return State(out.last_hidden_state[:, -1], mask, lengths.to(device) + extra, out.past_key_values)


def _splice(words: Tensor, virtual: forward.Virtual, pads: Tensor) -> Tensor:
    """[pad][P][text] embeddings from [pad][text]."""
    prompt = virtual.prompt
    assert prompt is not None
    rows = prompt if prompt.dim() == 3 else prompt.expand(len(words), *prompt.shape)
    parts = [
        torch.cat([words[i, :pad], rows[i].to(words.dtype), words[i, pad:]]) for i, pad in enumerate(pads.tolist())
    ]
    return torch.stack(parts)


def narrow(state: State, rows: Sequence[int]) -> None:
    """Only these rows go on, without the columns that none of them needs."""
    from luthier.models.growing_cache import keep_rows

    chosen = list(rows)
    state.last, state.positions, state.mask = state.last[chosen], state.positions[chosen], state.mask[chosen]
    unseen = 0 if state.memory is not None else int(state.mask.any(dim=0).long().argmax())
    state.mask = state.mask[:, keep_rows(state.cache, chosen, unseen) :]
    if state.memory is not None:
        state.memory = (state.memory[0][chosen], state.memory[1][chosen])


def advance(base: Base, state: State, tokens: Tensor) -> None:
    if state.memory is not None:
        from luthier.models import seq2seq

        state.last = seq2seq.decode(base, tokens[:, None], *state.memory, state.cache)[0][:, -1]
        return
    state.mask = torch.cat([state.mask, torch.ones_like(state.mask[:, :1])], dim=1)
    out = base.anatomy.backbone(
        input_ids=tokens[:, None],
        attention_mask=state.mask,
        position_ids=state.positions[:, None],
        past_key_values=state.cache,
        use_cache=True,
    )
    state.last, state.cache = out.last_hidden_state[:, -1], out.past_key_values
    state.positions = state.positions + 1
