"""Any other PEFT tuner (loha, lokr, vera, oft, boft, hra, …) with PEFT's own settings, checked by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from luthier.core.settings import Settings
from luthier.methods import METHODS, rates, targets

if TYPE_CHECKING:
    from luthier.methods.modules.tuned import Tuned
    from luthier.models.base import Base

OWN_MEMBERS = {
    "LORA": "lora",
    "IA3": "ia3",
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "p_tuning",
}
NOT_ALONE = {
    "ADALORA": ("it moves ranks between layers by a call after every step, else it is LoRA", "lora, with rank_pattern"),
    "POLY": ("it needs the task of every row inside its layers", "multitask_prefix"),
    "SHADOW": ("it computes in PEFT's own forward, around the model", "lora"),
    "XLORA": ("it mixes LoRAs that are trained already, in PEFT's own forward", "lora"),
    "TRAINABLE_TOKENS": ("lora has it", "{name: lora, train_tokens: [...]}"),
}
"""Types that replace layers but do not work by that alone: (why, instead)."""
SHARED_PROJECTIONS = ("VERA", "PVERA", "FROD")
"""PEFT 0.21 saves shared projections of a whole PeftModel only; a seed, or the base, remakes them."""
UNTRAINED = {
    "bias": "{name: stack, methods: [{name: bitfit}, {name: peft, …}]}",
    "modules_to_save": "{name: stack, methods: [{name: full, train: [lm_head]}, {name: peft, …}]}",
}
"""Settings by which PEFT trains the base's own weights: (setting, what does it here)."""
SET_BY_LUTHIER = {"peft_type", "task_type", "inference_mode", "base_model_name_or_path", "auto_mapping", "revision"}


@METHODS.register("peft")
class Peft:
    """Any other PEFT tuner, by type."""

    name: ClassVar[str]
    default_lr = 1e-3
    default_schedule: ClassVar[dict[str, Any]] = {"name": "linear", "warmup": 0.05}
    lr_reason = "LoRA's range; the tuners differ, so `lr: probe` is worth its minutes"

    class Params(Settings):
        """Type and settings."""

        type: str = Field("loha")
        """PEFT's name of the tuner, in lower case."""
        settings: dict[str, Any] = Field(default_factory=dict)
        """PEFT's own settings; target_modules defaults to all linear layers of the blocks."""

        @model_validator(mode="after")
        def _own_weights_only(self) -> Peft.Params:
            for name, instead in UNTRAINED.items():
                if self.settings.get(name) not in (None, "none", [], ()):
                    raise ValueError(f"settings.{name} would train weights of the base; write {instead}")
            return self

    def __init__(self, params: Params | None = None):
        self.params = params or self.Params()

    @classmethod
    def lr_for(cls, base: Base) -> float:
        """The default rate for this model's width."""
        return rates.for_width(cls.default_lr, base.anatomy.hidden_size, low=2e-4)

    def _config(self, base: Base) -> Any:
        import dataclasses
        import difflib

        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

        from luthier.core.errors import RecipeError

        kinds = {str(kind.value): kind for kind in PEFT_TYPE_TO_TUNER_MAPPING}
        name = self.params.type.upper()
        known = ", ".join(sorted(kind.lower() for kind in kinds.keys() - OWN_MEMBERS.keys() - NOT_ALONE.keys()))
        if name in OWN_MEMBERS:
            raise RecipeError(f"{self.params.type} is a member of its own", remedy=f"method: {OWN_MEMBERS[name]}")
        if name in NOT_ALONE:
            why, instead = NOT_ALONE[name]
            raise RecipeError(f"{self.params.type} is not trained here: {why}", where="method.type", remedy=instead)
        if name not in kinds:
            raise RecipeError(f"PEFT has no tuner {self.params.type!r}", where="method.type", remedy=f"known: {known}")
        maker: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kinds[name]]
        fields = {field.name for field in dataclasses.fields(maker) if field.init} - SET_BY_LUTHIER
        for key in self.params.settings:
            if key not in fields:
                close = difflib.get_close_matches(key, fields, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(fields))}"
                raise RecipeError(f"{name} has no setting {key!r}", where=f"method.settings.{key}", remedy=hint)
        given = dict(self.params.settings)
        if name in SHARED_PROJECTIONS:
            given.setdefault("save_projection", False)
        if "target_modules" in fields and name != "LN_TUNING":
            wanted = given.get("target_modules", "auto")
            given["target_modules"] = targets.short_names(base, targets.resolve(base, wanted))
        try:
            config = maker(**given)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"PEFT refuses these settings: {error}", where="method.settings") from None
        if config.is_prompt_learning or config.is_adaption_prompt or not hasattr(kinds[name], "value"):
            raise RecipeError(
                f"{name} puts tokens before the text through PEFT's own forward", remedy="prefix or prompt"
            )
        return config

    def attach(self, base: Base, seed: int) -> Tuned:
        """Inject PEFT's tuner."""
        from luthier.core.seeding import seed_everything
        from luthier.methods.modules.tuned import Tuned

        config = self._config(base)
        self._refuse_packed(base)
        seed_everything(seed)
        return Tuned(base, config)

    def _refuse_packed(self, base: Base) -> None:
        """4-bit weights have no rows and columns; only tuners with layers of their own for them know that."""
        from importlib.util import find_spec

        from luthier.core.errors import ModelError

        name = self.params.type.lower()
        if targets.packing(base) == "nf4" and find_spec(f"peft.tuners.{name}.bnb") is None:
            raise ModelError(
                f"PEFT's {name} has no layer for 4-bit weights",
                where="method.type",
                remedy="lora, or model.quantize: int8",
            )

    @classmethod
    def reload(cls, folder: Path, base: Base, trainable: bool = False) -> Tuned:
        """Read ours or PEFT's folder."""
        from luthier.core.errors import ModelError
        from luthier.methods.modules.tuned import Tuned, modules_to_save, read_peft

        config, raw, tensors = read_peft(folder, base)
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise ModelError(
                f"{config.peft_type.value} adapters are not read", where=str(folder), remedy="prefix, prompt"
            )
        if hasattr(config, "modules_to_save"):
            config.modules_to_save = None
        attached = Tuned(base, config, modules_to_save(base, raw), trainable)
        attached.load_tensors(tensors, str(folder))
        return attached

    def formula(self, base: Base) -> int:
        """PEFT's tuners have no common formula: counted on a copy of the model (or on the model that has it)."""
        import copy
        import dataclasses

        from luthier.methods.modules.tuned import Tuned

        if getattr(base.model, "peft_config", None):
            return sum(weight.numel() for weight in base.model.parameters() if weight.requires_grad)
        trial = Tuned(dataclasses.replace(base, model=copy.deepcopy(base.model)), self._config(base))
        return sum(weight.numel() for weight in trial.parameters().values())
