"""What the battery runs: every member with small settings, on every tiny architecture, with and without a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import models as tiny
import numpy as np
import torch
from torch import Tensor

from luthier.core.types import IGNORE, Row
from luthier.engine.batch import Batch, from_rows
from luthier.models import forward
from luthier.models.base import Base

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "full": {},
    "prefix": {"length": 3},
    "prompt": {"length": 3},
    "p_tuning": {"length": 3, "hidden": 16},
    "dynamic_prefix": {"length": 3, "hidden": 8},
    "multitask_prefix": {"length": 3, "tasks": ("first", "second", "third")},
    "bottleneck": {"reduction": 4},
    "ia3": {},
    "bitfit": {},
    "last_layers": {"count": 1},
    "peft": {"type": "loha", "settings": {"r": 2}},
    "stack": {"preset": "mam", "length": 3, "reduction": 4},
}
"""Small settings by member; a member that is not listed runs with its defaults."""


def _gated(start: str) -> dict[str, Any]:
    """A gated LoRA that does not start at zero, beside a gated bottleneck."""
    parts = ({"name": "lora", "r": 2, "init": start}, {"name": "bottleneck", "reduction": 4})
    return {"name": "stack", "gates": True, "methods": parts}


VARIANTS: dict[str, dict[str, Any]] = {
    "lora-dora": {"name": "lora", "r": 4, "dora": True, "rslora": True},
    "lora-norms": {"name": "lora", "r": 4, "bias": "all", "train_norms": True},
    "lora-embeddings": {"name": "lora", "r": 2, "train_embeddings": True},
    "lora-tokens": {"name": "lora", "r": 2, "train_tokens": ("w3", 5)},
    "lora-pissa": {"name": "lora", "r": 2, "init": "pissa"},
    "lora-olora": {"name": "lora", "r": 2, "init": "olora"},
    "lora-eva": {"name": "lora", "r": 2, "init": "eva"},
    "lora-rslora": {"name": "lora", "r": 4, "rslora": True},
    "full-last": {"name": "full", "layers": "-1", "embeddings": False, "norms": False},
    "prefix-mlp": {"name": "prefix", "length": 3, "mlp": 8},
    "prefix-tied": {"name": "prefix", "length": 3, "tied": True, "init": "embeddings"},
    "prefix-random": {"name": "prefix", "length": 3, "init": "random"},
    "p_tuning-lstm": {"name": "p_tuning", "length": 3, "hidden": 8, "encoder": "lstm"},
    "bottleneck-houlsby": {"name": "bottleneck", "style": "houlsby", "reduction": 4},
    "bottleneck-parallel": {"name": "bottleneck", "style": "parallel", "reduction": 4},
    "stack-unipelt": {"name": "stack", "preset": "unipelt", "length": 3, "reduction": 4},
    "stack-lora-prefix": {"name": "stack", "methods": ({"name": "lora", "r": 2}, {"name": "prefix", "length": 3})},
    "stack-prompt-bottleneck": {
        "name": "stack",
        "methods": ({"name": "prompt", "length": 3}, {"name": "bottleneck", "reduction": 4}),
    },
    **{f"stack-gated-{start}": _gated(start) for start in ("pissa", "olora", "eva")},
}
"""More forms of the same members, on fewer architectures in the quick run."""

QUICK_KINDS = ("llama", "gpt2", "bert")
"""Architectures of the quick run for VARIANTS; the slow run takes all."""

_NO_BIAS = "the architecture has no biases"
ABSENT: dict[tuple[str, str], str] = {
    ("bitfit", "llama"): _NO_BIAS,
    ("bitfit", "qwen3"): _NO_BIAS,
    ("bitfit", "t5"): _NO_BIAS,
    ("peft", "gpt2"): "PEFT's LoHa has no layer for GPT-2's Conv1D",
}
"""(member or variant, architecture) → why there is nothing to run: there the method must refuse."""

ABSENT_TASKS: dict[tuple[str, str], str] = {
    ("bert", "instruct"): "an encoder's tokens see the ones behind them: the answer would be read off the input",
    ("bert", "language_model"): "an encoder's tokens see the ones behind them: the next token would be read off",
    ("t5", "classify"): "no head on encoder-decoders: the label's text is the answer (task instruct)",
}
"""(architecture, task) → why no method does it: there loading the model for the task must refuse."""


@dataclass(frozen=True)
class Cell:
    """One method on one architecture."""

    name: str
    kind: str
    head: bool

    @property
    def spec(self) -> dict[str, Any]:
        """The recipe's words."""
        return dict(VARIANTS.get(self.name) or {"name": self.name, **SETTINGS.get(self.name, {})})

    @property
    def rounds(self) -> bool:
        """Whether the method starts as a difference of two equal products, which cancel up to rounding."""
        parts = (self.spec, *self.spec.get("methods", ()))
        return any(part.get("init") in ("pissa", "olora") for part in parts)

    @property
    def task(self) -> str:
        """Name of the task in the table."""
        return "classify" if self.head else "language_model"

    def base(self) -> Base:
        """A fresh base."""
        return tiny.base(self.kind, self.head)

    def __str__(self) -> str:
        return f"{self.name}-{self.kind}-{self.task}"


