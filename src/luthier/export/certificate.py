"""Parity certificates: is the model in that folder the model that was trained? Measured on held-out rows.

The reference is always the float32 adapted model. float32: the largest logit difference must stay within 1e-5 of the
logits' own size; half precisions: at least 99 % of the greedy next tokens must be equal. Rows go through both models
one by one, so no padding interferes and no logits are kept. Greedy tokens are those of the answers: where a prompt's
own words stand, the model chooses nothing (`top1_agreement_everywhere` counts them too).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.types import IGNORE, Row

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel

FLOAT32_TOLERANCE = 1e-5
HALF_AGREEMENT = 0.99
MOST_ROWS = 32
GREEDY_ROWS, GREEDY_TOKENS = 4, 24

Logits = Callable[[Sequence[int]], Tensor]
"""Token ids of one row → [n, vocabulary] float32 logits, or [1, labels]."""


def reference(adapted: AdaptedModel) -> AdaptedModel:
    """The adapted model in float32: itself, or a copy where it computes in less."""
    from luthier.export.fold import float32_copy

    parameters = adapted.base.model.parameters()
    return adapted if all(weight.dtype == torch.float32 for weight in parameters) else float32_copy(adapted)


def logits_of_adapted(adapted: AdaptedModel) -> Logits:
    """Through luthier's own forward: every method, virtual tokens included."""
    from luthier.engine.batch import from_rows
    from luthier.models import forward

    adapted.eval()

    @torch.no_grad()
    def logits(ids: Sequence[int]) -> Tensor:
        row = Row("parity", _array(ids), _array([IGNORE] * len(ids)))
        batch = from_rows([row])
        if adapted.task.has_head:
            return adapted.row_logits(batch).float().reshape(1, -1).cpu()
        return forward.logits(adapted.base, adapted.hidden(batch)).float().cpu()

    return logits


def logits_of(model: Any, before: Callable[[Tensor], dict[str, Any]] | None = None) -> Logits:
    """Through a plain transformers model; `before(ids [1, n])` may give other inputs than `input_ids`."""
    model.eval()
    device = next(model.parameters()).device

    @torch.no_grad()
    def logits(ids: Sequence[int]) -> Tensor:
        one = torch.as_tensor(list(ids), dtype=torch.int64, device=device)[None]
        inputs = before(one) if before else {"input_ids": one}
        made = model(**inputs, **({} if model.config.model_type == "bert" else {"use_cache": False})).logits
        found: Tensor = made.reshape(-1, made.shape[-1])[-len(ids) :].float().cpu()
        return found

    return logits


def _array(values: Sequence[int]) -> Any:
    import numpy as np

    return np.asarray(values, dtype=np.int32)


def _answers(row: Row, count: int) -> Tensor:
    """[count] bool: positions whose next token is one of the answer's; all of them for a row of labels."""
    if count != len(row.labels):
        return torch.ones(count, dtype=torch.bool)
    return torch.cat([torch.as_tensor(row.labels[1:] != IGNORE), torch.zeros(1, dtype=torch.bool)])


def _nll(logits: Tensor, row: Row) -> tuple[float, int]:
    targets = torch.as_tensor(row.labels[1:].copy(), dtype=torch.int64)
    if len(logits) < 2 or not bool((targets != IGNORE).any()):
        return 0.0, 0
    loss = torch.nn.functional.cross_entropy(logits[:-1], targets, ignore_index=IGNORE, reduction="sum")
    return float(loss), int((targets != IGNORE).sum())


