"""Which weights of the base a recipe means: by pattern, layer, kind. What matches nothing is an error."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from luthier.core.errors import ModelError
from luthier.methods.targets import layer_of

if TYPE_CHECKING:
    from luthier.models.base import Base


def norms(base: Base) -> list[str]:
    """Names of all normalisation modules (by class: LayerNorm, RMSNorm and what architectures call theirs)."""
    return [
        name
        for name, module in base.model.named_modules()
        if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))
    ]


def embeddings(base: Base) -> list[str]:
    """The token embedding and every learned position or type table."""
    from torch import nn

    return [name for name, module in base.model.named_modules() if isinstance(module, nn.Embedding)]


def biases(base: Base, inside: Sequence[str] | None = None) -> list[str]:
    """Names of all bias parameters, or of those directly in the named modules."""
    names = [name for name, _ in base.model.named_parameters() if name.rpartition(".")[2] == "bias"]
    if inside is None:
        return names
    return [name for name in names if name.rpartition(".")[0].removesuffix(".base_layer") in inside]


def matching(base: Base, patterns: Sequence[str], where: str) -> list[str]:
    """Parameters that some pattern matches: a glob over the whole name, or a plain part of the name."""
    names = [name for name, _ in base.model.named_parameters()]
    found: list[str] = []
    for pattern in patterns:
        glob = any(sign in pattern for sign in "*?[")
        hit = [name for name in names if (fnmatchcase(name, pattern) if glob else pattern in name)]
        if not hit:
            raise ModelError(
                f"the pattern {pattern!r} matches no weight of {base.path.name}",
                where=where,
                remedy=f"candidates: {', '.join(candidates(base))}",
            )
        found += hit
    return list(dict.fromkeys(found))


def in_layers(base: Base, first: int, last: int) -> list[str]:
    """Parameters of the layers first … last (both included)."""
    return [name for name, _ in base.model.named_parameters() if first <= layer_of(base, name) <= last]


def candidates(base: Base) -> list[str]:
    """Distinct names of parameters with layer numbers as *, for error messages."""
    found = []
    for name, _ in base.model.named_parameters():
        found.append(".".join("*" if part.isdigit() else part for part in name.split(".")))
    return list(dict.fromkeys(found))


def refuse_empty(base: Base, names: list[str]) -> list[str]:
    """The names, unless nothing would be trained."""
    if not names and not base.head:
        raise ModelError(
            "nothing is left to train", where="method", remedy=f"candidates: {', '.join(candidates(base))}"
        )
    return names


def tied_notes(base: Base, names: Sequence[str]) -> list[str]:
    """One sentence for every chosen weight that is also used elsewhere (a tied head moves with the embedding)."""
    from luthier.methods.modules.inplace import tied_names

    tied = tied_names(base.model)
    return [f"{name} is the same weight as {', '.join(tied[name])}" for name in names if name in tied]
