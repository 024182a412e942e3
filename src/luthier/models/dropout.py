"""`model.dropout`: every dropout of an architecture set to one rate, and each of them proved to act.

Dropouts are modules (`nn.Dropout`), numbers that a module hands to `functional.dropout`, or the `dropout_p` of the
attention. The proof watches all three kinds in a forward in training mode.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from luthier.core.errors import ModelError, Problem

ENDINGS = ("dropout", "pdrop", "dropout_prob", "dropout_rate", "dropout_p")
"""How configs and modules call their rates."""
CALLS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)


def set_dropout(model: Any, rate: float) -> None:
    """Set all rates, the config's too, and prove that they act. ModelError names every one that does not."""
    for holder in (model.config, *model.modules()):
        for key, value in list(vars(holder).items()):
            number = isinstance(value, int | float) or (value is None and holder is model.config)
            if key.endswith(ENDINGS) and number and not isinstance(value, bool):
                setattr(holder, key, rate)
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = rate
    if rate > 0:
        prove(model, rate)


class Watch(TorchFunctionMode):
    """Notes every dropout that is computed inside: the innermost module, its rate, and whether it changed its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = [""]
        self.seen: list[tuple[str, str, float, bool]] = []
        """(module, "dropout" or "attention", rate, changed)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in CALLS:
            given: Tensor = args[0] if args else kwargs["input"]
            before = given.clone()
            made = func(*args, **kwargs)
            rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            changed = not bool(before.any()) or not torch.equal(made, before)
            self.seen.append((self.inside[-1], "dropout", float(rate), changed))
            return made
        made = func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            rate = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
            plain = func(*args[:4], **{**kwargs, "dropout_p": 0.0})
            self.seen.append((self.inside[-1], "attention", float(rate), not torch.equal(made, plain)))
        return made


@torch.no_grad()
def prove(model: Any, rate: float) -> None:
    """One forward in training mode. Raises ModelError unless every dropout in it has this rate and changes its
    input, every dropout module is reached, and attention that has a rate uses it."""
    table = model.get_input_embeddings()
    ids = (torch.arange(4, 12, device=table.weight.device) % int(table.weight.shape[0]))[None]
    options = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    watch, training = Watch(), model.training
    with ExitStack() as stack:
        for name, module in model.named_modules():
            enter = module.register_forward_pre_hook(lambda m, given, name=name: watch.inside.append(name))
            leave = module.register_forward_hook(lambda m, given, made: (watch.inside.pop(), None)[1])
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        stack.callback(model.train, training)
        model.train()
        with watch:
            model(input_ids=ids, **options)
    faults = _faults(model, rate, watch)
    if not any(changed for _, _, _, changed in watch.seen):
        faults = [Problem("dropout does nothing in this architecture", "model.dropout", "remove it")]
    if faults:
        raise ModelError("model.dropout does not act everywhere", where="model.dropout", problems=faults[:10])


def _faults(model: Any, rate: float, watch: Watch) -> list[Problem]:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    acting: set[str] = set()
    found: list[Problem] = []
    for name, kind, seen, changed in watch.seen:
        if changed and seen == rate:
            acting.add(name)
        elif kind == "dropout" or _has_rate(modules[name]):
            what = f"the {kind} of {name or 'the model'} " + ("changes nothing" if seen == rate else f"drops {seen:g}")
            found.append(Problem(what, "model.dropout", "model.dropout: null keeps the model's own rates"))
    for name, module in modules.items():
        reached = name in acting or name.rpartition(".")[0] in acting  # attention reads the rate of its own module
        if isinstance(module, _DropoutNd) and not reached and not any(name == fault for fault, *_ in watch.seen):
            what = f"the dropout {name} is not reached by a forward"
            found.append(Problem(what, "model.dropout", "model.dropout: null keeps the model's own rates"))
    return found


def _has_rate(module: nn.Module) -> bool:
    """Whether this attention was built with a dropout."""
    own = [key for key, value in vars(module).items() if key.endswith(ENDINGS) and isinstance(value, int | float)]
    return bool(own) or any(isinstance(child, _DropoutNd) for child in module.children())