def compare(before: Logits, after: Logits, rows: Sequence[Row], dtype: str) -> dict[str, Any]:
    """The certificate of two models on the same rows."""
    rows = [rows[index] for index in range(min(MOST_ROWS, len(rows)))]
    if not rows:
        return {"passed": False, "reason": "there are no held-out rows to compare on", "rows": 0}
    largest = size = total_difference = 0.0
    numbers = same = total = tokens = 0
    chosen = chosen_same = 0
    losses, finite = [0.0, 0.0], True
    for row in rows:
        a, b = before(row.input_ids.tolist()), after(row.input_ids.tolist())
        if a.shape != b.shape:
            reason = f"the exported model gives {tuple(b.shape)} logits, not {tuple(a.shape)}"
            return {"passed": False, "reason": reason, "rows": len(rows)}
        finite = finite and bool(torch.isfinite(b).all())
        gap = (a - b).abs()
        largest, size = max(largest, float(gap.max())), max(size, float(a.abs().max()))
        total_difference, numbers = total_difference + float(gap.double().sum()), numbers + gap.numel()
        equal, answers = a.argmax(-1) == b.argmax(-1), _answers(row, len(a))
        same, total = same + int(equal.sum()), total + len(a)
        chosen_same, chosen = chosen_same + int(equal[answers].sum()), chosen + int(answers.sum())
        parts = _nll(a, row), _nll(b, row)
        losses, tokens = [losses[side] + parts[side][0] for side in (0, 1)], tokens + parts[0][1]
    agreement = chosen_same / chosen if chosen else same / total
    bound = FLOAT32_TOLERANCE * max(1.0, size)
    passed = finite and (largest <= bound if dtype == "float32" else agreement >= HALF_AGREEMENT)
    told = "" if finite else "not finite; "
    return {
        "passed": passed,
        "reason": f"{told}largest logit difference {largest:.3g}, greedy agreement {agreement:.4f}, dtype {dtype}",
        "dtype": dtype,
        "rows": len(rows),
        "positions": total,
        "max_logit_difference": _real(largest),
        "mean_logit_difference": _real(total_difference / numbers),
        "logit_size": size,
        "top1_agreement": agreement,
        "top1_agreement_everywhere": same / total,
        "perplexity": {
            side: _real(math.exp(min(700.0, loss / tokens))) if tokens and math.isfinite(loss) else None
            for side, loss in zip(("before", "after"), losses, strict=True)
        },
        "tolerance": {"max_logit_difference": bound} if dtype == "float32" else {"top1_agreement": HALF_AGREEMENT},
    }


def _real(value: float) -> float | None:
    return value if math.isfinite(value) else None


def greedy(before: Logits, after: Logits, rows: Sequence[Row], stop_ids: Sequence[int], window: int) -> dict[str, Any]:
    """Greedy answers to held-out prompts, token by token, from both models."""
    equal = identical = tokens = 0
    prompts = [prompt for row in rows[:GREEDY_ROWS] if (prompt := _prompt(row))]
    for prompt in prompts:
        first, second = (_continue(logits, prompt, stop_ids, window) for logits in (before, after))
        equal += sum(one == other for one, other in zip(first, second, strict=False))
        tokens += max(len(first), len(second))
        identical += first == second
    return {"prompts": len(prompts), "identical": identical, "tokens": tokens, "equal_tokens": equal}


def _prompt(row: Row) -> list[int]:
    """Everything before the first trained token; of a document, its first half."""
    trained = (row.labels != IGNORE).nonzero()[0]
    cut = int(trained[0]) if len(trained) and trained[0] > 1 else len(row.input_ids) // 2
    return [int(token) for token in row.input_ids[:cut]]


def _continue(logits: Logits, prompt: Sequence[int], stop_ids: Sequence[int], window: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < min(len(prompt) + GREEDY_TOKENS, window):
        ids.append(int(logits(ids)[-1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


def certify(adapted: AdaptedModel, after: Logits, rows: Sequence[Row], dtype: str) -> dict[str, Any]:
    """Everything a certificate says about logits: `after` against the adapted model in float32."""
    source = reference(adapted)
    before = logits_of_adapted(source)
    rows = [rows[index] for index in range(min(MOST_ROWS, len(rows)))]
    made = compare(before, after, rows, dtype)
    if not adapted.task.has_head and made["rows"] and "positions" in made:
        window = adapted.base.anatomy.window - adapted.attached.virtual_tokens
        made["greedy"] = greedy(before, after, rows, adapted.base.stop_ids, window)
    return made


def open_folder(folder: Path, dtype: str, has_head: bool, device: Any = "cpu") -> Any:
    """A model folder through plain transformers, local and without foreign code."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from luthier.models.load import quiet

    loader: Any = AutoModelForSequenceClassification if has_head else AutoModelForCausalLM
    with quiet():
        model, info = loader.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        from luthier.core.errors import ModelError

        raise ModelError(f"the exported folder lacks {', '.join(missing[:5])}", where=str(folder))
    return model.to(device)


def certify_folder(adapted: AdaptedModel, folder: Path, rows: Sequence[Row], dtype: str) -> dict[str, Any]:
    """Load `folder` with plain transformers and compare it with the model in memory."""
    model = open_folder(folder, dtype, adapted.task.has_head, adapted.device)
    return certify(adapted, logits_of(model), rows, dtype)
