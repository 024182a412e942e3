"""Several attached methods as one: one list of weights, one state, one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import CannotMerge
from luthier.engine.batch import Batch
from luthier.methods.modules.inplace import check_same
from luthier.methods.modules.low_rank import START
from luthier.methods.modules.sources import pool_prompt
from luthier.methods.modules.tuned import ADAPTER
from luthier.models.base import Base
from luthier.models.forward import Virtual

GATES = "gates.safetensors"


def rate_of(member: Any, base: Base) -> float:
    """The member's own default learning rate on this base."""
    known = getattr(member, "lr_for", None)
    return float(known(base)) if known else float(member.default_lr)


def gate_count(members: Sequence[Any], base: Base) -> int:
    """One weight for each input channel and a bias, at each LoRA layer and each layer of a prefix."""
    from luthier.methods import targets

    total = 0
    for member in members:
        if member.name == "lora":
            names = targets.resolve(base, member.params.targets, member.params.layers)
            total += sum(targets.shape_of(base, name)[0] + 1 for name in names)
        elif "prefix" in member.name:
            total += len(base.anatomy.cached_attentions) * (base.anatomy.hidden_size + 1)
    return total


class Stacked:
    """Attached stack."""

    peft_type: str | None = None

    def __init__(
        self,
        base: Base,
        parts: Sequence[Any],
        kinds: Sequence[str],
        gated: bool,
        rates: Sequence[float] | None,
        seed: int,
        trainable: bool = True,
        trains: Sequence[bool] | None = None,
    ):
        self.trains = tuple(trains) if trains else (True,) * len(parts)
        self.base, self.parts, self.kinds, self.gated = base, list(parts), list(kinds), gated
        tuned = next((part for part in parts if hasattr(part, "tuner")), None)
        if tuned is not None:  # parts were attached to copies of `base`; the head may have been replaced
            base.anatomy = tuned.base.anatomy
        self.can_merge = not gated and all(part.can_merge for part in parts)
        self.virtual_tokens = sum(part.virtual_tokens for part in parts)
        self.wants_inputs = any(getattr(part, "wants_inputs", False) for part in parts)
        self.tasks = next((part.tasks for part in parts if part.tasks), ())
        self.supports_activation_checkpointing = all(part.supports_activation_checkpointing for part in parts)
        self.gates = nn.ModuleDict()
        self._on, self.merged = True, False
        if gated:
            torch.manual_seed(seed)
            self._make_gates()
            self.gates.to(next(base.model.parameters()).device)
        for part in parts:
            for weight in part.parameters().values():
                weight.requires_grad_(False)
        for weight in self.parameters().values():  # every later part froze the earlier ones
            weight.requires_grad_(trainable)
        self.lr_factors: dict[str, float] = {}
        for index, part in enumerate(parts):
            rate = rates[index] if rates else 1.0
            for name in self._trained(index):
                self.lr_factors[f"{index}.{name}"] = rate * part.lr_factors.get(name, 1.0)

    def start_from_inputs(self, run: Callable[[], None]) -> None:
        """For the parts that begin with what their layers read."""
        for part in self.parts:
            if getattr(part, "wants_inputs", False):
                part.start_from_inputs(run)

    def _make_gates(self) -> None:
        for part in self.parts:
            for name, layer in part.layers() if hasattr(part, "layers") else ():
                if ADAPTER in getattr(layer, "lora_A", {}):
                    gate = nn.Linear(layer.lora_A[ADAPTER].in_features, 1)
                    self.gates["lora/" + name.replace(".", "/")] = gate
                    self._gate_lora(layer, gate)
        if self.virtual_tokens and self._prefix() is not None:
            for index in range(len(self.base.anatomy.cached_attentions)):
                self.gates[f"prefix/{index}"] = nn.Linear(self.base.anatomy.hidden_size, 1)

    def _gate_lora(self, layer: Any, gate: nn.Linear) -> None:
        """The branch as a whole: a start from the weight's own directions has a frozen opposite beside it."""
        for adapter in (ADAPTER, START):
            if adapter in layer.lora_A:
                self._gate_branch(layer.lora_A[adapter], layer.lora_B[adapter], gate)

    @staticmethod
    def _gate_branch(down: nn.Module, up: nn.Module, gate: nn.Linear) -> None:
        seen: list[Tensor] = []

        def note(module: nn.Module, given: tuple[Any, ...]) -> None:
            seen[:] = [given[0]]

        def scale(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
            return out * torch.sigmoid(gate(seen.pop().float())).to(out.dtype)

        down.register_forward_pre_hook(note)
        up.register_forward_hook(scale)

    def _prefix(self) -> Any:
        return next(
            (part for part in self.parts if part.virtual_tokens and getattr(part, "kind", "") == "prefix"), None
        )

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Every trained part's weights under its number, then the gates."""
        found = {f"{i}.{name}": w for i in range(len(self.parts)) for name, w in self._trained(i).items()}
        return found | {f"gates.{name}": weight for name, weight in self.gates.named_parameters()}

    def _trained(self, index: int) -> dict[str, nn.Parameter]:
        """Of one part; of a frozen one the task head alone, which it only carries."""
        found = self.parts[index].parameters()
        heads = tuple(head + "." for head in self.base.head)
        return {name: w for name, w in found.items() if self.trains[index] or (heads and name.startswith(heads))}

    def state(self) -> dict[str, Tensor]:
        """The states of all parts."""
        made = {f"{i}.{name}": value for i, part in enumerate(self.parts) for name, value in part.state().items()}
        return made | {f"gates.{name}": w.detach().cpu().clone() for name, w in self.gates.named_parameters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        check_same(self.state(), state, "checkpoint")
        for index, part in enumerate(self.parts):
            head = f"{index}."
            part.load_state({name.removeprefix(head): v for name, v in state.items() if name.startswith(head)})
        with torch.no_grad():
            for name, weight in self.gates.named_parameters():
                weight.copy_(state[f"gates.{name}"])

    def train(self, mode: bool = True) -> None:
        """Dropout inside the parts."""
        for part in self.parts:
            switch = getattr(part, "train", None)
            if switch:
                switch(mode)

    def virtual(self, batch: Batch) -> Virtual | None:
        """Of the one part that has virtual tokens; a gate scales V and leaves K."""
        made = next((part.virtual(batch) for part in self.parts if part.virtual_tokens), None)
        if made is None or made.prefix is None or not self.gated:
            return made
        pooled = pool_prompt(self.base.model.get_input_embeddings(), batch)
        pairs = []
        for index, (key, value) in enumerate(made.prefix):
            share = torch.sigmoid(self.gates[f"prefix/{index}"](pooled))[:, :, None, None]  # [S, 1, 1, 1]
            rows = value if value.dim() == 4 else value[None]
            pairs.append((key if key.dim() == 4 else key.expand(len(pooled), *key.shape), rows * share))
        return Virtual(prefix=pairs, length=made.length)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside: the untouched base."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.off())
            yield

    def save(self, folder: Path) -> None:
        """bundle.json, one folder for each part, and the gates."""
        import json

        from safetensors.torch import save_file

        from luthier.methods.reading import BUNDLE
        from luthier.methods.stack import FORMAT

        names = [f"{index}-{kind}" for index, kind in enumerate(self.kinds)]
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in zip(names, self.parts, strict=True):
            part.save(folder / name)
        if self.gated:
            gates = {name: weight.detach().cpu().clone() for name, weight in self.gates.named_parameters()}
            save_file(gates, folder / GATES)
        frozen = [name for name, train in zip(names, self.trains, strict=True) if not train]
        bundle = {"format": FORMAT, "parts": names, "gates": self.gated} | ({"frozen": frozen} if frozen else {})
        (folder / BUNDLE).write_text(json.dumps(bundle, indent=2) + "\n", "utf-8")

    def read_gates(self, folder: Path) -> None:
        """The gates that `save` wrote."""
        if not self.gated:
            return
        from safetensors.torch import load_file

        tensors = load_file(folder / GATES)
        mine = dict(self.gates.named_parameters())
        check_same(mine, tensors, str(folder / GATES))
        with torch.no_grad():
            for name, weight in mine.items():
                weight.copy_(tensors[name])

    def merge(self) -> None:
        """Fold every part, where all can."""
        if not self.can_merge:
            held = "its gates depend on the input" if self.gated else "one of its parts depends on the input"
            raise CannotMerge(f"this stack cannot be merged: {held}", where="merge", remedy="export the adapter itself")
        if self.merged:
            raise CannotMerge("already merged", where="merge", remedy="load the base and the adapter again")
        for part in reversed(self.parts):
            part.merge()
        self.merged = True

    def branches(self) -> Iterator[tuple[str, Any]]:
        """Of every part."""
        for part in self.parts:
            yield from part.branches()
