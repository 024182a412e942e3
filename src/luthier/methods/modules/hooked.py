"""Branches that hang on a base by forward hooks: bottleneck adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.methods.modules.adaptation import Adaptation, write_weights
from luthier.methods.modules.inplace import check_same
from luthier.models.anatomy import Site
from luthier.models.base import Base

if TYPE_CHECKING:
    from luthier.methods.bottleneck import Bottleneck

_ACTIVATIONS: dict[str, Any] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
HEAD = "head."


class Branch(nn.Module):
    """s · gate(x) · up(σ(down(x))), computed in the precision of its own weights (float32); `up` starts at zero."""

    def __init__(self, hidden: int, width: int, activation: str, scale: float, dropout: float, gate: bool):
        super().__init__()
        self.down, self.up = nn.Linear(hidden, width), nn.Linear(width, hidden)
        # As LoRA's A (He et al. 2022 begin their adapters so). ReLU's own gain is 2.4 times as large: the first steps
        # of `up` then move a post-norm encoder so far that some seeds end at chance.
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.gate = nn.Linear(hidden, 1) if gate else None
        self.activation, self.scale, self.dropout = _ACTIVATIONS[activation], scale, dropout

    def forward(self, states: Tensor) -> Tensor:
        """[…, hidden] → […, hidden] in the input's dtype."""
        given = states.to(self.down.weight.dtype)
        x = functional.dropout(given, self.dropout, self.training)
        made = self.up(self.activation(self.down(x))) * self.scale
        if self.gate is not None:
            made = made * torch.sigmoid(self.gate(given))
        return made.to(states.dtype)


class Hooked(Adaptation):
    """Attached bottleneck adapters."""

    def __init__(
        self, base: Base, sites: Sequence[Site], width: int, params: Bottleneck.Params, trainable: bool = True
    ):
        super().__init__(base, (), trainable)
        self.params = params
        self._on = True
        hidden = base.anatomy.hidden_size
        device = next(base.model.parameters()).device
        self.sites = list(sites)
        self.parts = nn.ModuleDict(
            {
                site.name.replace(".", "/"): Branch(
                    hidden, width, params.activation, params.scale, params.dropout, params.gate
                )
                for site in sites
            }
        ).to(device)
        self.parts.requires_grad_(trainable)
        self.own = {_named(name): weight for name, weight in self.parts.named_parameters()}
        self._handles: list[Any] = []
        for site in self.sites:
            self._hang(site)

    def _hang(self, site: Site) -> None:
        branch = self.parts[site.name.replace(".", "/")]
        first, last = self.base.model.get_submodule(site.first), self.base.model.get_submodule(site.last)
        if self.params.style != "parallel":
            self._handles.append(last.register_forward_hook(self._behind(branch)))
            return
        seen: list[Tensor] = []

        def note(module: nn.Module, given: tuple[Any, ...]) -> None:
            seen[:] = [given[0]]

        def beside(module: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
            return _plus(out, branch(seen.pop())) if self._on else out

        self._handles.append(first.register_forward_pre_hook(note))
        self._handles.append(last.register_forward_hook(beside))

    def _behind(self, branch: nn.Module) -> Any:
        def behind(module: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
            return _plus(out, branch(out[0] if isinstance(out, tuple) else out)) if self._on else out

        return behind

    def train(self, mode: bool = True) -> None:
        """Dropout inside the branches."""
        self.parts.train(mode)

    def _switches(self) -> list[AbstractContextManager[None]]:
        return [self._silent(), self.inplace.off()]

    @contextmanager
    def _silent(self) -> Iterator[None]:
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    def detach(self) -> None:
        """Take the hooks away for good."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def save(self, folder: Path) -> None:
        """Our own format: settings and tensors."""
        config = {"peft_type": "LUTHIER_BOTTLENECK", "settings": self.params.model_dump(mode="json")}
        head = {HEAD + name: weight for name, weight in self.inplace.trained.items()}
        write_weights(folder, {**self.own, **head}, config)

    def load_tensors(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Inverse of `save`."""
        mine = {**self.own, **{HEAD + name: weight for name, weight in self.inplace.trained.items()}}
        check_same(mine, tensors, where)
        with torch.no_grad():
            for name, weight in mine.items():
                weight.copy_(tensors[name])

    def branches(self) -> Iterator[tuple[str, Any]]:
        """(site name, Branch)."""
        for site in self.sites:
            yield site.name, self.parts[site.name.replace(".", "/")]


def _named(name: str) -> str:
    return name.replace("/", ".")


def _plus(out: Any, change: Tensor) -> Any:
    return (out[0] + change, *out[1:]) if isinstance(out, tuple) else out + change
