"""Several methods on one base as one artefact, each part trained unless it says `train: false`.

    mam      prefix + parallel bottleneck of scale 4                    (He et al. 2022)
    unipelt  gated LoRA + gated prefix + gated bottleneck               (Mao et al. 2022)

PEFT refuses to combine kinds, and where they nest it freezes the inner one silently; here every part's weights
are listed, counted and get their own learning rate. `bundle.json` names the parts in order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.core.settings import Settings
from luthier.methods import METHODS
from luthier.methods.reading import BUNDLE, method_of_folder

if TYPE_CHECKING:
    from luthier.methods.modules.stacked import Stacked
    from luthier.models.base import Base

ORDER = {"full": 0, "bitfit": 0, "last_layers": 0, "lora": 1, "ia3": 1, "peft": 1, "bottleneck": 2}
"""In-place weights first (their names are the base's), then replaced layers, hooks, virtual tokens."""
VIRTUAL_ORDER = 3
FORMAT = 1
GATED = ("lora", "bottleneck", "prefix", "dynamic_prefix", "multitask_prefix")
"""Members that a gate can scale: a branch of its own, or the values of a prefix."""
PRESET_SIZES = {"mam": {"length": 20, "reduction": 16}, "unipelt": {"length": 20, "reduction": 16, "r": 8}}
"""preset → its sizes and their defaults."""


@METHODS.register("stack")
class Stack:
    """Several methods as one."""

    name: ClassVar[str]
    default_lr = 1e-3
    default_schedule: ClassVar[dict[str, Any]] = {"name": "linear", "warmup": 0.05}
    lr_reason = "each part keeps its own default rate, as a factor on this one"

    class Params(Settings):
        """The parts."""

        preset: Literal["mam", "unipelt"] | None = None
        methods: tuple[dict[str, Any], ...] = ()
        """Instead of a preset: the parts, as a recipe writes methods; `train: false` in one: frozen, but applied."""
        gates: bool = False
        """Gate every part by a sigmoid of its input (UniPELT does); lora, bottleneck and prefixes have gates."""
        length: int | None = Field(None, gt=0)
        """Prefix length of a preset. null: 20."""
        reduction: int | None = Field(None, gt=0)
        """Bottleneck reduction of a preset. null: 16."""
        r: int | None = Field(None, gt=0)
        """LoRA rank of the preset unipelt. null: 8."""

        @model_validator(mode="after")
        def _parts(self) -> Stack.Params:
            if (self.preset is None) == (not self.methods):
                raise ValueError("give either preset or methods")
            names = [str(spec.get("name")) for spec in self.methods]
            if self.methods and len(names) < 2:
                raise ValueError("a stack has at least two parts")
            if "stack" in names:
                raise ValueError("a stack cannot hold a stack")
            levels = [ORDER.get(name, VIRTUAL_ORDER) for name in names]
            for level, kind in ((1, "method that replaces layers"), (VIRTUAL_ORDER, "method with virtual tokens")):
                if levels.count(level) > 1:
                    raise ValueError(f"a stack has at most one {kind}")
            return self

        @model_validator(mode="after")
        def _all_used(self) -> Stack.Params:
            """A setting that nothing reads is an error, not a silence."""
            read = PRESET_SIZES.get(self.preset or "", {})
            for name in ("length", "reduction", "r"):
                if getattr(self, name) is not None and name not in read:
                    held = f"the preset {self.preset} has no" if self.preset else "the parts have their own"
                    raise ValueError(f"{name} is not read: {held} {name}")
            bare = [str(spec.get("name")) for spec in self.methods if spec.get("name") not in GATED]
            if self.gates and bare:
                raise ValueError(f"gates: true, but {', '.join(bare)} has no gate; gated: {', '.join(GATED)}")
            if self.methods and not any(_trains(spec) for spec in self.methods):
                raise ValueError("no part of the stack is trained")
            return self

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params(preset="mam")
        self.gates = self.params.gates or self.params.preset == "unipelt"
        specs = sorted(self._specs(), key=lambda spec: ORDER.get(str(spec.get("name")), VIRTUAL_ORDER))
        self.members = [METHODS.parse(_plain(spec)) for spec in specs]
        self.trains = tuple(_trains(spec) for spec in specs)
        kept = [getattr(member, "supports_activation_checkpointing", True) for member in self.members]
        self.supports_activation_checkpointing = all(kept)
        self.tasks = next((found for m in self.members if (found := getattr(m, "tasks", ()))), ())

    def _specs(self) -> list[dict[str, Any]]:
        params = self.params
        if params.preset is None:
            gated = {"gate": True} if self.gates else {}
            return [spec | (gated if spec.get("name") == "bottleneck" else {}) for spec in params.methods]
        sizes = {k: getattr(params, k) or default for k, default in PRESET_SIZES[params.preset].items()}
        prefix = {"name": "prefix", "length": sizes["length"]}
        neck: dict[str, Any] = {"name": "bottleneck", "reduction": sizes["reduction"]}
        if params.preset == "mam":
            return [neck | {"style": "parallel", "scale": 4.0, "gate": self.gates}, prefix]
        return [{"name": "lora", "r": sizes["r"]}, neck | {"gate": True}, prefix]

    def attach(self, base: Base, seed: int) -> Stacked:
        """Attach every part; the task head belongs to the first."""
        import dataclasses

        from luthier.core.seeding import derive
        from luthier.methods.modules.stacked import Stacked, rate_of

        bare = dataclasses.replace(base, head=())
        parts = []
        for index, member in enumerate(self.members):
            where = base if index == 0 else bare
            parts.append(member.attach(where, derive(seed, "part", index)))
        rates = [rate_of(member, base) / self.default_lr for member in self.members]
        names = [member.name for member in self.members]
        return Stacked(base, parts, names, self.gates, rates, seed, trains=self.trains)

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> Stacked:
        """Read bundle.json and its parts."""
        import dataclasses
        import json

        from luthier.core.errors import ModelError
        from luthier.methods.modules.stacked import Stacked

        bundle = json.loads((folder / BUNDLE).read_text("utf-8"))
        names = [str(part) for part in bundle.get("parts", ())]
        if bundle.get("format") != FORMAT or not names or not all(re.fullmatch(r"[0-9]-[a-z0-9_]+", n) for n in names):
            raise ModelError("bundle.json is not understood", where=str(folder / BUNDLE), remedy="update luthier")
        bare = dataclasses.replace(base, head=())
        parts, kinds = [], []
        for index, name in enumerate(names):
            kinds.append(method_of_folder(folder / name))
            member = METHODS.get(kinds[-1])
            parts.append(member.reload(folder / name, base if index == 0 else bare, trainable))
        trains = tuple(name not in bundle.get("frozen", ()) for name in names)
        attached = Stacked(base, parts, kinds, bool(bundle.get("gates")), None, 0, trainable, trains)
        attached.read_gates(folder)
        return attached

    def formula(self, base: Base) -> int:
        """Sum over the trained parts, the gates, and the task head once."""
        import dataclasses

        from luthier.methods.modules.stacked import gate_count
        from luthier.methods.modules.tuned import parameter_count

        bare = dataclasses.replace(base, head=())
        own = sum(member.formula(bare) for member, train in zip(self.members, self.trains, strict=True) if train)
        return own + parameter_count(base, ()) + (gate_count(self.members, base) if self.gates else 0)


def _trains(spec: dict[str, Any]) -> bool:
    """`train: false` freezes a part; `full` has a list of patterns of that name."""
    return spec.get("train") is not False


def _plain(spec: dict[str, Any]) -> dict[str, Any]:
    """The member's own settings."""
    return {key: value for key, value in spec.items() if key != "train" or not isinstance(value, bool)}
