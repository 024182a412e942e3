"""Which linear layers a recipe means by `targets`. Names are checked: what matches nothing is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError

if TYPE_CHECKING:
    from luthier.models.base import Base

Targets = str | Sequence[str]
"""auto | all-linear | one or several of: a role (q, v, down …), a module's name, a glob over full names."""


def resolve(base: Base, wanted: Targets, layers: Sequence[int] | None = None) -> list[str]:
    """Full names of the linear layers, in the model's order. ModelError lists the candidates."""
    roles = base.anatomy.linear_names
    order = sorted((name for names in roles.values() for name in names), key=_natural)
    if wanted in ("auto", "all-linear"):
        chosen = set(order)
    else:
        chosen = set()
        for item in [wanted] if isinstance(wanted, str) else wanted:
            found = [name for name in order if _matches(item, name, roles)]
            if not found:
                raise ModelError(
                    f"no linear layer of {base.path.name} is called {item!r}",
                    where="method.targets",
                    remedy=f"candidates: {', '.join(sorted({name.rpartition('.')[2] for name in order}))}; "
                    f"roles: {', '.join(sorted(roles))}; or all-linear",
                )
            chosen.update(found)
    if layers is not None:
        chosen = {name for name in chosen if layer_of(base, name) in _known_layers(base, layers)}
    return [name for name in order if name in chosen]


def fits_pattern(pattern: str, name: str) -> bool:
    """PEFT's own rule for rank_pattern and alpha_pattern: a regular expression for the end of the name."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def check_patterns(names: Sequence[str], patterns: Iterable[str], where: str) -> None:
    """ModelError for a pattern that fits none of these layers: PEFT would go on without it."""
    for pattern in patterns:
        try:
            found = any(fits_pattern(pattern, name) for name in names)
        except re.error as error:
            raise ModelError(f"{pattern!r} is no regular expression: {error}", where=where, remedy="q_proj") from None
        if not found:
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise ModelError(
                f"{pattern!r} fits none of the {len(names)} targets",
                where=where,
                remedy=f"a name's end, one of: {ends}; or more of it, such as {names[0]}" if names else "other targets",
            )


def layer_of(base: Base, name: str) -> int:
    """Index of the layer that a module or parameter stands in, -1 outside all layers."""
    for index, (layer, _) in enumerate(base.anatomy.layers):
        if name == layer or name.startswith(layer + "."):
            return index
    return -1


def _known_layers(base: Base, layers: Sequence[int]) -> set[int]:
    count = len(base.anatomy.layers)
    found = {index % count if -count <= index < count else count for index in layers}
    if count in found:
        raise ModelError(
            f"the model has layers 0 to {count - 1}",
            where="method.layers",
            remedy="negative numbers count from the end",
        )
    return found


def _matches(item: str, name: str, roles: dict[str, list[str]]) -> bool:
    if name in roles.get(item, ()) or name == item or name.endswith("." + item):
        return True
    return any(sign in item for sign in "*?[") and fnmatchcase(name, item)


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def short_names(base: Base, names: Sequence[str]) -> list[str]:
    """The last name parts, where these mean exactly the same modules to PEFT (and to vLLM); else the full names."""
    leaves = sorted({name.rpartition(".")[2] for name in names})
    hit = [name for name, _ in base.model.named_modules() if name.rpartition(".")[2] in leaves]
    return leaves if sorted(hit) == sorted(names) else sorted(names, key=_natural)


def shape_of(base: Base, name: str) -> tuple[int, int]:
    """(in, out) features of a linear layer, whatever class holds it."""
    module: Any = base.model.get_submodule(name)
    module = getattr(module, "base_layer", module)
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    return int(module.weight.shape[0]), int(module.weight.shape[1])


def is_transposed(base: Base, name: str) -> bool:
    """Whether the layer is GPT-2's Conv1D, whose weight is [in, out]."""
    module: Any = base.model.get_submodule(name)
    return not hasattr(getattr(module, "base_layer", module), "in_features")


def packing(base: Base) -> str:
    """nf4 | int8 | none: how the frozen weights are packed."""
    settings: Any = getattr(base.model.config, "quantization_config", None)
    if not quantized(base) or settings is None:
        return "none"
    known = settings if isinstance(settings, dict) else settings.to_dict()
    return "nf4" if known.get("load_in_4bit") else "int8"


def quantized(base: Base) -> bool:
    """Whether the frozen weights are packed (4-bit, 8-bit): nothing can be folded into them."""
    return getattr(base.model, "is_quantized", False)
