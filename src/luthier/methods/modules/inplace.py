"""Weights of the base that are trained where they stand: heads, norms, biases, layers, or everything.

The trained copy is always float32. On a float32 base it is the very parameter; on a half-precision base the
float32 master is a parametrization, and the module sees its rounded value (what mixed precision does). The
untouched values are kept on the CPU, so that `off()` can put them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Rounded(nn.Module):
    """master (float32) → what the half-precision module computes with."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, master: Tensor) -> Tensor:
        return master.to(self.dtype)


class InPlace:
    """The named parameters of `model`, trained in place. Tied weights appear once, under their first name."""

    def __init__(self, model: nn.Module, names: Iterable[str], trainable: bool = True):
        self.model = model
        self.trained: dict[str, nn.Parameter] = {}
        self.original: dict[str, Tensor] = {}
        wanted = set(names)
        found = dict(model.named_parameters())
        for name in sorted(wanted & set(found)):
            self.original[name] = found[name].detach().cpu().clone()
            self.trained[name] = self._master(name, found[name])
            self.trained[name].requires_grad_(trainable)

    def _master(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.dtype == torch.float32:
            return parameter
        master: nn.Parameter | None = None
        for full, tied in list(self.model.named_parameters(remove_duplicate=False)):
            if tied is not parameter:
                continue
            owner, leaf = _owner(self.model, full)
            if not parametrize.is_parametrized(owner, leaf):
                parametrize.register_parametrization(owner, leaf, _Rounded(parameter.dtype), unsafe=True)
            place: Any = owner.parametrizations[leaf]  # type: ignore[index]
            if master is None:
                master = nn.Parameter(parameter.detach().float())
            place.original = master
        assert master is not None, name
        return master

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside: the base's own values."""
        kept = {name: weight.data for name, weight in self.trained.items()}
        try:
            for name, weight in self.trained.items():
                weight.data = self.original[name].to(weight.device, torch.float32)
            yield
        finally:
            for name, weight in self.trained.items():
                weight.data = kept[name]

    @torch.no_grad()
    def fold(self) -> None:
        """Make the trained float32 values the base's own; nothing can be switched off any more."""
        for name, weight in self.trained.items():
            for module in list(self.model.modules()):
                if parametrize.is_parametrized(module):
                    for leaf in list(module.parametrizations):  # type: ignore[union-attr, arg-type]
                        if module.parametrizations[leaf].original is weight:  # type: ignore[index, union-attr]
                            parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
            self.original[name] = weight.detach().cpu().clone()


def parameters_under(model: nn.Module, modules: Iterable[str]) -> list[str]:
    """Names of all parameters of these modules (a name of a parameter counts as itself)."""
    wanted = tuple(modules)
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if any(name == one or name.startswith(one + ".") for one in wanted)]


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """First name → every other name of the same parameter."""
    by_id: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(parameter), []).append(name)
    return {names[0]: names[1:] for names in by_id.values() if len(names) > 1}


def check_same(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """ModelError with every missing, extra or misshapen tensor, and for values that are not finite."""
    from luthier.core.errors import ModelError, Problem

    problems = [Problem("missing", name) for name in sorted(wanted.keys() - given.keys())]
    problems += [Problem("not known here", name) for name in sorted(given.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & given.keys()):
        if tuple(wanted[name].shape) != tuple(given[name].shape):
            problems.append(Problem(f"shape {tuple(given[name].shape)} is not {tuple(wanted[name].shape)}", name))
        elif given[name].is_floating_point() and not bool(torch.isfinite(given[name]).all()):
            problems.append(Problem("has values that are not finite", name))
    if problems:
        shown = [*problems[:10], Problem(f"… and {len(problems) - 10} more")] if len(problems) > 10 else problems
        raise ModelError("the weights do not fit", where=where, problems=shown)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf
