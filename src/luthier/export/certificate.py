"""Parity certificates: is the model in that folder the model that was trained? Measured on held-out rows.

The reference is always the float32 adapted model. float32: the largest logit difference must stay within 1e-5 of the
largest logit (within 1e-5 itself where no logit reaches 1: float32 has seven digits, so an absolute 1e-5 at logits of
20 would ask for less than its rounding), and greedy answers must be the same, ties within that difference apart. Half
precisions: at least 99 % of the greedy tokens must be equal: those that the models choose along the held-out answers
and along the reference's own greedy answers, each after the same text. Free-running answers are told beside it, but
do not decide: one other token changes every later one.

Rows go through both models one by one, so no padding interferes and no logits are kept. Where a prompt's own words
stand, the model chooses nothing (`top1_agreement_everywhere` counts them too).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.types import IGNORE, Row

if TYPE_CHECKING:
    from luthier.adapted import AdaptedModel

FLOAT32_TOLERANCE = 1e-5
HALF_AGREEMENT = 0.99
VALUE_TOLERANCE = 0.05
MOST_ROWS = 32
GREEDY_ROWS, GREEDY_TOKENS = 4, 24

Logits = Callable[[Sequence[int], int], Tensor]
"""(token ids of one row, how many of them are the prompt) → [n, vocabulary] float32 logits, or [1, labels]. Of an
encoder-decoder, which reads the prompt and speaks the rest: [n − prompt + 1, vocabulary], from the prompt's end on."""


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
    def logits(ids: Sequence[int], prompt: int) -> Tensor:
        if adapted.base.kind == "encoder_decoder":  # one more target, so that the last token predicts something too
            targets = [*[IGNORE] * prompt, *ids[prompt:], 0]
            batch = from_rows([Row("parity", _array([*ids, 0]), _array(targets))])
            return forward.logits(adapted.base, adapted.hidden(batch)[prompt - 1 : len(ids)]).float().cpu()
        batch = from_rows([Row("parity", _array(ids), _array([IGNORE] * len(ids)))])
        if adapted.task.has_head:
            return adapted.row_logits(batch).float().reshape(1, -1).cpu()
        return forward.logits(adapted.base, adapted.hidden(batch)).float().cpu()

    return logits


def logits_of(model: Any, before: Callable[[Tensor], dict[str, Any]] | None = None) -> Logits:
    """Through a plain transformers model; `before(ids [1, n])` may give other inputs than `input_ids`."""
    model.eval()
    device = next(model.parameters()).device

    @torch.no_grad()
    def logits(ids: Sequence[int], prompt: int) -> Tensor:
        if model.config.is_encoder_decoder and not hasattr(model, "classification_head"):
            start = getattr(model.config, "decoder_start_token_id", None)
            start = model.config.pad_token_id if start is None else start
            sides = [
                torch.as_tensor(part, dtype=torch.int64, device=device)[None]
                for part in (list(ids[:prompt]), [start, *ids[prompt:]])
            ]
            spoken: Tensor = model(input_ids=sides[0], decoder_input_ids=sides[1], use_cache=False).logits[0]
            return spoken.float().cpu()
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
    """[count] bool: positions whose next token is one of the answer's; the one of a row of labels."""
    if count == 1:
        return torch.ones(count, dtype=torch.bool)
    return torch.cat([torch.as_tensor(_following(row, count) != IGNORE), torch.zeros(1, dtype=torch.bool)])


def _following(row: Row, count: int) -> Any:
    """[count − 1] the labels that the first positions of `count` logits predict."""
    return row.labels[len(row.labels) - count + 1 :]


def _nll(logits: Tensor, row: Row) -> tuple[float, int]:
    targets = torch.as_tensor(_following(row, len(logits)).copy(), dtype=torch.int64)
    if len(logits) < 2 or not bool((targets != IGNORE).any()):
        return 0.0, 0
    loss = torch.nn.functional.cross_entropy(logits[:-1], targets, ignore_index=IGNORE, reduction="sum")
    return float(loss), int((targets != IGNORE).sum())


def _same_choice(a: Tensor, b: Tensor, problem: str) -> Tensor:
    """[positions] bool. Greedy tokens or classes; of several labels a text, the set of those above one half; of a
    regression, values within 5 % of each other (or 0.05 below 1)."""
    if problem == "multi":
        return ((a >= 0) == (b >= 0)).all(-1)
    if problem == "regression":
        return ((a - b).abs() <= VALUE_TOLERANCE * a.abs().clamp(min=1.0)).all(-1)
    return a.argmax(-1) == b.argmax(-1)


def compare(before: Logits, after: Logits, rows: Sequence[Row], dtype: str, problem: str = "single") -> dict[str, Any]:
    """The certificate of two models on the same rows."""
    rows = [rows[index] for index in range(min(MOST_ROWS, len(rows)))]
    if not rows:
        return {"passed": False, "reason": "there are no held-out rows to compare on", "rows": 0}
    largest = size = total_difference = 0.0
    numbers = same = total = tokens = 0
    chosen = chosen_same = 0
    losses, finite = [0.0, 0.0], True
    for row in rows:
        ids, prompt = row.input_ids.tolist(), _prompt_size(row)
        a, b = before(ids, prompt), after(ids, prompt)
        if a.shape != b.shape:
            reason = f"the exported model gives {tuple(b.shape)} logits, not {tuple(a.shape)}"
            return {"passed": False, "reason": reason, "rows": len(rows)}
        finite = finite and bool(torch.isfinite(b).all())
        gap = (a - b).abs()
        largest, size = max(largest, float(gap.max())), max(size, float(a.abs().max()))
        total_difference, numbers = total_difference + float(gap.double().sum()), numbers + gap.numel()
        equal, answers = _same_choice(a, b, problem), _answers(row, len(a))
        same, total = same + int(equal.sum()), total + len(a)
        chosen_same, chosen = chosen_same + int(equal[answers].sum()), chosen + int(answers.sum())
        parts = _nll(a, row), _nll(b, row)
        losses, tokens = [losses[side] + parts[side][0] for side in (0, 1)], tokens + parts[0][1]
    agreement = chosen_same / chosen if chosen else same / total
    bound = FLOAT32_TOLERANCE * max(1.0, size)
    told = "" if finite else "not finite; "
    relative = {"of_the_largest_logit_or_1": FLOAT32_TOLERANCE}
    return {
        "passed": finite and (largest <= bound if dtype == "float32" else agreement >= HALF_AGREEMENT),
        "reason": f"{told}largest logit difference {largest:.3g}, greedy agreement {agreement:.4f}, dtype {dtype}",
        "finite": finite,
        "chosen": {"tokens": chosen or total, "equal": chosen_same if chosen else same},
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
        "tolerance": {"max_logit_difference": bound, **relative}
        if dtype == "float32"
        else {"greedy_tokens": HALF_AGREEMENT},
    }


