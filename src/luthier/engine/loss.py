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
"""Logits of one chunk in float32, on CPU; a GPU takes eight times as much."""
CHUNK_ROWS = 384
"""On CPU, more rows make the product no faster, and a smaller buffer stays nearer to the caches."""


def chunked_nll(
    states: Tensor,
    targets: Tensor,
    head: nn.Module,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    hits: bool = True,
) -> tuple[Tensor, Tensor]:
    """states [N, hidden], targets [N] (no IGNORE) → (losses [N] float32, hit [N] bool).

    `head` is the output layer. A plain linear layer takes the fast path; anything else (an adapter on the head)
    goes through autograd, chunk by chunk. z_loss adds z·logsumexp² to each token's loss. `hit` (the likeliest
    token is the target) costs a pass over the logits; without `hits` it is False everywhere.
    """
    bias = getattr(head, "bias", None)
    if type(head) is not nn.Linear:
        return _by_autograd(states, targets, head, scale, softcap, label_smoothing, z_loss)
    needs = torch.is_grad_enabled() and (states.requires_grad or head.weight.requires_grad)
    options = (scale, softcap, label_smoothing, z_loss, needs, hits)
    losses, hit = _ChunkedNll.apply(states, head.weight, bias, targets, *options)  # type: ignore[misc]
    return losses, hit


def _rows(vocabulary: int, on_gpu: bool = False) -> int:
    if on_gpu:
        return max(16, 8 * CHUNK_BYTES // (4 * vocabulary))
    return max(16, min(CHUNK_ROWS, CHUNK_BYTES // (4 * vocabulary)))


def _losses(logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
    """[n] float32, through autograd."""
    total = torch.logsumexp(logits, dim=-1)
    losses = total - logits.gather(1, targets[:, None])[:, 0]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses + label_smoothing * (total - logits.mean(dim=-1))
    return losses + z_loss * total.square() if z_loss else losses


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
        parts.append(_losses(logits, wanted, smoothing, z))
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
        hits: bool,
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        hit = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        keep = torch.empty_like(states) if needs and states.requires_grad else None
        size = min(_rows(weight.shape[0], states.is_cuda), max(1, len(states)))
        options = (scale, softcap, smoothing, z)
        buffer = _buffer(size, weight)
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            logits, squashed = _logits(states[part], weight, bias, scale, softcap, buffer)
            if hits:
                hit[part] = logits.argmax(-1) == targets[part]
            losses[part], gradient, factor = _softmax(logits, squashed, targets[part], options, keep is not None)
            if keep is not None:
                keep[part] = (gradient.to(weight.dtype) @ weight) * factor
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
        return to_states, to_weight, to_bias, None, None, None, None, None, None, None


def _buffer(rows: int, weight: Tensor) -> Tensor | None:
    """One buffer for the logits of all chunks: a fresh one for each costs more in page faults than its product."""
    if weight.dtype != torch.float32:
        return None
    return torch.empty(rows, weight.shape[0], dtype=torch.float32, device=weight.device)


def _logits(
    states: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None, buffer: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(float32 logits that may be overwritten, tanh of the capped ones or None)."""
    given = states.to(weight.dtype)
    if buffer is None:
        logits = torch.nn.functional.linear(given, weight, bias).float()
    elif bias is None:
        logits = torch.mm(given, weight.t(), out=buffer[: len(given)])
    else:
        logits = torch.addmm(bias, given, weight.t(), out=buffer[: len(given)])
    if scale != 1.0:
        logits.mul_(scale)
    if not softcap:
        return logits, None
    squashed = torch.tanh(logits.div_(softcap))
    return torch.mul(squashed, softcap, out=logits), squashed


def _softmax(
    logits: Tensor, squashed: Tensor | None, targets: Tensor, options: tuple[Any, ...], wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses [n], gradient [n, vocabulary], factor [n, 1]); overwrites `logits`.

    dLoss/d(head output) is gradient · factor: the softmax's division is left to the product with the head, which
    is `vocabulary / hidden` times smaller.
    """
    scale, _, smoothing, z = options
    wanted = logits.gather(1, targets[:, None])
    mean = logits.mean(dim=-1, keepdim=True) if smoothing else None
    top = logits.amax(dim=-1, keepdim=True)
    powers = logits.sub_(top).exp_()
    size = powers.sum(dim=-1, keepdim=True)
    total = size.log() + top
    losses = total - wanted
    if mean is not None:
        losses = (1 - smoothing) * losses + smoothing * (total - mean)
    if z:
        losses = losses + z * total.square()
    factor = scale / size
    if wants_gradient:
        if z:
            powers.mul_(1 + 2 * z * total)
        if smoothing:
            powers.sub_(size * (smoothing / powers.shape[1]))
        powers.scatter_add_(1, targets[:, None], size * (smoothing - 1))
        if squashed is not None:
            powers.mul_(1 - squashed.square())
    return losses[:, 0], powers, factor


def _head_gradient(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, each: Tensor, options: tuple[Any, ...]
) -> tuple[Tensor, Tensor | None]:
    to_weight = torch.zeros_like(weight, dtype=torch.float32)
    to_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
    size = min(_rows(weight.shape[0], states.is_cuda), max(1, len(states)))
    buffer = _buffer(size, weight)
    scale, softcap, _, _ = options
    for start in range(0, len(states), size):
        part = slice(start, start + size)
        logits, squashed = _logits(states[part], weight, bias, scale, softcap, buffer)
        _, gradient, factor = _softmax(logits, squashed, targets[part], options, True)
        gradient.mul_(factor * each[part, None])
        to_weight.addmm_(gradient.t(), states[part].float())
        if to_bias is not None:
            to_bias += gradient.sum(0)
    return to_weight.to(weight.dtype), None if to_bias is None or bias is None else to_bias.to(bias.dtype)
