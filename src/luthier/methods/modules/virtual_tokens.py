"""Prefixes and prompts on a base: a source makes the flat table, this makes `Virtual` of it, saves and reads it.

Layouts (PEFT's): prefix [P, 2·L·kv_heads·head_dim], viewed as (P, 2L, kv_heads, head_dim) with K of layer i at
2i and V at 2i+1; prompt [P, hidden]. A source may give one table for each row, [S, P, …].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.engine.batch import Batch
from luthier.methods.modules.adaptation import Adaptation, read_weights, write_weights
from luthier.methods.modules.inplace import check_same
from luthier.methods.modules.sources import Source, Table
from luthier.methods.modules.tuned import modules_to_save, task_type
from luthier.models import segments
from luthier.models.base import Base
from luthier.models.forward import Virtual

TABLE = "prompt_embeddings"
PREFIX = "base_model."


def prefix_width(base: Base) -> int:
    """Numbers of one prefix position: K and V of every layer."""
    anatomy = base.anatomy
    return 2 * len(anatomy.cached_attentions) * anatomy.num_kv_heads * anatomy.head_dim


def refuse_unfit(base: Base, length: int, prefix: bool) -> None:
    """ModelError for models that this cannot work on, before anything is built."""
    if length >= base.anatomy.window:
        raise ModelError(
            f"{length} virtual tokens leave nothing of the window of {base.anatomy.window}",
            where="method.length",
            remedy=f"at most {base.anatomy.window // 2}",
        )
    table: Any = base.model.get_input_embeddings()
    if not prefix and int(table.weight.shape[1]) != base.anatomy.hidden_size:
        raise ModelError(
            "this model's embeddings are narrower than its layers", where="method", remedy="prefix or lora"
        )
    if prefix and base.kind == "encoder" and not segments.replaceable(base):
        raise ModelError(
            f"{type(base.model).__name__} takes no keys and values from outside, and its attention cannot be replaced",
            where="method",
            remedy="prompt, lora or bottleneck",
        )
    if prefix and base.anatomy.position_kind == "alibi":
        raise ModelError(
            "a prefix has no place in ALiBi distances that this model can count",
            where="method",
            remedy="lora or prompt",
        )


class VirtualTokens(Adaptation):
    """Attached prefix or prompt."""

    def __init__(
        self, base: Base, source: Source, kind: str, peft_type: str | None, trainable: bool = True, **facts: Any
    ):
        also = tuple(facts.pop("also", ()))
        super().__init__(base, also, trainable)
        device = next(base.model.parameters()).device
        self.source = source.to(device, torch.float32)
        self.kind = kind
        self.written_type = peft_type
        """What the folder says; a static table is written flat under it, other sources in our own format."""
        if peft_type and (kind, base.kind) in _OTHER_IN_PEFT:
            self.written_type = f"LUTHIER_{_MEMBERS[peft_type]}"
        self.peft_type = self.written_type if self.written_type == peft_type else None
        self.facts = facts
        self.virtual_tokens = source.length
        self.supports_activation_checkpointing = kind == "prompt"
        self._on = True
        self.own = dict(source.named_parameters())
        source.requires_grad_(trainable)

    def train(self, mode: bool = True) -> None:
        """Dropout inside the source (LSTM encoders)."""
        self.source.train(mode)

    def _all(self) -> Mapping[str, Tensor]:
        return {**self.parameters(), **dict(self.source.named_buffers())}

    def virtual(self, batch: Batch) -> Virtual | None:
        """K and V (or embeddings) for this batch, differentiable."""
        if not self._on:
            return None
        flat = self.source(batch)
        if self.kind == "prompt":
            return Virtual(prompt=flat, length=self.virtual_tokens)
        anatomy = self.base.anatomy
        count = len(anatomy.cached_attentions)
        parts = flat.view(*flat.shape[:-1], 2 * count, anatomy.num_kv_heads, anatomy.head_dim)
        pairs = [(parts[..., 2 * i, :, :], parts[..., 2 * i + 1, :, :]) for i in range(count)]
        return Virtual(prefix=pairs, length=self.virtual_tokens)

    def _switches(self) -> list[AbstractContextManager[None]]:
        return [self._silent(), self.inplace.off()]

    @contextmanager
    def _silent(self) -> Iterator[None]:
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """The flat table in PEFT's format (reparameterisations are folded into it), or our own format."""
        tensors: dict[str, Tensor] = {PREFIX + name: weight for name, weight in self.inplace.trained.items()}
        if self.written_type:
            self.source.eval()
            tensors[TABLE] = self.source(None)
            write_weights(folder, tensors, self._peft_config())
        else:
            tensors |= {
                f"source.{name}": tensor for name, tensor in self._all().items() if name not in self.inplace.trained
            }
            write_weights(folder, tensors, self.facts)

    def _peft_config(self) -> dict[str, Any]:
        anatomy = self.base.anatomy
        prefix = self.kind == "prefix"
        kv = anatomy.num_kv_heads
        heads = {name.rpartition(".")[0] for name in self.inplace.trained}
        config: dict[str, Any] = {
            "peft_type": self.written_type,
            "task_type": task_type(self.base),
            "base_model_name_or_path": str(self.base.path),
            "inference_mode": True,
            "num_virtual_tokens": self.virtual_tokens,
            "token_dim": kv * anatomy.head_dim if prefix else anatomy.hidden_size,
            "num_transformer_submodules": 1,
            "num_attention_heads": kv if prefix else anatomy.num_heads,
            "num_layers": len(anatomy.cached_attentions),
            "modules_to_save": sorted({*self.base.head, *heads}) if heads else None,
        }
        return config | self.facts

    @classmethod
    def read(cls, folder: Path, base: Base, kind: str, peft_type: str, trainable: bool) -> VirtualTokens:
        """A folder in PEFT's format, as a plain table."""
        config, tensors = read_weights(folder, base)
        if TABLE not in tensors:
            raise ModelError(f"the file has no {TABLE}", where=str(folder), remedy="this is no prompt or prefix")
        if (kind, base.kind) in _OTHER_IN_PEFT and config.get("peft_type") == peft_type:
            raise ModelError(
                _OTHER_IN_PEFT[kind, base.kind],
                where=str(folder),
                remedy="train it with luthier, or use lora",
            )
        table = tensors.pop(TABLE)
        length = int(config.get("num_virtual_tokens", 0))
        width = prefix_width(base) if kind == "prefix" else base.anatomy.hidden_size
        if tuple(table.shape) != (length, width):
            raise ModelError(
                f"the table is {tuple(table.shape)}, this base needs {(length, width)}",
                where=str(folder),
                remedy="name the base that it was trained on",
            )
        refuse_unfit(base, length, kind == "prefix")
        facts = {key: config[key] for key in _KEPT if key in config}
        also = modules_to_save(base, config)
        attached = cls(base, Table(table), kind, peft_type, trainable, also=also, **facts)
        check_same({TABLE: table}, {TABLE: table}, str(folder))
        attached.read_inplace(tensors, folder)
        return attached

    def read_inplace(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """The task head's tensors."""
        mine = {PREFIX + name: weight for name, weight in self.inplace.trained.items()}
        check_same(mine, tensors, str(folder))
        with torch.no_grad():
            for name, weight in mine.items():
                weight.copy_(tensors[name])

    def read_own(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Tensors of our own format: the source's and the head's."""
        mine = {name: value for name, value in self._all().items() if name not in self.inplace.trained}
        given = {k.removeprefix("source."): v for k, v in tensors.items() if k.startswith("source.")}
        check_same(mine, given, str(folder))
        with torch.no_grad():
            for name, value in mine.items():
                value.copy_(given[name])
        self.read_inplace({k: v for k, v in tensors.items() if not k.startswith("source.")}, folder)

    def branches(self) -> Iterator[tuple[str, Any]]:
        """(layer name, (K, V) slices' index) of a prefix; the embeddings for a prompt."""
        if self.kind == "prompt":
            yield self.base.anatomy.embeddings[0], self.source
        else:
            for index, (name, _) in enumerate(self.base.anatomy.cached_attentions):
                yield name, {"layer": index, "source": self.source}


_MEMBERS = {"PROMPT_TUNING": "PROMPT", "P_TUNING": "P_TUNING", "PREFIX_TUNING": "PREFIX"}

_OTHER_IN_PEFT = {
    (
        "prompt",
        "encoder",
    ): "PEFT pools the first virtual token of an encoder where luthier pools the row's own first token",
    ("prefix", "encoder_decoder"): "PEFT gives layer i of a decoder the prefix of layer 2 i (modulo the layers)",
}
"""(kind, base) whose PEFT folders mean another model than ours: written in our own format, theirs are refused."""

_KEPT = (
    "prefix_projection",
    "encoder_hidden_size",
    "encoder_reparameterization_type",
    "encoder_num_layers",
    "encoder_dropout",
    "prompt_tuning_init",
)
"""Keys of PEFT's configs that are carried through."""


def module_size(module: nn.Module) -> int:
    """Numbers in a module."""
    return sum(weight.numel() for weight in module.parameters())
