"""Liger's Triton kernels for RMSNorm and SwiGLU, where `liger_kernel` is installed and the base is on a GPU.

Norms and gated feed-forwards are found by what they compute, not by their class, and each gets a forward of its own
instance; nothing of transformers is replaced. Before training, loss and gradients with the kernels are held against
those without: beyond rounding they are left off, and the reason is said. The rotation of queries and keys is left
alone: transformers calls it as a function of the model's file, which has no seam but a patch. **Unmeasured**: no GPU
has run it; what is chosen and how it is called is tested on a CPU with kernels that follow Liger's documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.events import Emit, silent
from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.models import selfcheck
from luthier.models.base import Base

FORMS: tuple[tuple[float, str], ...] = ((0.0, "llama"), (1.0, "gemma"), (0.0, "gemma"))
"""(what is added to the weight, where it rounds): Liger's names for the RMSNorms of transformers."""


def available(base: Base) -> bool:
    """Whether Liger is installed and this base stands where its kernels run."""
    return next(base.model.parameters()).device.type == "cuda" and find_spec("liger_kernel") is not None


def install_checked(adapted: Any, rows: Sequence[Row], emit: Emit = silent) -> bool:
    """Use the kernels if loss and gradients of these rows stay the same; else leave everything as it was."""
    adapted.eval()
    batches = [from_rows(list(rows))]
    before = selfcheck.measure(adapted, batches)
    try:
        found = install(adapted.base)
        if not found["norms"] + found["feed_forwards"]:
            return False
        worst = selfcheck.difference(before, selfcheck.measure(adapted, batches))
        reason = f"they differ by {worst:.2g}" if worst > selfcheck.allowed(adapted) else ""
    except (ImportError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason, worst, found = f"{type(error).__name__}: {error}".split("\n")[0][:200], float("inf"), {}
    if reason:
        remove(adapted.base)
        emit("warning", what=f"Liger's kernels are off: {reason}", where="train.engine", remedy="only speed is lost")
        return False
    emit("kernels", **found, difference=worst, tolerance=selfcheck.allowed(adapted))
    return True


def install(base: Base) -> dict[str, int]:
    """Give norms and feed-forwards Liger's forward; {"norms": how many, "feed_forwards": how many}."""
    from liger_kernel.transformers.functional import liger_rms_norm, liger_swiglu  # type: ignore[import-not-found]

    norms = feed_forwards = 0
    for module in list(base.anatomy.backbone.modules()):
        if (form := norm_form(module)) is not None:
            module.__dict__["forward"] = _norm(module, form, liger_rms_norm)
            norms += 1
        elif is_swiglu(module):
            module.__dict__["forward"] = _feed_forward(module, liger_swiglu)
            feed_forwards += 1
    return {"norms": norms, "feed_forwards": feed_forwards}


def remove(base: Base) -> None:
    """The modules' own forwards again."""
    for module in base.anatomy.backbone.modules():
        if getattr(module.__dict__.get("forward"), "is_kernel", False):
            del module.__dict__["forward"]


def _norm(module: nn.Module, form: tuple[float, float, str], kernel: Any) -> Any:
    eps, offset, mode = form

    def forward(hidden_states: Tensor) -> Any:
        # in_place would write into the incoming gradient, which a residual sum may still need
        return kernel(hidden_states, module.weight, eps, offset=offset, casting_mode=mode, in_place=False)

    forward.is_kernel = True  # type: ignore[attr-defined]
    return forward


def _feed_forward(module: Any, kernel: Any) -> Any:
    def forward(hidden_states: Tensor) -> Any:
        return module.down_proj(kernel(module.gate_proj(hidden_states), module.up_proj(hidden_states)))

    forward.is_kernel = True  # type: ignore[attr-defined]
    return forward


def norm_form(module: nn.Module) -> tuple[float, float, str] | None:
    """(epsilon, offset, rounding) of an RMSNorm, measured on a few numbers; None for anything else."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    made = _answer(module, weight.shape[0], weight)
    if made is None or made.shape != (4, weight.shape[0]):
        return None
    given, limit = _probe(weight.shape[0], weight), 4 * torch.finfo(weight.dtype).eps
    with torch.no_grad():
        errors = {form: float((rms_norm(given, weight, eps, *form) - made).abs().max()) for form in FORMS}
    best = min(errors, key=lambda form: errors[form])
    return (eps, *best) if errors[best] <= limit * float(made.abs().max()) else None


def rms_norm(states: Tensor, weight: Tensor, eps: float, offset: float = 0.0, mode: str = "llama") -> Tensor:
    """The formula, rounded where the model rounds: before the weight (llama) or after it (gemma)."""
    real = states.float()
    normed = real * torch.rsqrt(real.square().mean(-1, keepdim=True) + eps)
    if mode == "llama":
        return (weight + offset) * normed.to(states.dtype)
    return (normed * (offset + weight.float())).to(states.dtype)


def is_swiglu(module: Any) -> bool:
    """Whether a module computes down(silu(gate(x)) · up(x)), measured on a few numbers."""
    parts: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Module) and hasattr(part, "in_features") for part in parts):
        return False
    gate, up, down = parts
    weight = next(module.parameters())
    made, act = _answer(module, gate.in_features, weight), getattr(module, "act_fn", None)
    if made is None or act is None:
        return False
    with torch.no_grad():
        given = _probe(gate.in_features, weight)
        if not torch.allclose(act(given), nn.functional.silu(given), rtol=1e-2, atol=1e-2):
            return False  # near zero, where a fresh model's gates are, all such functions are alike
        wanted = down(nn.functional.silu(gate(given)) * up(given))
    limit = 8 * torch.finfo(made.dtype).eps * float(wanted.abs().max())
    return made.shape == wanted.shape and float((made - wanted).abs().max()) <= limit


def _probe(width: int, like: Tensor) -> Tensor:
    """[4, width] of ordinary numbers."""
    source = torch.Generator().manual_seed(0)
    return torch.randn(4, width, generator=source).to(like.device, like.dtype)


def _answer(module: nn.Module, width: int, like: Tensor) -> Tensor | None:
    """What the module gives for the probe; None where it takes something else."""
    if not like.is_floating_point():
        return None
    try:
        with torch.no_grad():
            made = module(_probe(width, like))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return None
    return made if isinstance(made, Tensor) else None
