"""What every attached method shares: frozen base, trained head, state, switching off."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import CannotMerge, ModelError
from luthier.engine.batch import Batch
from luthier.methods.modules.inplace import InPlace, check_same, parameters_under
from luthier.models.base import Base

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


class Adaptation(ABC):
    """Base class of `Attached`s. Subclasses fill `own` (their weights by name) and override what differs.

    Names: own weights as the method calls them, in-place weights as the base calls them.
    """

    can_merge = False
    virtual_tokens = 0
    supports_activation_checkpointing = True
    peft_type: str | None = None
    tasks: tuple[str, ...] = ()
    """Names of the tasks that rows choose from (multi-task prefixes)."""
    cannot_merge_because = "its effect depends on the input, no weight can hold it"

    def __init__(self, base: Base, also: tuple[str, ...] = (), trainable: bool = True):
        base.model.requires_grad_(False)
        self.base = base
        self.trainable = trainable
        self.inplace = InPlace(base.model, parameters_under(base.model, (*base.head, *also)), trainable)
        self.own: dict[str, nn.Parameter] = {}
        self.merged = False
        self.lr_factors: dict[str, float] = {}
        """weight name → factor on the learning rate (LoRA+); names that are absent have factor 1."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Every trained weight by a stable name."""
        return {**self.own, **self.inplace.trained}

    def state(self) -> dict[str, Tensor]:
        """CPU clones of everything that exact resume needs."""
        return {name: weight.detach().cpu().clone() for name, weight in self._all().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        mine = self._all()
        check_same(mine, state, "checkpoint")
        with torch.no_grad():
            for name, weight in mine.items():
                weight.copy_(state[name])

    def _all(self) -> Mapping[str, Tensor]:
        return dict(self.parameters())

    def virtual(self, batch: Batch) -> Any:
        """No virtual tokens."""
        return None

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside: the untouched base."""
        with ExitStack() as stack:
            for part in self._switches():
                stack.enter_context(part)
            yield

    def _switches(self) -> list[AbstractContextManager[None]]:
        return [self.inplace.off()]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the folder."""

    def merge(self) -> None:
        """Fold into the base, once."""
        if not self.can_merge:
            raise CannotMerge(
                f"this method cannot be merged: {self.cannot_merge_because}",
                where="merge",
                remedy="export the adapter itself",
            )
        if self.merged:
            raise CannotMerge("already merged", where="merge", remedy="load the base and the adapter again")
        self._fold()
        self.inplace.fold()
        self.merged = True

    def _fold(self) -> None:
        """The method's own part of `merge`; here only the dtype, for what was trained in place."""
        if next(self.base.model.parameters()).dtype != torch.float32:
            self.base.model.float()

    @property
    def folds_apart(self) -> bool:
        """Whether `folded` can make each merged weight by itself, without the others in memory."""
        return self.can_merge and not self.own

    def base_tensors(self) -> dict[str, Tensor]:
        """What a merged model consists of: the base's own tensors under their own names, tied ones once."""
        mine = {id(tensor) for tensor in self._added()}
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self.base.model.state_dict(keep_vars=True).items():
            if id(tensor) in mine or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            plain = name.replace(".base_layer.", ".").replace(".parametrizations.", ".").removesuffix(".original")
            found[plain] = tensor
        return found

    def _added(self) -> list[Tensor]:
        return list(self.own.values())

    def folded(self, name: str, weight: Tensor) -> Tensor:
        """What `weight`, the base's float32 value of `name`, is after merging. Changes nothing."""
        trained = self.inplace.trained.get(name)
        return weight if trained is None else trained.detach().cpu().float()

    def branches(self) -> Iterator[tuple[str, Any]]:
        """Nothing beside the base's own modules."""
        return iter(())


def write_weights(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """The two files of an adapter folder (PEFT's names, and ours for formats of our own)."""
    import json

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    ready = {name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in tensors.items()}
    save_file(ready, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(dict(config), indent=2, sort_keys=True, default=_plain) + "\n", "utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", str(value))


def read_weights(folder: Path, base: Base | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors) of an adapter folder, past the gate. Only safetensors and JSON are ever opened."""
    import json

    from safetensors.torch import load_file

    from luthier.models.gate import check_adapter_folder

    check_adapter_folder(folder, base)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"the adapter folder lacks {', '.join(missing)}", where=str(folder), remedy="name the folder of an adapter"
        )
    return json.loads((folder / CONFIG).read_text("utf-8")), load_file(folder / WEIGHTS)
