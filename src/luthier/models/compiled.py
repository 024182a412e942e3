"""`train.compile`: torch compiles every layer, around the segment attention, which stays as it is.

    norm, q k v, rotation │ segment attention │ output product, sum, norm, feed-forward, sum
          one graph       │   as it is        │                 one graph

What is gained is elementwise work: norms, rotations, activations and sums become few loops. The token count is a
symbol and layers of one kind share their graphs, so nothing is compiled again during training. Only training passes
use them; evaluation, samples and health see the model's own code. Before training, loss and gradients are held against
the uncompiled ones. On a GPU the graphs are recorded as CUDA graphs (torch's `reduce-overhead`), over token counts that
are multiples of `STEP`, since each count is a recording of its own. **The GPU's part is unmeasured**:
no GPU has run it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.core.events import Emit, silent
from luthier.core.seeding import seed_everything
from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.models import segments, selfcheck
from luthier.models.base import Base

STEP = 256
"""Tokens between two budgets of a CUDA graph."""
PAYS = 1e10
"""Trained tokens · layers · hidden size from which `auto` compiles: some three times what compiling costs. Measured on
one busy core with 8 layers of width 384: a step of 2510 tokens is 6 % (0.2 s) shorter, compiling takes 70 s."""


def reason_against(adapted: Any, settings: Any) -> str:
    """Why the layers of this training cannot be compiled; empty where they can."""
    if adapted.layout != "flat":
        return "the layout is padded"
    if settings.int8_base or settings.trunk_cache:
        return "it does not go with int8_base or trunk_cache"
    if settings.activation_checkpointing:
        return "torch compiles nothing inside of activation checkpointing"
    on_cpu = next(adapted.base.model.parameters()).device.type == "cpu"
    if on_cpu and shutil.which("g++") is None and shutil.which("clang++") is None:
        return "there is no C++ compiler"
    return ""


def pays(base: Base, tokens: float) -> bool:
    """Whether a training of this many tokens gets back what compiling costs (on a CPU; a GPU was not measured)."""
    if next(base.model.parameters()).device.type != "cpu":
        return False
    return tokens * len(base.anatomy.layers) * base.anatomy.hidden_size >= PAYS


def install_checked(adapted: Any, rows: Sequence[Row], settings: Any, tokens: float, emit: Emit = silent) -> bool:
    """Compile where it is asked for (`on`) or pays (`auto`), can be done, and changes nothing; else say why not."""
    if settings.compile == "off" or (settings.compile == "auto" and not pays(adapted.base, tokens)):
        return False
    reason = reason_against(adapted, settings)
    if not reason:
        found = difference(adapted, rows)
        reason = found if isinstance(found, str) else ""
        if isinstance(found, float):
            emit("compiled", layers=len(adapted.base.anatomy.layers), difference=found)
            return True
    emit("warning", what=f"layers are not compiled: {reason}", where="train.compile", remedy="only speed is lost")
    return False


def difference(adapted: Any, rows: Sequence[Row]) -> float | str:
    """Install; the difference of loss and gradients to the uncompiled layers, or why they were taken out again."""
    adapted.train()
    before = _measured(adapted, rows)
    try:
        install(adapted.base)
        worst = selfcheck.difference(before, _measured(adapted, rows))
        reason = f"they differ by {worst:.2g}" if worst > selfcheck.allowed(adapted) else ""
    except Exception as error:  # whatever a compiler raises: without it the training is the same
        worst, reason = 0.0, f"{type(error).__name__}: {error}".split("\n")[0][:200]
    adapted.eval()
    if reason:
        remove(adapted.base)
    return reason or worst


def _measured(adapted: Any, rows: Sequence[Row]) -> dict[str, Tensor]:
    """As the training computes it, dropout too: what is compiled here is what is used."""
    seed_everything(0)
    return selfcheck.measure(adapted, [from_rows(list(rows))])


def install(base: Base) -> None:
    """Give every layer a compiled forward for its training passes."""
    on_gpu = next(base.model.parameters()).device.type == "cuda"
    options: dict[str, Any] = {"fallback_random": True}  # dropout draws what it would have drawn
    if on_gpu:
        options["triton.cudagraphs"] = True
        base.token_step = STEP
    segments.make_opaque(True)
    for _, layer in base.anatomy.layers:
        layer.__dict__["forward"] = _forward(layer, options)
    if on_gpu:
        keep = [weight.register_hook(torch.clone) for weight in base.model.parameters() if weight.requires_grad]
        base.compiled = [base.anatomy.backbone.register_forward_pre_hook(_new_step), *keep]


def _forward(layer: Any, options: dict[str, Any]) -> Any:
    exact = layer.forward
    made = torch.compile(exact, dynamic=True, options=options)

    def forward(*given: Any, **named: Any) -> Any:
        return (made if layer.training and torch.is_grad_enabled() else exact)(*given, **named)

    forward.is_compiled = True  # type: ignore[attr-defined]
    return forward


def _new_step(module: Any, given: tuple[Any, ...]) -> None:
    """What an earlier step's CUDA graphs wrote may be written over; gradients were cloned out of it."""
    torch.compiler.cudagraph_mark_step_begin()


def remove(base: Base) -> None:
    """The layers' own code again."""
    for _, layer in base.anatomy.layers:
        if getattr(layer.__dict__.get("forward"), "is_compiled", False):
            del layer.__dict__["forward"]
    for handle in base.compiled:
        handle.remove()
    base.compiled, base.token_step = [], None
    segments.make_opaque(False)
