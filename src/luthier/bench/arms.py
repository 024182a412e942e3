"""What can be measured: every arm's switches, what its correctness is held against, and whose interpreter it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.errors import RecipeError


@dataclass(frozen=True)
class Kind:
    """One arm. `objective` names the reference of its loss and gradients.

    answers: the mean over the trained tokens; everything: over all tokens; rows: over the rows' own means; top:
    `answers` with adapters in the top layers alone.
    """

    name: str
    peer: str = ""
    """Whose interpreter; empty for luthier's own."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "answers"
    lossy: bool = False
    """Not held against the reference: the product's own refusal (gradient cosine under .99) decides."""
    in_order: bool = True
    """The same rows in the same steps as `luthier`: its loss after the epoch must be the same too."""
    device: str = ""
    """The only device that it is for; empty for both."""
    architecture: str = ""
    """The only kind of model that it can train; empty for all."""


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("luthier"),
        Kind("luthier_padded", switches={"layout": "padded"}),
        Kind("luthier_checkpointing", switches={"checkpointing": True}),
        Kind("luthier_plain_loss", switches={"plain_loss": True}),
        Kind("luthier_shared_prefix", switches={"shared_prefix": True}),
        Kind("luthier_top", switches={"adapter": "top"}, objective="top"),
        Kind("luthier_trunk_cache", switches={"adapter": "top", "trunk_cache": True}, objective="top"),
        Kind("luthier_int8", switches={"eight_bits": True}, lossy=True),
        Kind("luthier_compiled", switches={"compiled": True}),
        Kind("luthier_varlen", switches={"fused": True}, device="cuda"),
        Kind("luthier_calls", switches={"fused": False}, device="cuda"),
        Kind("luthier_fp8", switches={"eight_bits": True}, lossy=True, device="cuda"),
        Kind("transformers", "transformers"),
        Kind("documents", "transformers", objective="everything", in_order=False),
        Kind("trl", "trl", in_order=False),
        Kind("trl_single", "trl", in_order=False),
        Kind("trl_grouped", "trl", in_order=False),
        Kind("trl_sorted", "trl", in_order=False),
        Kind("trl_packing", "trl", in_order=False),
        Kind("trl_padding_free", "trl", in_order=False),
        Kind("llamafactory", "llamafactory", in_order=False),
        Kind("llamafactory_single", "llamafactory", in_order=False),
        Kind("llamafactory_sorted", "llamafactory", in_order=False),
        Kind("llamafactory_packing", "llamafactory", in_order=False),
        Kind("swift", "swift", in_order=False, architecture="llama"),
        Kind("swift_single", "swift", in_order=False, architecture="llama"),
        Kind("swift_sorted", "swift", in_order=False, architecture="llama"),
        Kind("torchtune", "torchtune", in_order=False, architecture="llama"),
        Kind("torchtune_single", "torchtune", in_order=False, architecture="llama"),
        Kind("torchtune_sorted", "torchtune", in_order=False, architecture="llama"),
        Kind("torchtune_packing", "torchtune", in_order=False, architecture="llama"),
        Kind("litgpt", "litgpt", in_order=False, architecture="llama", objective="rows"),
        Kind("litgpt_sorted", "litgpt", in_order=False, architecture="llama"),
        Kind("axolotl", "axolotl", in_order=False, objective="rows"),
        Kind("axolotl_sorted", "axolotl", in_order=False),
        Kind("axolotl_packing", "axolotl", in_order=False),
        Kind("unsloth", "unsloth", in_order=False, device="cuda"),
    )
}
"""`luthier_top` trains the top two layers alone and `luthier_trunk_cache` does that from kept states: another training
than all others', so the one is the other's control."""

OWN = tuple(name for name, kind in KINDS.items() if not kind.peer)
PLAIN = tuple(name for name, kind in KINDS.items() if kind.peer == "transformers")
TRL = tuple(name for name, kind in KINDS.items() if kind.peer == "trl")
PEERS = tuple(dict.fromkeys(kind.peer for kind in KINDS.values() if kind.peer))
LEAST_SHARED = 16
"""Tokens that all rows must begin with where shared prefixes are an arm (`engine.sharing` looks for no fewer)."""
DEFAULT = ("luthier", "luthier_padded", "transformers")
USUAL = {
    "trl": ("trl", "trl_single", "trl_sorted", "trl_packing"),
    "unsloth": ("unsloth",),
    "llamafactory": ("llamafactory", "llamafactory_single", "llamafactory_sorted", "llamafactory_packing"),
    "swift": ("swift", "swift_single", "swift_sorted"),
    "torchtune": ("torchtune", "torchtune_single", "torchtune_sorted", "torchtune_packing"),
    "litgpt": ("litgpt", "litgpt_sorted"),
    "axolotl": ("axolotl", "axolotl_sorted", "axolotl_packing"),
}
"""Arms that run without being named where the peer's interpreter is given."""


def interpreters(given: Sequence[str], trl: str | None = None) -> dict[str, str]:
    """PEER=PATH … as {peer: path}. Unknown peers are refused with the list."""
    found = {"trl": trl} if trl else {}
    for one in given:
        peer, equals, path = one.partition("=")
        if not equals or not path:
            raise RecipeError(f"{one!r} is not PEER=PATH", where="--python", remedy="for example trl=venv/bin/python")
        if peer not in PEERS:
            raise RecipeError(
                f"there is no peer {peer!r}", where="--python", remedy=f"one of {', '.join(sorted(PEERS))}"
            )
        found[peer] = path
    return found


def choose(
    names: Sequence[str], pythons: Mapping[str, str], device: str = "cpu", shared: int = 0, architecture: str = "llama"
) -> list[str]:
    """The arms that were named, or the usual ones that fit; `luthier` is always among them."""
    usual = [name for peer in pythons for name in USUAL.get(peer, ())]
    wanted = list(names) or [*DEFAULT, *(name for name in usual if not _misfit(KINDS[name], device, architecture))]
    for name in wanted:
        kind = KINDS.get(name)
        if kind is None:
            raise RecipeError(f"there is no arm {name!r}", remedy=f"one of {', '.join(KINDS)}")
        if kind.peer not in ("", "transformers") and kind.peer not in pythons:
            remedy = f"--python {kind.peer}=PATH, of an environment that has it"
            raise RecipeError(f"the arm {name} needs an interpreter", remedy=remedy)
        if misfit := _misfit(kind, device, architecture):
            where, words = misfit
            raise RecipeError(f"the arm {name} is for {words}", where=where, remedy="leave this arm out")
        if kind.switches.get("shared_prefix") and shared < LEAST_SHARED:
            remedy = "--prefix 128, or rows that share an instruction"
            raise RecipeError("these rows share no beginning worth it", where=name, remedy=remedy)
    return list(dict.fromkeys(("luthier", *wanted)))


def _misfit(kind: Kind, device: str, architecture: str) -> tuple[str, str] | None:
    """The flag that an arm does not fit, and what it is for; None where it fits."""
    if kind.device not in ("", device):
        return "--device", kind.device
    if kind.architecture not in ("", architecture):
        return "--shape", f"{kind.architecture} models, not {architecture}"
    return None
