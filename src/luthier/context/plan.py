"""What a window extension is before it is applied: a plan that is pure data.

    {"method": "yarn", "family": "rope", "from": 512, "to": 2048, "factor": 4.0,
     "config": {changed config keys}, "resize": None, "frequencies": sha256, "inside": "changed", "warnings": […]}

`inside` is what becomes of the old window: "equal" where the method leaves it as it was, to the bit; `context.proof`
holds the built model to it.

The model is *built* with the changed config: editing `config.rope_parameters` after loading changes nothing
in transformers 5.23, and `rope_scaling` alone drops `rope_theta`. The plan is stored with the adapter, and an
adapter whose plan differs from the base's is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.core.errors import RecipeError
from luthier.core.fingerprint import of_value

LEARNED = {
    "gpt2": "n_positions",
    "opt": "max_position_embeddings",
    "bert": "max_position_embeddings",
    "roberta": "max_position_embeddings",
    "distilbert": "max_position_embeddings",
}
"""Architectures with a learned table that `models.window` can resize → the config key that holds its length."""

RESERVED_ROWS = {"roberta": 2}
"""Rows of the table that are no positions and are counted in the config's length (padding_idx + 1)."""


@dataclass(frozen=True)
class Window:
    """The window of a base as its config tells it. `rope` is the full rope dict incl. rope_theta."""

    family: str
    length: int
    model_type: str
    dim: int = 0
    rope: Mapping[str, Any] | None = None

    @property
    def theta(self) -> float:
        """RoPE's base."""
        return float((self.rope or {}).get("rope_theta", 10000.0))


def window_of(config: Mapping[str, Any]) -> Window:
    """Read family and length from a config dict. RecipeError for architectures that nothing is known of."""
    kind = str(config.get("model_type", ""))
    if kind in LEARNED:
        reserved = RESERVED_ROWS.get(kind, 0)
        return Window("learned", int(config[LEARNED[kind]]) - reserved, kind)
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if rope or "rope_theta" in config:
        rope = dict(rope or {})
        if any(isinstance(value, Mapping) for value in rope.values()):
            raise RecipeError(
                f"{kind} has another RoPE in each kind of layer", where="context", remedy="give its own plan upstream"
            )
        rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
        rope.setdefault("rope_type", "default")
        head = config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"])
        dim = int(head * float(rope.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)))
        return Window("rope", int(config["max_position_embeddings"]), kind, dim, rope)
    if config.get("alibi") or kind in ("bloom", "mpt"):
        return Window("alibi", int(config.get("seq_length") or config.get("max_seq_len") or 2048), kind)
    if "relative_attention_max_distance" in config:
        return Window("t5", int(config["relative_attention_max_distance"]), kind)
    raise RecipeError(f"nothing is known about the positions of {kind or 'this model'}", where="context")


def inverse_frequencies(window: Window) -> np.ndarray:
    """[dim/2] θ_i = base^(-2i/dim): the dimension is the rotated head dimension, not the model's width."""
    return window.theta ** (-np.arange(0, window.dim, 2, dtype=np.float64) / window.dim)


def require(window: Window, family: str, method: str, length: int) -> float:
    """The factor length / window; RecipeError where the method does not fit or nothing would be extended."""
    if window.family != family:
        raise RecipeError(
            f"{method} is for {family} positions, {window.model_type} has {window.family} ones",
            where="context.name",
            remedy="`luthier list contexts` and `luthier context MODEL --to N` show what fits",
        )
    if length <= window.length:
        raise RecipeError(
            f"the target {length} is not longer than the model's window {window.length}",
            where="context.length",
            remedy="raise context.length, or remove context",
        )
    return length / window.length


def rope_plan(
    method: str,
    window: Window,
    length: int,
    changed: Mapping[str, Any],
    warnings: tuple[str, ...] = (),
    keep_length: bool = False,
) -> dict[str, Any]:
    """A plan that replaces the whole rope dict (with theta and the original length) and the window."""
    rope = {"rope_theta": window.theta, **_partial(window), **changed}
    rope.setdefault("original_max_position_embeddings", window.length)
    if rope["rope_type"] in ("default", "linear", "dynamic"):
        rope.pop("original_max_position_embeddings")
    shown = window.length if keep_length else length
    if (window.rope or {}).get("rope_type", "default") != "default":
        warnings += (f"the base already has a {window.rope['rope_type']} RoPE; it is replaced",)  # type: ignore[index]
    return {
        "method": method,
        "family": "rope",
        "from": window.length,
        "to": length,
        "factor": length / window.length,
        "config": {"rope_parameters": rope, "max_position_embeddings": shown},
        "resize": None,
        "frequencies": of_value([rope, window.dim]),
        "inside": "equal" if keep_length else "changed",
        "warnings": list(warnings),
    }


def _partial(window: Window) -> dict[str, Any]:
    share = (window.rope or {}).get("partial_rotary_factor")
    return {} if share is None else {"partial_rotary_factor": share}


SAME = ("method", "family", "from", "to", "config", "resize", "frequencies")
"""What two plans must share to be the same window."""


def same_plan(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether an adapter trained under one plan may go on a base built with the other."""
    return [(one or {}).get(key) for key in SAME] == [(other or {}).get(key) for key in SAME]


def named(plan: Mapping[str, Any] | None) -> str:
    """`yarn 512 → 2048`, or `no extension`."""
    return f"{plan['method']} {plan['from']} → {plan['to']}" if plan else "no extension"


def fitting_beta_fast(window: Window) -> float:
    """beta_fast such that at least one dimension counts as fast.

    YaRN's 32 turns fit windows of thousands; within 64 positions no dimension turns 32 times, and the ramp would
    start below zero. The highest frequency turns L0 / 2π times; a quarter-octave under it stays untouched.
    """
    turns = window.length / (2 * math.pi)
    return 32.0 if turns > 64 else max(2.0, turns * 0.8)