def _real(value: float) -> float | None:
    return value if math.isfinite(value) else None


def greedy(
    before: Logits, after: Logits, rows: Sequence[Row], stop_ids: Sequence[int], window: int, bound: float
) -> dict[str, Any]:
    """Greedy answers to held-out prompts. `equal_tokens`: each model goes its own way. `followed_equal` of `followed`:
    what `after` chooses along the reference's answers. `ties`: answers that part where two tokens of the reference
    are within twice `bound`, so that either is its choice."""
    made = dict.fromkeys(("prompts", "identical", "tokens", "equal_tokens", "followed", "followed_equal", "ties"), 0)
    for prompt in [prompt for row in rows[:GREEDY_ROWS] if (prompt := _prompt(row))]:
        first, second = (_continue(logits, prompt, stop_ids, window) for logits in (before, after))
        same = [one == other for one, other in zip(first, second, strict=False)]
        made["prompts"] += 1
        made["equal_tokens"] += sum(same)
        made["tokens"] += max(len(first), len(second))
        made["followed"] += len(first)
        if first == second:
            made["identical"] += 1
            made["followed_equal"] += len(first)
            continue
        along = after([*prompt, *first], len(prompt))[-len(first) - 1 : -1].argmax(-1)
        made["followed_equal"] += int((along == torch.tensor(first)).sum())
        at = same.index(False)
        choice = before([*prompt, *first[:at]], len(prompt))[-1]
        made["ties"] += float(choice[first[at]] - choice[second[at]]) <= 2 * bound
    return made


def _prompt_size(row: Row) -> int:
    """Tokens before the first trained one; of a document, half of it."""
    trained = (row.labels != IGNORE).nonzero()[0]
    return int(trained[0]) if len(trained) and trained[0] > 1 else len(row.input_ids) // 2


def _prompt(row: Row) -> list[int]:
    return [int(token) for token in row.input_ids[: _prompt_size(row)]]


def _continue(logits: Logits, prompt: Sequence[int], stop_ids: Sequence[int], window: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < min(len(prompt) + GREEDY_TOKENS, window):
        ids.append(int(logits(ids, len(prompt))[-1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


def certify(adapted: AdaptedModel, after: Logits, rows: Sequence[Row], dtype: str) -> dict[str, Any]:
    """Everything a certificate says about logits: `after` against the adapted model in float32."""
    source = reference(adapted)
    before = logits_of_adapted(source)
    rows = [rows[index] for index in range(min(MOST_ROWS, len(rows)))]
    made = compare(before, after, rows, dtype, adapted.problem if adapted.task.has_head else "single")
    chosen, finite = made.pop("chosen", None), made.pop("finite", False)
    if not adapted.task.has_head and chosen is not None:
        window = adapted.base.anatomy.window - adapted.attached.virtual_tokens
        bound = FLOAT32_TOLERANCE * max(1.0, made["logit_size"])
        made["greedy"] = greedy(before, after, rows, adapted.base.stop_ids, window, bound)
        _gate_greedy(made, chosen, finite, dtype)
    return made


def _gate_greedy(made: dict[str, Any], chosen: Mapping[str, int], finite: bool, dtype: str) -> None:
    """Add `greedy_tokens`, and let the greedy answers decide too."""
    found = made["greedy"]
    share = (chosen["equal"] + found["followed_equal"]) / max(1, chosen["tokens"] + found["followed"])
    made["greedy_tokens"] = {"compared": chosen["tokens"] + found["followed"], "equal": share}
    if dtype == "float32":
        others = found["prompts"] - found["identical"] - found["ties"]
        made["passed"] = made["passed"] and others == 0
        made["reason"] += f"; {others} of {found['prompts']} greedy answers differ"
    else:
        made["passed"] = finite and share >= HALF_AGREEMENT
        made["reason"] += f"; {share:.4f} of all greedy tokens equal"


def loader_name(adapted: AdaptedModel) -> str:
    """The class of transformers that opens the merged model."""
    if adapted.task.has_head:
        return "AutoModelForSequenceClassification"
    return "AutoModelForSeq2SeqLM" if adapted.base.kind == "encoder_decoder" else "AutoModelForCausalLM"


def open_folder(folder: Path, dtype: str, loader: str, device: Any = "cpu") -> Any:
    """A model folder through plain transformers, local and without foreign code."""
    import transformers

    from luthier.models.load import quiet

    with quiet():
        model, info = getattr(transformers, loader).from_pretrained(
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
    model = open_folder(folder, dtype, loader_name(adapted), adapted.device)
    return certify(adapted, logits_of(model), rows, dtype)
