"""LoRA on a base: PEFT's layers, plus starts that leave the base untouched (PiSSA, OLoRA, EVA)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.methods.modules.tuned import ADAPTER, PREFIX, Tuned, modules_to_save, read_peft
from luthier.methods.targets import is_transposed, quantized
from luthier.models.base import Base

START = "start"
"""Second, frozen adapter with −B₀ A₀: PEFT subtracts the start from the base instead, which changes the base."""


MOST_TOKENS = 1024
"""Inputs of a layer that a start from data looks at."""


class LowRank(Tuned):
    """Attached LoRA."""

    started = False
    wants_inputs = False
    """Whether the first rows must be sent through `start_from_inputs` before training."""

    @classmethod
    def read(cls, folder: Path, base: Base, trainable: bool = False) -> LowRank:
        """An adapter folder of ours or PEFT's."""
        config, raw, tensors = read_peft(folder, base)
        config.init_lora_weights = True
        biases = [k.removeprefix(PREFIX + "model.").replace(".base_layer", "") for k in tensors if k.endswith(".bias")]
        known = {name for name, _ in base.model.named_parameters()}
        heads = tuple(head + "." for head in base.head)
        also = (*modules_to_save(base, raw), *(b for b in biases if b in known and not b.startswith(heads)))
        config.modules_to_save = None
        attached = cls(base, config, tuple(also), trainable)
        attached.load_tensors(tensors, str(folder))
        return attached

    def start_from_weights(self, how: str) -> None:
        """A, B from the weight's own main directions, and the frozen opposite of them beside it."""
        if quantized(self.base):
            raise ModelError(f"init {how} needs unquantised weights", where="method.init", remedy="init: default")
        frozen = copy.deepcopy(self.config)
        frozen.lora_dropout, frozen.trainable_token_indices, frozen.bias = 0.0, None, "none"
        trained = {id(weight) for weight in self.parameters().values()}
        self.tuner.peft_config[START] = frozen
        self.tuner.inject_adapter(self.base.model, START)
        for name, layer in self.layers():
            if ADAPTER not in getattr(layer, "lora_A", {}):
                continue
            weight = layer.get_base_layer().weight.detach().float()
            weight = weight.t() if is_transposed(self.base, name) else weight
            a, b = _directions(weight, layer.r[ADAPTER], layer.scaling[ADAPTER], how)
            with torch.no_grad():
                for adapter, sign in ((ADAPTER, 1.0), (START, -1.0)):
                    layer.lora_A[adapter].weight.copy_(a)
                    layer.lora_B[adapter].weight.copy_(sign * b)
                    layer.lora_A[adapter].weight.data = layer.lora_A[adapter].weight.data.float()
                    layer.lora_B[adapter].weight.data = layer.lora_B[adapter].weight.data.float()
            layer._active_adapter = [ADAPTER, START]
            for matrix in ("lora_A", "lora_B"):
                self._fixed[f"{PREFIX}model.{name}.{matrix}.{START}.weight"] = getattr(layer, matrix)[START].weight
        for weight in self.base.model.parameters():
            weight.requires_grad_(id(weight) in trained and self.trainable)
        self.started = True

    @torch.no_grad()
    def start_from_inputs(self, run: Callable[[], None]) -> None:
        """A's rows become the main directions of what each layer reads while `run` sends rows through the model
        (EVA, Paischer et al. 2024, with the same rank in every layer). B stays zero: identity at the first step."""
        seen: dict[str, list[Tensor]] = {}
        handles = []

        def keep(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
            def note(module: Any, given: tuple[Any, ...]) -> None:
                room = MOST_TOKENS - sum(map(len, seen.setdefault(name, [])))
                seen[name].append(given[0].reshape(-1, given[0].shape[-1])[:room].float())

            return note

        wanted = {name: layer for name, layer in self.layers() if ADAPTER in getattr(layer, "lora_A", {})}
        for name, layer in wanted.items():
            handles.append(layer.lora_A[ADAPTER].register_forward_pre_hook(keep(name)))
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        for name, inputs in seen.items():
            right = torch.linalg.svd(torch.cat(inputs), full_matrices=False).Vh
            weight = wanted[name].lora_A[ADAPTER].weight
            count = min(len(weight), len(right))
            weight[:count] = right[:count].to(weight)

    def tensors(self) -> dict[str, Tensor]:
        """Of a LoRA that started elsewhere: the sum, as one plain LoRA of rank 2 r on the untouched base."""
        made = super().tensors()
        if not self.started:
            return made
        for name, layer in self.layers():
            key = f"{PREFIX}model.{name}"
            if f"{key}.lora_A.weight" in made:
                a, b = layer.lora_A, layer.lora_B
                made[f"{key}.lora_A.weight"] = torch.cat([a[ADAPTER].weight, a[START].weight], 0)
                made[f"{key}.lora_B.weight"] = torch.cat([b[ADAPTER].weight, b[START].weight], 1)
        return made

    def saved_config(self) -> dict[str, Any]:
        """adapter_config.json; the doubled rank keeps the scale."""
        config = super().saved_config()
        if self.started:
            config["r"] = 2 * self.config.r
            config["lora_alpha"] = self.config.lora_alpha * (math.sqrt(2) if self.config.use_rslora else 2)
        config["init_lora_weights"] = True
        return config


def _directions(weight: Tensor, rank: int, scale: float, how: str) -> tuple[Tensor, Tensor]:
    """A [r, in], B [out, r]. pissa: s·B A = the best rank-r part of W; olora: B, A from W = Q R."""
    if how == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank].contiguous(), q[:, :rank].contiguous()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = torch.sqrt(values[:rank] / scale)
    return root[:, None] * right[:rank], left[:, :rank] * root