def cells(names: list[str], kinds: tuple[str, ...] = tiny.KINDS) -> list[Cell]:
    """Every member in every architecture, as a language model and with a head, where the architecture has the task."""
    made = [Cell(name, kind, head) for name in names for kind in kinds for head in (False, True)]
    return [cell for cell in made if (cell.kind, cell.task) not in ABSENT_TASKS]


def rows() -> list[Row]:
    """Three rows of different lengths with an answer of two or three tokens each."""
    source = np.random.default_rng(5)
    made = []
    for index, (length, answer) in enumerate(((9, 3), (5, 2), (7, 3))):
        ids = source.integers(4, tiny.VOCAB, length).astype(np.int32)
        labels = np.where(np.arange(length) >= length - answer, ids, IGNORE).astype(np.int32)
        made.append(Row(f"r{index}", ids, labels, target=index, task=index % 3))
    return made


def batch(head: bool, some: list[Row] | None = None) -> Batch:
    """The rows as a batch; rows with a head carry no token targets."""
    made = from_rows(some or rows())
    return (
        made
        if head
        else Batch(made.input_ids, made.position_ids, made.targets, made.bounds, made.row_ids, None, made.tasks)
    )


def outputs(
    base: Base, attached: Any, given: Batch | None = None, layout: str = "padded", checkpointing: bool = False
) -> Tensor:
    """[T, vocabulary] logits of the flat tokens, or [S, labels]."""
    head = bool(base.head)
    given = batch(head) if given is None else given
    virtual = None if attached is None else attached.virtual(given)
    states = forward.hidden(base, given, virtual, layout, checkpointing)
    return forward.row_logits(base, given, states, virtual, layout) if head else forward.logits(base, states)


def loss(base: Base, attached: Any, checkpointing: bool = False) -> Tensor:
    """A scalar that every trained weight should move."""
    made = outputs(base, attached, checkpointing=checkpointing)
    source = torch.Generator().manual_seed(1)
    return (torch.log_softmax(made, -1) * torch.rand(made.shape, generator=source)).sum()


def shake(attached: Any, size: float = 0.05) -> None:
    """Move every trained weight a little, so that nothing is at its start."""
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, weight in sorted(attached.parameters().items()):
            weight.add_(torch.randn(weight.shape, generator=source) * size)


def peft_outputs(cell: Cell, folder: Any) -> Tensor:
    """The same rows through stock PEFT, one by one, so that its padding faults cannot matter."""
    from peft import PeftModel

    base = cell.base()
    model = PeftModel.from_pretrained(base.model, str(folder)).eval()
    made, given = [], batch(cell.head)
    for start, end in zip(given.bounds[:-1].tolist(), given.bounds[1:].tolist(), strict=True):
        ids = given.input_ids[start:end][None]
        if base.kind == "encoder_decoder":
            made.append(_peft_seq2seq(model, ids, given.targets[start:end]))
            continue
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        made.append(logits if cell.head else logits[-(end - start) :])
    return torch.stack(made) if cell.head else torch.cat(made)


def _peft_seq2seq(model: Any, ids: Tensor, targets: Tensor) -> Tensor:
    """[n, vocabulary]: prompt through the encoder, answer through the decoder, zeros where nothing is predicted."""
    answer = targets[targets != IGNORE][None]
    prompt = ids[:, : ids.shape[1] - answer.shape[1]]
    said = torch.cat([torch.zeros(1, 1, dtype=torch.int64), answer[:, :-1]], dim=1)
    logits = model(input_ids=prompt, attention_mask=torch.ones_like(prompt), decoder_input_ids=said).logits[0]
    made = torch.zeros(ids.shape[1], logits.shape[1])
    made[targets != IGNORE] = logits
    return made
