"""Adapters in memory: each on a module tree of its own over the base's tensors, none ever written into the base.

`share` copies modules, not parameters, so ten adapters of ten kinds cost ten trees of Python objects and one set
of weights. Plain LoRA is told apart because many of them can share one forward (`serve.lora`).
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from luthier.adapted import AdaptedModel, adapter_folder, load_onto, read_card
from luthier.core.errors import ModelError
from luthier.core.types import IGNORE, Row
from luthier.engine.batch import from_rows
from luthier.methods.modules.virtual_tokens import VirtualTokens
from luthier.methods.targets import packing
from luthier.models import anatomy
from luthier.models.base import Base
from luthier.models.gate import check_adapter_folder
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.serve import attention
from luthier.tasks import TASKS

PEFT_PREFIX = "base_model.model."
_VERSIONS = itertools.count(1)


def new() -> int:
    """A version that no other served adapter has."""
    return next(_VERSIONS)


@dataclass(frozen=True, eq=False)
class LoraPart:
    """One linear layer of a LoRA: y += scale · (x Aᵀ) Bᵀ. A [r, in], B [out, r]."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class Served:
    """A model name: immutable, held by its requests, so that a reload never changes a running answer."""

    name: str
    adapted: AdaptedModel | None
    base: Base
    version: int = field(default_factory=new)
    lora: dict[str, LoraPart] | None = None
    """Set when the adapter is nothing but LoRA on linear layers, or nothing but virtual tokens (then empty): such
    an adapter shares the base's forward."""
    source: str = ""
    task: int = 0
    """Which prefix of a multi-task library."""
    labels: AdaptedModel | None = None
    """What answers /v1/classify: the model with its head, or for label texts a second tree over the same tensors, so
    that scoring never meets the engine's attention."""

    @property
    def shared(self) -> bool:
        """Whether its requests go through the base's own tree."""
        return self.adapted is None or self.lora is not None

    @property
    def virtual_tokens(self) -> int:
        """Positions of the window that the adapter takes."""
        return 0 if self.adapted is None else self.adapted.attached.virtual_tokens

    def virtual(self, prompt: list[int]) -> Any:
        """Virtual keys/values or embeddings for this prompt, None where the method has none."""
        if self.adapted is None or not self.virtual_tokens:
            return None
        ids = torch.tensor(prompt).numpy()
        row = Row("prompt", ids, torch.full((len(prompt),), IGNORE).numpy(), task=self.task)
        with torch.no_grad():
            return self.adapted.virtual(from_rows([row]).to(self.adapted.device))


def share(base: Base, own: frozenset[str] = frozenset(), implementation: str = attention.NAME) -> Base:
    """The same tensors under new modules, with the slot attention; parameters named in `own` are copied."""
    attention.register()
    named = list(base.model.named_parameters(remove_duplicate=False))
    private = {id(tensor) for name, tensor in named if name in own}
    tensors = itertools.chain((tensor for _, tensor in named), base.model.buffers())
    memo = {id(tensor): tensor for tensor in (*tensors, *_eight_bits(base)) if id(tensor) not in private}
    model = copy.deepcopy(base.model, memo)
    model.eval().requires_grad_(False)
    model.set_attn_implementation(implementation)
    found = replace(anatomy.of(model), logit_scale=base.anatomy.logit_scale)  # which loading measured
    return replace(base, model=model, anatomy=found)


def _eight_bits(base: Base) -> list[Tensor]:
    """Weights and scales of 8-bit layers. bitsandbytes moves them from the parameter into the layer at its first
    forward; a copy made before that would find a parameter without scales."""
    found: list[Tensor] = []
    for module in base.model.modules():
        layer: Any = module
        if not hasattr(layer, "init_8bit_state"):
            continue
        if getattr(layer.weight, "CB", None) is not None:
            layer.init_8bit_state()
        found += [layer.state.CB, layer.state.SCB]
    return found


def open_adapter(name: str, folder: str | Path, base: Base, implementation: str = attention.NAME) -> Served:
    """Load an adapter onto a tree of its own. ModelError when it is not for this base or does nothing."""
    place = adapter_folder(folder)
    check_adapter_folder(place)
    _refuse_other_packing(name, place, base)
    if base.kind == "encoder" and not is_classifier(place):
        what = f"{name} has no head, and an encoder answers in labels only"
        raise ModelError(what, where=str(folder), remedy="serve runs with `task: classify`")
    own = _with_head(place, base) if is_classifier(place) else share(base, _rewritten(place, base), implementation)
    adapted = load_onto(place, own)
    if own.context != base.context:
        raise ModelError(f"{name} was trained with another window plan than the served base", where=str(folder))
    plainly = str(base.model.config._attn_implementation)
    labels = adapted if adapted.task.has_head else None
    if adapted.task.spoken:
        labels = load_onto(place, share(base, _rewritten(place, base), plainly))
    served = Served(name, adapted, own, lora=_light(adapted), source=str(folder), labels=labels)
    _refuse_without_effect(served, plainly)
    return served


