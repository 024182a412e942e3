"""Weights of the base that are trained themselves: full tuning, biases only, last layers."""

from __future__ import annotations

from pathlib import Path

import torch

from luthier.core.errors import ModelError
from luthier.methods.modules.adaptation import Adaptation, read_weights, write_weights
from luthier.methods.modules.inplace import check_same
from luthier.methods.selection import tied_notes
from luthier.methods.targets import quantized
from luthier.models.base import Base

KIND = "LUTHIER_"


class Direct(Adaptation):
    """Attached full tuning (or of a part). Saved as the trained tensors only, in float32."""

    can_merge = True

    def __init__(self, base: Base, names: tuple[str, ...], kind: str = "full", trainable: bool = True):
        if quantized(base):
            raise ModelError(
                "the weights of a quantised base cannot be trained", where="method", remedy="lora, or quantize: none"
            )
        super().__init__(base, names, trainable)
        self.kind = kind
        self.notes = tied_notes(base, names)
        """What a person should know before training: tied weights."""

    def save(self, folder: Path) -> None:
        """adapter_config.json says what was trained, adapter_model.safetensors holds it."""
        config = {"peft_type": KIND + self.kind.upper(), "trained": sorted(self.inplace.trained), "notes": self.notes}
        write_weights(folder, dict(self.inplace.trained), config)

    @classmethod
    def read(cls, folder: Path, base: Base, trainable: bool, kind: str) -> Direct:
        """Inverse of `save`."""
        config, tensors = read_weights(folder, base)
        known = {name for name, _ in base.model.named_parameters()}
        names = [str(name) for name in config.get("trained", ())]
        unknown = sorted(set(names) - known)
        if unknown:
            raise ModelError(
                f"the base has no weights {', '.join(unknown[:5])}", where=str(folder), remedy="name the right base"
            )
        attached = cls(base, tuple(names), kind, trainable)
        check_same(attached.inplace.trained, tensors, str(folder))
        with torch.no_grad():
            for name, weight in attached.inplace.trained.items():
                weight.copy_(tensors[name])
        return attached
