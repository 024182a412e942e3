"""How alike the hidden states with and without the adapter are: cosine a token, and linear CKA over tokens.

Kornblith et al. 2019; HSIC without its bias for few tokens after Song et al. 2012 (so that unrelated states of many
channels give about 0 and not about 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

MOST_TOKENS = 128
"""Tokens of a layer that are kept for CKA."""


@dataclass
class Likeness:
    """Of one layer, over the probe rows."""

    cosines: list[float] = field(default_factory=list)
    on: list[Tensor] = field(default_factory=list)
    off: list[Tensor] = field(default_factory=list)
    kept: int = 0

    def add(self, on: Tensor, off: Tensor, most: int) -> None:
        """Hidden states [tokens, channels] of a row; at most `most` of its tokens, evenly spread, are kept."""
        on, off = on.double(), off.double()
        self.cosines.append(float(torch.nn.functional.cosine_similarity(on, off, dim=-1).mean()))
        count = min(most, len(on), MOST_TOKENS - self.kept)
        if count > 0:
            places = torch.linspace(0, len(on) - 1, count).round().long()
            self.on.append(on[places].float().cpu())
            self.off.append(off[places].float().cpu())
            self.kept += count

    @property
    def cosine(self) -> float | None:
        """Mean over rows of the mean over tokens."""
        return sum(self.cosines) / len(self.cosines) if self.cosines else None

    @property
    def cka(self) -> float | None:
        """Linear CKA; None for fewer than four tokens."""
        return linear_cka(torch.cat(self.on), torch.cat(self.off)) if self.kept > 3 else None


def linear_cka(first: Tensor, other: Tensor) -> float | None:
    """[n, d] and [n, e] → 1 for the same up to rotation and scale, about 0 for unrelated; None if one is constant."""
    grams = [part.double() @ part.double().T for part in (first - first.mean(0), other - other.mean(0))]
    both, one, two = _hsic(grams[0], grams[1]), _hsic(grams[0], grams[0]), _hsic(grams[1], grams[1])
    return float(both / (one * two) ** 0.5) if one > 0 and two > 0 else None


def _hsic(first: Tensor, other: Tensor) -> float:
    """Unbiased HSIC (up to a factor) of two Gram matrices [n, n], n > 3."""
    count = len(first)
    first, other = (part - torch.diag(part.diag()) for part in (first, other))
    traced = float((first * other).sum())
    sums = float(first.sum() * other.sum()) / ((count - 1) * (count - 2))
    crossed = 2 * float(first.sum(0) @ other.sum(0)) / (count - 2)
    return traced + sums - crossed
