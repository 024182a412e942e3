"""The properties of the battery: each takes a cell and gives "yes", or "no: …" with what was measured, or "— reason".

A property that does not apply says why; nothing is left out silently.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cells as battery
import torch
from cells import Cell
from torch import Tensor

from luthier.core.errors import CannotMerge
from luthier.engine.batch import Batch
from luthier.methods import METHODS
from luthier.models import decode

Property = Callable[[Cell], str]
PROPERTIES: dict[str, Property] = {}


def prop(name: str) -> Callable[[Property], Property]:
    """Register under the name that the table shows."""

    def note(function: Property) -> Property:
        PROPERTIES[name] = function
        return function

    return note


def attach(cell: Cell) -> tuple[Any, Any, Any]:
    """(member, base, attached)."""
    member, base = METHODS.parse(cell.spec), cell.base()
    return member, base, started(member, base)


def started(member: Any, base: Any) -> Any:
    """Attached, and begun with what the layers read where the method wants that."""
    attached = member.attach(base, 11)
    if getattr(attached, "wants_inputs", False):
        with torch.no_grad():
            attached.start_from_inputs(lambda: battery.outputs(base, attached))
    return attached


def _close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> str:
    difference = float((found - wanted).abs().max())
    return (
        "yes" if difference <= tolerance * max(1.0, float(wanted.abs().max())) else f"no: differs by {difference:.2g}"
    )


def _equal(found: Tensor, wanted: Tensor) -> str:
    return "yes" if torch.equal(found, wanted) else f"no: differs by {float((found - wanted).abs().max()):.2g}"


def train(base: Any, attached: Any, steps: int, optimizer: Any = None) -> Any:
    """A few AdamW steps on the cell's rows."""
    optimizer = optimizer or torch.optim.AdamW(attached.parameters().values(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        battery.loss(base, attached).backward()
        optimizer.step()
    return optimizer


@prop("base frozen to the bit")
def frozen(cell: Cell) -> str:
    """After training, every tensor of the base that is not declared has its old bits."""
    _, base, attached = attach(cell)
    declared = {weight.data_ptr() for weight in attached.parameters().values()}
    before = {n: t.clone() for n, t in base.model.state_dict().items() if t.data_ptr() not in declared}
    train(base, attached, 2)
    changed = [
        name
        for name, tensor in base.model.state_dict().items()
        if name in before and not torch.equal(before[name], tensor)
    ]
    return "yes" if not changed else f"no: {changed[:3]}"


@prop("identity at the start")
def identity(cell: Cell) -> str:
    """The untrained method changes nothing."""
    with torch.no_grad():
        base = cell.base()
        wanted = battery.outputs(base, None)
        attached = started(METHODS.parse(cell.spec), base)
        if attached.virtual_tokens:
            return "— virtual tokens take attention from the first step on"
        found = battery.outputs(base, attached)
    return _close(found, wanted) if cell.rounds else _equal(found, wanted)


@prop("gradients: declared weights, all of them")
def gradients(cell: Cell) -> str:
    """Every declared weight gets a gradient, and nothing else asks for one."""
    _, base, attached = attach(cell)
    battery.shake(attached)
    battery.loss(base, attached).backward()
    mine = attached.parameters()
    without = [name for name, weight in mine.items() if weight.grad is None or not bool(weight.grad.abs().sum() > 0)]
    known = {id(weight) for weight in mine.values()}
    extra = [name for name, weight in base.model.named_parameters() if weight.requires_grad and id(weight) not in known]
    other = [name for name, weight in mine.items() if weight.dtype != torch.float32]
    return (
        "yes" if not (without or extra or other) else f"no: without {without[:3]}, extra {extra[:3]}, dtype {other[:3]}"
    )


@prop("count = formula")
def count(cell: Cell) -> str:
    """The formula, before and after attaching."""
    member, base = METHODS.parse(cell.spec), cell.base()
    before = member.formula(base)
    attached = member.attach(base, 11)
    counted = sum(weight.numel() for weight in attached.parameters().values())
    return "yes" if counted == before == member.formula(base) else f"no: {counted}, formula {before}"


@prop("save → load equal to the bit")
def reload(cell: Cell) -> str:
    """What is on disk is what was in memory."""
    member, base, attached = attach(cell)
    battery.shake(attached)
    with torch.no_grad(), tempfile.TemporaryDirectory() as place:
        wanted = battery.outputs(base, attached)
        attached.save(Path(place))
        other = cell.base()
        again = type(member).reload(Path(place), other)
        found = battery.outputs(other, again)
    return _close(found, wanted) if cell.rounds else _equal(found, wanted)  # these are saved as another, equal sum


@prop("resume equal to the bit")
def resume(cell: Cell) -> str:
    """Two steps, state, two steps = two steps, a new process' objects, load_state, two steps."""
    member, base, attached = attach(cell)
    optimizer = train(base, attached, 2)
    state, inner = attached.state(), copy.deepcopy(optimizer.state_dict())
    train(base, attached, 2, optimizer)
    other = cell.base()
    again = member.attach(other, 99)
    again.load_state(state)
    fresh = torch.optim.AdamW(again.parameters().values(), lr=1e-2)
    fresh.load_state_dict(inner)
    train(other, again, 2, fresh)
    with torch.no_grad():
        return _equal(battery.outputs(other, again), battery.outputs(base, attached))


@prop("off() = base")
def off(cell: Cell) -> str:
    """Switched off, the base answers; switched on again, the method."""
    with torch.no_grad():
        base = cell.base()
        wanted = battery.outputs(base, None)
        attached = METHODS.parse(cell.spec).attach(base, 11)
        battery.shake(attached)
        adapted = battery.outputs(base, attached)
        with attached.off():
            found = battery.outputs(base, attached)
        again = battery.outputs(base, attached)
    if torch.equal(adapted, wanted):
        return "no: the method does nothing"
    return _equal(found, wanted) if torch.equal(again, adapted) else "no: it does not come back"


@prop("merged ≡ adapted, or CannotMerge")
def merge(cell: Cell) -> str:
    """Folded into the base within 1e-5, or refused with a reason; never twice."""
    _, base, attached = attach(cell)
    battery.shake(attached)
    with torch.no_grad():
        wanted = battery.outputs(base, attached)
        try:
            attached.merge()
        except CannotMerge as error:
            return "no: refused, but can_merge" if attached.can_merge else f"— {str(error).splitlines()[0]}"
        if not attached.can_merge:
            return "no: merged, but not can_merge"
        found = battery.outputs(base, None)
    try:
        attached.merge()
    except CannotMerge:
        return _close(found, wanted)
    return "no: merged twice"


@prop("stock PEFT gives the same logits")
def stock(cell: Cell) -> str:
    """PeftModel.from_pretrained on the folder."""
    _, base, attached = attach(cell)
    if attached.peft_type is None:
        return "— own format"
    battery.shake(attached)
    with torch.no_grad(), tempfile.TemporaryDirectory() as place:
        attached.save(Path(place))
        return _close(battery.peft_outputs(cell, place), battery.outputs(base, attached))


@prop("one batch ≡ row by row")
def batching(cell: Cell) -> str:
    """Rows of different lengths in one batch answer as they do alone (so accumulation equals a big batch)."""
    _, base, attached = attach(cell)
    battery.shake(attached)
    with torch.no_grad():
        wanted = [battery.outputs(base, attached, battery.batch(cell.head, [row])) for row in battery.rows()]
        return _close(battery.outputs(base, attached), torch.cat(wanted))


@prop("packed ≡ padded")
def packed(cell: Cell) -> str:
    """The flat layout gives the padded one's outputs."""
    if cell.kind == "t5":
        return "— encoder-decoder models do not fit the flat layout"
    _, base, attached = attach(cell)
    battery.shake(attached)
    with torch.no_grad():
        padded, flat = (battery.outputs(base, attached, layout=layout) for layout in ("padded", "flat"))
    return _close(flat, padded)


@prop("activation checkpointing, or refused by its trait")
def checkpointing(cell: Cell) -> str:
    """Recomputed layers give the same gradients; methods that lose something there say so before loading."""
    member, base, attached = attach(cell)
    if attached.supports_activation_checkpointing != getattr(member, "supports_activation_checkpointing", True):
        return "no: the member and what it attaches disagree"
    if not attached.supports_activation_checkpointing:
        return "— refused: a prefix is lost when layers are recomputed"
    battery.shake(attached)
    found = []
    for on in (False, True):
        base.model.zero_grad()
        for weight in attached.parameters().values():
            weight.grad = None
        base.model.train()
        battery.loss(base, attached, checkpointing=on).backward()
        found.append(torch.cat([weight.grad.flatten() for weight in attached.parameters().values()]))
    return _close(found[1], found[0])


@prop("greedy: cached ≡ uncached, batched ≡ alone")
def generation(cell: Cell) -> str:
    """Left-padded prompts with a cache give the tokens of a plain loop without one."""
    if cell.head:
        return "— no text is generated here"
    _, base, attached = attach(cell)
    battery.shake(attached)
    answers = _Answers(base, attached)
    rows = battery.rows()
    prompts, tasks = [row.input_ids.tolist() for row in rows], [row.task for row in rows]
    limits: dict[str, Any] = {"max_new_tokens": 5, "stop_ids": []}
    together = [one.ids for one in decode.generate(answers, prompts, tasks=tasks, **limits)]
    alone = [
        decode.generate(answers, [prompt], tasks=[task], **limits)[0].ids
        for prompt, task in zip(prompts, tasks, strict=True)
    ]
    plain = [_uncached(base, attached, prompt, task) for prompt, task in zip(prompts, tasks, strict=True)]
    if together != alone:
        return f"no: {together} together, {alone} alone"
    return "yes" if alone == plain else f"no: {alone} cached, {plain} uncached"


class _Answers:
    """What decoding needs."""

    def __init__(self, base: Any, attached: Any):
        self.base, self.attached = base, attached

    def virtual(self, batch: Batch) -> Any:
        """The method's."""
        return self.attached.virtual(batch)


@torch.no_grad()
def _uncached(base: Any, attached: Any, prompt: list[int], task: int) -> list[int]:
    """Token by token, everything computed again. Virtual tokens come from the prompt and its task, once."""
    import numpy as np

    from luthier.core.types import IGNORE, Row
    from luthier.engine.batch import from_rows
    from luthier.models import forward

    seq2seq = base.kind == "encoder_decoder"

    def as_batch(ids: list[int]) -> Batch:
        labels = np.full(len(ids), IGNORE, np.int32)
        labels[len(prompt) :] = ids[len(prompt) :]
        return from_rows([Row("r", np.array(ids, np.int32), labels, task=task)])

    virtual, ids = attached.virtual(as_batch(prompt)), list(prompt)
    for _ in range(5):
        states = forward.hidden(base, as_batch([*ids, 0] if seq2seq else ids), virtual, "padded")
        ids.append(int(forward.logits(base, states[len(ids) - 1 : len(ids)]).argmax()))
    return ids[len(prompt) :]


def falls(cell: Cell, steps: int = 150) -> str:
    """The loss on twenty rows: after 150 steps near zero, or for methods of few numbers at least well below; after
    fewer steps at least below."""
    _, base, attached = attach(cell)
    rows = [battery.Row(f"r{i}", *_row(i), target=i % 3, task=i % 3) for i in range(20)]
    given = battery.batch(cell.head, rows)
    rate = {"ia3": 5e-2, "bitfit": 2e-2}.get(cell.spec["name"], 1e-2)
    optimizer = torch.optim.AdamW(attached.parameters().values(), lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        made = battery.outputs(base, attached, given)
        wanted = torch.tensor([row.target for row in rows]) if cell.head else given.targets
        loss = torch.nn.functional.cross_entropy(made, wanted, ignore_index=-100)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    few = bool(attached.virtual_tokens) or rate > 1e-2
    if cell.kind == "t5":  # its logits are scaled down by √d: it learns slowly
        most = 0.995 if few else 0.95
    else:
        most = (0.7 if few else 0.1) if steps >= 150 else (0.95 if few else 0.6)
    return "yes" if losses[-1] < most * losses[0] else f"no: {losses[0]:.2f} → {losses[-1]:.2f}"


def _row(index: int) -> tuple[Any, Any]:
    import numpy as np

    ids = np.random.default_rng(index).integers(4, 90, 6).astype(np.int32)
    return ids, np.where(np.arange(6) >= 4, ids, -100).astype(np.int32)
