"""A PEFT tuner that is injected into the base in place, without a PeftModel around it.

The backbone stays directly callable, the base's tensors stay the base's own, and what is saved is PEFT's
folder format: `PeftModel.from_pretrained` gives the same logits.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import CannotMerge, ModelError
from luthier.methods.modules.adaptation import Adaptation, read_weights, write_weights
from luthier.methods.modules.inplace import check_same, tied_names
from luthier.methods.targets import quantized
from luthier.models.base import Base

ADAPTER = "default"
PREFIX = "base_model."
SHARED_VECTORS = ("VBLORA", "UNILORA")
"""Types whose shared vectors PEFT 0.21 looks for under the names that they have in a whole PeftModel."""
TASK_TYPES = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}


def task_type(base: Base) -> str:
    """PEFT's name of the task."""
    return "SEQ_CLS" if base.head else TASK_TYPES[base.kind]


class Tuned(Adaptation):
    """LoRA, IA³ and every other PEFT tuner that replaces modules."""

    can_merge = True

    def __init__(self, base: Base, config: Any, also: tuple[str, ...] = (), trainable: bool = True):
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        super().__init__(base, also, trainable)
        if getattr(base.model, "peft_config", None):
            raise ModelError("this base already carries an adapter", where="attach", remedy="load the base again")
        self.config = config
        self.also = also
        self.peft_type = str(config.peft_type.value)
        before = {id(weight) for weight in base.model.parameters()}
        buffers = {name for name, _ in base.model.named_buffers()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](base.model, copy.deepcopy(config), ADAPTER)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise ModelError(
                f"PEFT refuses this adapter: {error}", where="method", remedy="see method.targets"
            ) from None
        made = {name: weight for name, weight in base.model.named_parameters() if id(weight) not in before}
        self.own = {PREFIX + "model." + _plain(name): weight for name, weight in made.items() if weight.requires_grad}
        self._fixed: dict[str, Tensor] = {
            PREFIX + "model." + _plain(n): w for n, w in made.items() if not w.requires_grad
        }
        self._fixed |= {
            PREFIX + "model." + _plain(name): buffer
            for name, buffer in base.model.named_buffers()
            if name not in buffers and buffer.is_floating_point()
        }
        if not self.own and not self.inplace.trained:
            raise ModelError(
                f"{self.peft_type.lower()} finds nothing to train in {base.model.config.model_type}",
                where="method",
                remedy="another type, or other target_modules",
            )
        self._refuse_undeclared()
        self._refresh_anatomy()
        for weight in self.own.values():
            weight.data = weight.data.float()
            weight.requires_grad_(trainable)
        for weight in self.inplace.trained.values():
            weight.requires_grad_(trainable)

    def _refuse_undeclared(self) -> None:
        """A weight that PEFT would train, but that stands in no list here, would have no optimizer and no file."""
        known = {id(weight) for weight in self.parameters().values()}
        loose = [n for n, w in self.base.model.named_parameters() if w.requires_grad and id(w) not in known]
        if loose:
            raise ModelError(
                f"{self.peft_type} asks for gradients of the base's {loose[0]} ({len(loose)} such weights)",
                where="method.settings",
                remedy="leave the base's own weights to another part of a stack",
            )

    def _refresh_anatomy(self) -> None:
        """Point the anatomy's head and embeddings at what stands there now: they may have been replaced."""
        anatomy, model = self.base.anatomy, self.base.model
        head = anatomy.head and (anatomy.head[0], model.get_submodule(anatomy.head[0]))
        place = anatomy.embeddings[0]
        self.base.anatomy = dataclasses.replace(anatomy, head=head, embeddings=(place, model.get_submodule(place)))

    def layers(self) -> list[tuple[str, Any]]:
        """(name, tuner layer) of every replaced module."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [(n, m) for n, m in self.base.model.named_modules() if isinstance(m, BaseTunerLayer)]

    def _all(self) -> Mapping[str, Tensor]:
        return {**self.parameters(), **self._fixed}

    def _switches(self) -> list[AbstractContextManager[None]]:
        return [self._disabled(), self.inplace.off()]

    @contextmanager
    def _disabled(self) -> Iterator[None]:
        """The flag only: PEFT's own switch would also change what is trainable."""
        from peft.utils.other import AuxiliaryTrainingWrapper

        wrappers = [m for m in self.base.model.modules() if isinstance(m, AuxiliaryTrainingWrapper)]
        switched: list[Any] = [module for _, module in self.layers()] + wrappers
        before = [module._disable_adapters for module in switched]
        try:
            for module in switched:
                module._disable_adapters = True
            yield
        finally:
            for module, value in zip(switched, before, strict=True):
                module._disable_adapters = value

    def tensors(self) -> dict[str, Tensor]:
        """What goes into the file, under PEFT's names."""
        from peft.utils import get_peft_model_state_dict

        options: dict[str, Any] = {"adapter_name": ADAPTER, "save_embedding_layers": False}
        if self.peft_type in SHARED_VECTORS:
            whole = {PREFIX + name: tensor for name, tensor in self.tuner.state_dict().items()}
            return get_peft_model_state_dict(self.tuner, state_dict=whole, **options) | self._inplace_tensors()
        made = get_peft_model_state_dict(self.tuner, **options)
        return {PREFIX + name: tensor for name, tensor in made.items()} | self._inplace_tensors()

    def _inplace_tensors(self) -> dict[str, Tensor]:
        """Trained base weights; a tied weight under each of its names, since PEFT copies modules one by one."""
        return {alias: self.inplace.trained[name] for name, aliases in self._aliases().items() for alias in aliases}

    def _aliases(self) -> dict[str, list[str]]:
        tied = tied_names(self.base.model)
        changed = dict(self.base.model.named_parameters())
        places = {id(weight): name for name, weight in changed.items()}
        found = {}
        for name, weight in self.inplace.trained.items():
            now = places.get(id(weight), name)
            found[name] = [
                PREFIX + "model." + one for one in ([now] if now == name or ".base_layer." in now else [name])
            ]
            found[name] += [PREFIX + "model." + other for other in tied.get(now, ())]
        return found

    def saved_config(self) -> dict[str, Any]:
        """adapter_config.json."""
        config = copy.deepcopy(self.config)
        config.inference_mode = True
        config.task_type = task_type(self.base)
        config.base_model_name_or_path = str(self.base.path)
        modules = {key.removeprefix(PREFIX + "model.").rpartition(".")[0] for key in self._inplace_modules()}
        if hasattr(config, "modules_to_save"):
            config.modules_to_save = sorted(modules) or None
        return dict(config.to_dict())

    def _inplace_modules(self) -> list[str]:
        return [alias for aliases in self._aliases().values() for alias in aliases if ".base_layer." not in alias]

    def save(self, folder: Path) -> None:
        """PEFT's folder format."""
        write_weights(folder, self.tensors(), self.saved_config())

    def load_tensors(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Inverse of `tensors`; strict."""
        from peft.utils import set_peft_model_state_dict

        check_same(self.tensors(), tensors, where)
        rest = dict(tensors)
        with torch.no_grad():
            for name, aliases in self._aliases().items():
                values = [rest.pop(alias) for alias in aliases]
                if any(not torch.equal(values[0], other) for other in values[1:]):
                    raise ModelError(
                        f"{name} is tied in this model, but its copies differ in the file",
                        where=where,
                        remedy="the adapter belongs to a model without tied weights",
                    )
                self.inplace.trained[name].copy_(values[0])
        set_peft_model_state_dict(
            self.tuner, {k.removeprefix(PREFIX): v for k, v in rest.items()}, adapter_name=ADAPTER
        )

    def _added(self) -> list[Tensor]:
        return [*self.own.values(), *self._fixed.values()]

    @property
    def folds_apart(self) -> bool:
        """Not where PEFT wraps a whole module (trained token rows), for those may be tied."""
        from peft.utils.other import AuxiliaryTrainingWrapper

        return not any(isinstance(module, AuxiliaryTrainingWrapper) for module in self.base.model.modules())

    @torch.no_grad()
    def folded(self, name: str, weight: Tensor) -> Tensor:
        """By PEFT's own merge, on a copy of the one layer."""
        self._refuse_quantized()
        weight = super().folded(name, weight)
        owner, _, leaf = name.rpartition(".")
        layer = dict(self.layers()).get(owner)
        if layer is None:
            return weight
        alone = copy.deepcopy(layer).to("cpu", torch.float32)
        inner = alone.get_base_layer()
        getattr(inner, leaf).data = weight.clone()
        alone.merge(safe_merge=True)
        made: Tensor = getattr(alone.get_base_layer(), leaf).detach()
        return made

    def _refuse_quantized(self) -> None:
        if quantized(self.base):
            raise CannotMerge(
                "the base is quantised: merging would round the adapter away",
                where="merge",
                remedy="load it with quantize: none, or `luthier export`, which merges into the unquantised base",
            )

    def _fold(self) -> None:
        self._refuse_quantized()
        if next(self.base.model.parameters()).dtype != torch.float32:
            self.base.model.float()
        self.tuner.merge_and_unload(progressbar=False, safe_merge=True)
        if hasattr(self.base.model, "peft_config"):
            del self.base.model.peft_config
        self._refresh_anatomy()

    def branches(self) -> Iterator[tuple[str, Any]]:
        """(name, tuner layer)."""
        yield from self.layers()


def _plain(name: str) -> str:
    """Without the adapter's name."""
    return name.replace(f".{ADAPTER}.", ".").removesuffix(f".{ADAPTER}")


def modules_to_save(base: Base, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The fully trained modules that a PEFT config names, as full names of this model (without the task head)."""
    wanted = config.get("modules_to_save") or ()
    names = [name for name, _ in base.model.named_modules() if name]
    found = [name for name in names if any(name == one or name.endswith("." + one) for one in wanted)]
    return tuple(name for name in found if name not in base.head)


def read_peft(folder: Path, base: Base) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """(PEFT config object, its raw JSON, tensors)."""
    from peft import PeftConfig

    raw, tensors = read_weights(folder, base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config: Any = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"adapter_config.json is not understood: {error}", where=str(folder)) from None
    config.inference_mode = False
    return config, raw, tensors


def parameter_count(base: Base, names: tuple[str, ...]) -> int:
    """Numbers in these modules and in the task head, each tied weight once."""
    from luthier.methods.modules.inplace import parameters_under

    weights = dict(base.model.named_parameters())
    return sum(_size(weights[name]) for name in parameters_under(base.model, (*base.head, *names)))


def _size(weight: nn.Parameter) -> int:
    return weight.numel()
