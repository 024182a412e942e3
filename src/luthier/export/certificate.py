"""Parity certificates: is the model in that folder the model that was trained? Measured on held-out rows.

float32: the largest logit difference must stay within 1e-5 of the logits' own size; half precisions: at least
99 % of the greedy next tokens must be equal. The base's own rounding is reported beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.fingerprint import of_folder
from luthier.core.types import IGNORE, Row

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel

FLOAT32_TOLERANCE = 1e-5
HALF_AGREEMENT = 0.99
MOST_ROWS = 32


@torch.no_grad()
def logits_of(model: torch.nn.Module, rows: Sequence[Row]) -> list[Tensor]:
    """[n, vocabulary] (or [1, labels]) float32 logits of each row, one by one: no padding can interfere."""
    model.eval()
    device = next(model.parameters()).device
    ids = [torch.as_tensor(row.input_ids, dtype=torch.int64, device=device)[None] for row in rows]
    return [model(input_ids=one, use_cache=False).logits[0].float().reshape(-1, _width(model, one)) for one in ids]


def _width(model: torch.nn.Module, ids: Tensor) -> int:
    config: Any = model.config
    architectures = str(type(model).__name__)
    return int(config.num_labels) if "SequenceClassification" in architectures else int(_vocabulary(model, config))


def _vocabulary(model: torch.nn.Module, config: Any) -> int:
    head = model.get_output_embeddings()  # type: ignore[operator]
    return int(head.weight.shape[0]) if head is not None else int(config.vocab_size)


def _nll(logits: Tensor, row: Row) -> tuple[float, int]:
    targets = torch.as_tensor(row.labels[1:].copy(), dtype=torch.int64)
    if len(logits) < 2 or not bool((targets != IGNORE).any()):
        return 0.0, 0
    loss = torch.nn.functional.cross_entropy(logits[:-1].cpu(), targets, ignore_index=IGNORE, reduction="sum")
    return float(loss), int((targets != IGNORE).sum())


def compare(before: Sequence[Tensor], after: Sequence[Tensor], rows: Sequence[Row], dtype: str) -> dict[str, Any]:
    """The certificate of two sets of logits."""
    largest = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    mean = sum(float((a - b).abs().mean()) for a, b in zip(before, after, strict=True)) / len(rows)
    size = max(1.0, max(float(a.abs().max()) for a in before))
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(before, after, strict=True))
    total = sum(len(a) for a in before)
    perplexity = {}
    for name, logits in (("before", before), ("after", after)):
        parts = [_nll(one, row) for one, row in zip(logits, rows, strict=True)]
        tokens = sum(count for _, count in parts)
        perplexity[name] = math.exp(min(700.0, sum(loss for loss, _ in parts) / tokens)) if tokens else None
    agreement = same / max(1, total)
    finite = all(bool(torch.isfinite(one).all()) for one in after)
    exact = dtype == "float32"
    passed = finite and (largest <= FLOAT32_TOLERANCE * size if exact else agreement >= HALF_AGREEMENT)
    reason = f"largest logit difference {largest:.3g}, greedy agreement {agreement:.4f}, dtype {dtype}"
    return {
        "passed": passed,
        "reason": reason,
        "dtype": dtype,
        "rows": len(rows),
        "positions": total,
        "max_logit_difference": largest,
        "mean_logit_difference": mean,
        "logit_size": size,
        "top1_agreement": agreement,
        "greedy_equal": same == total,
        "perplexity": perplexity,
        "tolerance": {"float32_relative": FLOAT32_TOLERANCE, "half_agreement": HALF_AGREEMENT},
    }


def certify_folder(adapted: AdaptedModel, folder: Path, rows: Sequence[Row], dtype: str) -> dict[str, Any]:
    """Load `folder` with plain transformers and compare it with the model in memory."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    probe = list(rows[index] for index in range(min(MOST_ROWS, len(rows))))
    loader = AutoModelForSequenceClassification if adapted.task.has_head else AutoModelForCausalLM
    other: Any = loader.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=False, local_files_only=True
    )
    other.to(adapted.device)
    made = compare(logits_of(adapted.base.model, probe), logits_of(other, probe), probe, dtype)
    return {**made, "files": of_folder(folder, ("*.safetensors", "*.json")), "base": adapted.base.fingerprint}