def _refuse_other_packing(name: str, folder: Path, base: Base) -> None:
    """Weights of four bits are others than those of sixteen: the answers would not be those of the run."""
    trained = (read_card(folder).get("base") or {}).get("quantize", packing(base))
    if trained != packing(base):
        words = {"none": "an unpacked base"}
        there, here = (words.get(kind, f"a base packed as {kind}") for kind in (trained, packing(base)))
        raise ModelError(
            f"{name} was trained on {there}, and the server holds {here}",
            where=str(folder),
            remedy="a server of its own for each",
        )


def is_classifier(folder: Path) -> bool:
    """Whether the adapter was trained with a task head."""
    return bool(TASKS.parse(read_card(folder).get("task", "instruct")).has_head)


def _rewritten(folder: Path, base: Base) -> frozenset[str]:
    """Names of the base's own weights that the adapter holds (full tuning, biases): loading writes into them."""
    known = {name for name, _ in base.model.named_parameters(remove_duplicate=False)}
    found: set[str] = set()
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {name.removeprefix(PEFT_PREFIX) for name in tensors.keys()}  # noqa: SIM118
    return frozenset(found & known)


def _with_head(folder: Path, base: Base) -> Base:
    """A classification model whose backbone is the served base's own tensors."""
    card = read_card(folder)
    dtype = str(next(base.model.parameters()).dtype).removeprefix("torch.")
    settings = ModelSettings.model_validate({"path": str(base.path), "dtype": dtype, "quantize": packing(base)})
    labels, problem = tuple(card.get("labels", ())) or None, card.get("problem", "single")
    made = load_base(settings, task=card["task"]["name"], labels=labels, problem=problem, context=base.context or None)
    private = _rewritten(folder, made)
    shared = dict(base.anatomy.backbone.named_parameters())
    prefixes = {id(module): name for name, module in made.model.named_modules()}
    prefix = prefixes[id(made.anatomy.backbone)]
    for name, parameter in made.anatomy.backbone.named_parameters():
        if name in shared and f"{prefix}.{name}" not in private:
            parameter.data = shared[name].data
    made.model.eval().requires_grad_(False)
    return made


def _refuse_without_effect(served: Served, plainly: str) -> None:
    """An adapter that leaves the base as it is was not applied: prefix and PEFT mixtures fail that way silently."""
    adapted = served.adapted
    assert adapted is not None
    ids = list(range(3, 11))
    row = Row("probe", torch.tensor(ids).numpy(), torch.tensor(ids).numpy())
    batch = from_rows([row])
    before = adapted.base.model.config._attn_implementation
    adapted.base.model.set_attn_implementation(plainly)
    try:
        with torch.no_grad():
            tuned = adapted.hidden(batch).float()
            with adapted.off():
                plain = adapted.hidden(batch).float()
    finally:
        adapted.base.model.set_attn_implementation(before)
    if torch.equal(tuned, plain) and not adapted.task.has_head:
        raise ModelError(f"the adapter {served.name!r} changes nothing", where=served.source, remedy="luthier health")


def tasks_of(served: Served) -> tuple[str, ...]:
    """Names of the prefixes of a multi-task library, empty for anything else."""
    return served.adapted.tasks if served.adapted else ()


def _light(adapted: AdaptedModel) -> dict[str, LoraPart] | None:
    """module name → LoRA factors where every change is plain LoRA on a plain linear layer, else None."""
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.tuners_utils import BaseTunerLayer

    attached = adapted.attached
    if adapted.task.has_head:
        return None
    if isinstance(attached, VirtualTokens):
        return None if attached.inplace.trained else {}
    if attached.virtual_tokens:
        return None
    parts: dict[str, LoraPart] = {}
    counted = 0
    for name, module in adapted.base.model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        active = [key for key in module.active_adapters if key in getattr(module, "lora_A", {})]
        plain = (
            type(module) is LoraLinear
            and len(active) == 1
            and type(module.get_base_layer()) is nn.Linear
            and not module.lora_variant
            and not any(module.lora_bias.values())
        )
        if not plain:
            return None
        key = active[0]
        layer: Any = module
        a, b = layer.lora_A[key].weight, layer.lora_B[key].weight
        parts[name] = LoraPart(a, b, float(layer.scaling[key]))
        counted += a.numel() + b.numel()
    declared = sum(weight.numel() for weight in adapted.attached.parameters().values())
    return parts if parts and declared in (0, counted) else None
