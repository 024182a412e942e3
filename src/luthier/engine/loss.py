"""Cross entropy over supervised tokens only, in chunks, with the gradient made in the forward.

A full logit matrix of 4096 tokens × 128k words is 2 GB; here a chunk exists at a time. In training, each chunk's
softmax is turned into its gradient at once (two products with the head instead of three), so nothing of the
logits is kept for the backward. Equal to torch's cross entropy to float32 rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CHUNK_BYTES = 64 << 20
"""Logits of one chunk in float32."""


def chunked_nll(
    states: Tensor,
    targets: Tensor,
    head: nn.Module,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """states [N, hidden], targets [N] (no IGNORE) → (losses [N] float32, hit [N] bool).

    `head` is the output layer. A plain linear layer takes the fast path; anything else (an adapter on the head)
    goes through autograd, chunk by chunk. z_loss adds z·logsumexp² to each token's loss.
    """
    bias = getattr(head, "bias", None)
    if type(head) is not nn.Linear:
        return _by_autograd(states, targets, head, scale, softcap, label_smoothing, z_loss)
    needs = torch.is_grad_enabled() and (states.requires_grad or head.weight.requires_grad)
    options = (scale, softcap, label_smoothing, z_loss, needs)
    losses, hit = _ChunkedNll.apply(states, head.weight, bias, targets, *options)  # type: ignore[misc]
    return losses, hit


def _rows(vocabulary: int) -> int:
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def _losses(logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
    """(losses, logsumexp), each [n, ] float32."""
    total = torch.logsumexp(logits, dim=-1)
    losses = total - logits.gather(1, targets[:, None])[:, 0]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses + label_smoothing * (total - logits.mean(dim=-1))
    return (losses + z_loss * total.square() if z_loss else losses), total


def _by_autograd(
    states: Tensor, targets: Tensor, head: nn.Module, scale: float, softcap: float | None, smoothing: float, z: float
) -> tuple[Tensor, Tensor]:
    parts, hits = [], []
    size = _rows(1 << 14)
    for start in range(0, len(states), size):
        logits = head(states[start : start + size]).float() * scale
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        wanted = targets[start : start + size]
        parts.append(_losses(logits, wanted, smoothing, z)[0])
        hits.append(logits.detach().argmax(-1) == wanted)
    return torch.cat(parts), torch.cat(hits)


class _ChunkedNll(torch.autograd.Function):
    """Per-token losses; their gradients are weighted by the incoming gradient of each token in backward.

    The forward keeps dL/dstates for unit weights [N, hidden]. Since tokens are independent, a row of it times the
    incoming gradient of that token is exact. The head's own gradient mixes tokens, so where the head is trained
    its chunks are computed again in the backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        smoothing: float,
        z: float,
        needs: bool,
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        hit = torch.empty(len(states), dtype=torch.bool, device=states.device)
        keep = torch.empty_like(states) if needs and states.requires_grad else None
        size = _rows(weight.shape[0])
        options = (scale, softcap, smoothing, z)
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            logits, raw = _logits(states[part], weight, bias, scale, softcap)
            losses[part], total = _losses(logits, targets[part], smoothing, z)
            hit[part] = logits.argmax(-1) == targets[part]
            if keep is not None:
                keep[part] = _gradient(logits, raw, total, targets[part], *options).to(weight.dtype) @ weight
        ctx.options = options
        ctx.mark_non_differentiable(hit)
        trains_head = needs and weight.requires_grad
        ctx.save_for_backward(keep, states if trains_head else None, weight if trains_head else None, bias, targets)
        return losses, hit

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        keep, states, weight, bias, targets = ctx.saved_tensors
        each = incoming[0]
        to_states = None if keep is None else keep * each[:, None].to(keep.dtype)
        to_weight = to_bias = None
        if weight is not None:
            to_weight, to_bias = _head_gradient(states, weight, bias, targets, each, ctx.options)
        return to_states, to_weight, to_bias, None, None, None, None, None, None


def _logits(
    states: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """(float32 logits, tanh of the capped ones or None)."""
    logits = torch.nn.functional.linear(states.to(weight.dtype), weight, bias).float()
    if scale != 1.0:
        logits = logits * scale
    if not softcap:
        return logits, None
    squashed = torch.tanh(logits / softcap)
    return squashed * softcap, squashed


def _gradient(
    logits: Tensor,
    squashed: Tensor | None,
    total: Tensor,
    targets: Tensor,
    scale: float,
    softcap: float | None,
    smoothing: float,
    z: float,
) -> Tensor:
    """dLoss/d(head output) of each token, [n, vocabulary]; overwrites `logits`."""
    gradient = logits.sub_(total[:, None]).exp_()
    if z:
        gradient.mul_(1 + 2 * z * total[:, None])
    if smoothing:
        gradient.sub_(smoothing / gradient.shape[1])
    rows = torch.arange(len(targets), device=targets.device)
    gradient[rows, targets] -= 1 - smoothing
    if squashed is not None:
        gradient.mul_(1 - squashed.square())
    return gradient.mul_(scale) if scale != 1.0 else gradient


def _head_gradient(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, each: Tensor, options: tuple[Any, ...]
) -> tuple[Tensor, Tensor | None]:
    to_weight = torch.zeros_like(weight, dtype=torch.float32)
    to_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
    size = _rows(weight.shape[0])
    scale, softcap, smoothing, z = options
    for start in range(0, len(states), size):
        part = slice(start, start + size)
        logits, squashed = _logits(states[part], weight, bias, scale, softcap)
        total = torch.logsumexp(logits, dim=-1)
        gradient = _gradient(logits, squashed, total, targets[part], *options) * each[part, None]
        to_weight.addmm_(gradient.t(), states[part].float())
        if to_bias is not None:
            to_bias += gradient.sum(0)
    return to_weight.to(weight.dtype), None if to_bias is None or bias is None else to_bias.to(bias.dtype)
