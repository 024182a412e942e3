"""Adapting and training: from a base and rows to the best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.core import atomic
from luthier.core.errors import DataError, RecipeError
from luthier.core.events import Emitter, JsonLines
from luthier.core.rundir import RunDir
from luthier.pipeline import probe
from luthier.pipeline.prepare import Data
from luthier.recipe import Recipe
from luthier.train.settings import ScheduleSettings, TrainSettings

DEFAULT_EPOCHS = 3
DEFAULT_BATCH_TOKENS = 4096
CHECKED_TOKENS = 1024
"""Most tokens of one row in the checks before training, which take three rows at once."""
ROWS_TO_START = 32
"""Training rows that a method may look at before it begins."""


def adapt(recipe: Recipe, base: Any, task: Any, data: Data, emit: Emitter) -> Any:
    """Attach the method and choose how batches go through the model."""
    from luthier.adapted import attach

    settings = recipe.train
    adapted = attach(
        base,
        recipe.method,
        task,
        data.template,
        seed=recipe.seed,
        labels=data.labels,
        problem=data.problem,
        max_length=recipe.data.max_length,
    )
    options: dict[str, Any] = {}
    if settings.label_smoothing:
        options["label_smoothing"] = settings.label_smoothing
    if settings.z_loss:
        options["z_loss"] = settings.z_loss
    if settings.activation_checkpointing:
        options["checkpointing"] = True
    adapted.loss_options = options
    _refuse_long(adapted, data)
    attached: Any = adapted.attached
    if getattr(attached, "wants_inputs", False):
        attached.start_from_inputs(lambda: _read_rows(adapted, data))
    base.shared_prefix = settings.shared_prefix
    adapted.layout = "padded" if settings.engine == "plain" else _choose_layout(adapted, data, emit)
    _refuse_lost_prefix(settings, adapted)
    _refuse_unfit_sharing(settings, adapted.layout, base, emit)
    _choose_kernels(settings, adapted, data, emit)
    _shift_attention(settings, adapted)
    _tell_frozen_positions(adapted, emit)
    _tell_row_by_row(adapted, data, emit)
    trained = sum(weight.numel() for weight in adapted.parameters_by_name().values())
    total = sum(weight.numel() for weight in base.model.parameters())
    weights = sum(weight.numel() * weight.element_size() for weight in base.model.parameters())
    emit(
        "start",
        trainable=trained,
        total=total,
        base_bytes=weights,
        share=trained / max(1, total),
        layout=adapted.layout,
        rows={name: len(rows) for name, rows in data.rows.items()},
    )
    return adapted


def _refuse_long(adapted: Any, data: Data) -> None:
    """Rows that the window cannot hold beside the virtual tokens would stop the training where they come up."""
    from luthier.data.batching import lengths_of

    virtual = adapted.attached.virtual_tokens
    room = adapted.base.anatomy.window - virtual
    for name, rows in data.rows.items():
        lengths = lengths_of(rows) if len(rows) else None
        if lengths is not None and lengths.max() > room:
            beside = f" beside {virtual} virtual tokens" if virtual else ""
            what = f"{(lengths > room).sum()} of {len(rows)} {name} rows do not fit the model's window{beside}"
            longest = f"; the longest, {rows[int(lengths.argmax())].id}, has {lengths.max()} tokens"
            raise DataError(what + longest, where="data.max_length", remedy=f"data.max_length: {room}")


def _choose_kernels(settings: TrainSettings, adapted: Any, data: Data, emit: Emitter) -> None:
    """Eight-bit products where they are asked for; Liger's kernels where they are at hand."""
    from luthier.models import int8, kernels

    if settings.int8_base:
        int8.install_checked(adapted, _first_rows(data), emit)
    if settings.engine == "auto" and settings.compile != "on" and kernels.available(adapted.base):
        kernels.install_checked(adapted, _first_rows(data), emit)


def _refuse_unfit_sharing(settings: TrainSettings, layout: str, base: Any, emit: Emitter) -> None:
    if settings.shared_prefix and settings.trunk_cache:
        what = "kept hidden states are of whole rows, shared prefixes are not"
        raise RecipeError(what, where="train.shared_prefix", remedy="keep one of shared_prefix and trunk_cache")
    if settings.shared_prefix and (layout != "flat" or base.kind != "decoder"):
        what = "nothing is shared: that needs a decoder and the flat layout"
        emit("warning", what=what, where="train.shared_prefix", remedy="nothing is lost but speed")


def _refuse_lost_prefix(settings: TrainSettings, adapted: Any) -> None:
    """transformers drops a padded batch's cache, and with it the prefix, when it recomputes a layer; flat is exact."""
    kept = getattr(adapted.attached, "supports_activation_checkpointing", True) or adapted.layout == "flat"
    if settings.activation_checkpointing and not kept:
        what = "a prefix is lost when padded layers are recomputed, and this model needs the padded layout"
        remedy = "train.activation_checkpointing: false, or method: prompt or lora"
        raise RecipeError(what, where="train.activation_checkpointing", remedy=remedy)


def _shift_attention(settings: TrainSettings, adapted: Any) -> None:
    """Switch shifted sparse attention on for the training, or say what it does not fit."""
    if settings.shifted_attention is None:
        return
    against = {
        "it needs a decoder and the flat layout": adapted.layout != "flat" or adapted.base.kind != "decoder",
        "groups cut shared prefixes apart": settings.shared_prefix,
        "it does not fit the virtual tokens of this method": adapted.attached.virtual_tokens > 0,
    }
    for what, holds in against.items():
        if holds:
            raise RecipeError(what, where="train.shifted_attention", remedy="remove train.shifted_attention")
    adapted.base.shifted_attention = settings.shifted_attention


def _tell_frozen_positions(adapted: Any, emit: Emitter) -> None:
    """New rows of a position table are guesses until they are trained."""
    if not adapted.base.context.get("resize"):
        return
    from luthier.models.window import position_table

    table = position_table(adapted.base.model)[2].weight
    if not any(weight is table for weight in adapted.parameters_by_name().values()):
        emit(
            "warning",
            what="the new rows of the position table are not trained by this method",
            where="method",
            remedy="method.train_embeddings: true (lora), or full",
        )


def _tell_row_by_row(adapted: Any, data: Data, emit: Emitter) -> None:
    """Rows whose rotary frequencies hang on their own length do not go in batches."""
    from luthier.data.batching import lengths_of

    within, rows = adapted.base.anatomy.rope_constant_within, data.rows["train"]
    if within is None or not len(rows):
        return
    count = int((lengths_of(rows) + adapted.attached.virtual_tokens > within).sum())
    if count:
        what = f"{count} of {len(rows)} training rows go alone: beyond {within} positions this RoPE hangs on the length"
        emit("warning", what=what, where="context", remedy="nothing is lost but speed; linear and yarn go in batches")


def _read_rows(adapted: Any, data: Data) -> None:
    """Send some training rows, evenly spread, through the model one by one."""
    from luthier.engine.batch import from_rows

    rows = data.rows["train"]
    adapted.eval()
    for place in sorted({round(step * (len(rows) - 1) / (ROWS_TO_START - 1)) for step in range(ROWS_TO_START)}):
        adapted.hidden(from_rows([rows[place]]))


def _choose_layout(adapted: Any, data: Data, emit: Emitter) -> str:
    from luthier.models import selfcheck

    return str(selfcheck.choose_layout(adapted, _first_rows(data), emit, _longest_row(adapted, data)))


def _first_rows(data: Data) -> list[Any]:
    """Three training rows, long ones by their last tokens: a check must not take more memory than the training."""
    rows = data.rows["train"]
    return [_end(rows[index]) for index in range(min(3, len(rows)))]


def _longest_row(adapted: Any, data: Data) -> Any:
    """The longest training row, cut no shorter than what shows a layer's window; None where it is checked anyway."""
    from luthier.data.batching import lengths_of

    rows = data.rows["train"]
    if not len(rows):
        return None
    index = int(lengths_of(rows).argmax())
    size = max(CHECKED_TOKENS, (adapted.base.anatomy.local_window or 0) + CHECKED_TOKENS // 4)
    row = _end(rows[index], size)
    return None if index < 3 and len(row.input_ids) <= CHECKED_TOKENS else row


def _end(row: Any, size: int = CHECKED_TOKENS) -> Any:
    if len(row.input_ids) <= size or len(row.labels) != len(row.input_ids):
        return row
    return replace(row, input_ids=row.input_ids[-size:], labels=row.labels[-size:])


def batches(recipe: Recipe, rows: Any, context: Mapping[str, Any] | None = None) -> Any:
    """The plan of batches for these rows; `context` is the window plan whose positions short rows may skip to."""
    from luthier.data.batching import BatchPlan

    settings = recipe.train
    tokens = settings.batch_tokens
    if tokens is None and settings.batch_size is None:
        tokens = DEFAULT_BATCH_TOKENS
    plan = BatchPlan(
        rows,
        batch_tokens=tokens,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        micro_tokens=settings.micro_tokens,
        seed=recipe.seed,
    )
    if not settings.position_skipping:
        return plan
    if not context:
        raise RecipeError(
            "position_skipping without a longer window", where="train.position_skipping", remedy="give context:"
        )
    if settings.trunk_cache:
        raise RecipeError(
            "kept hidden states do not fit positions that change", where="train.trunk_cache", remedy="false"
        )
    from luthier.context.pose import Skipping

    return Skipping(plan, int(context["to"]), recipe.seed)


def total_steps(recipe: Recipe, plan: Any) -> int:
    """Optimizer steps of the whole training; epochs may be a fraction."""
    if recipe.train.steps is not None:
        return recipe.train.steps
    epochs = recipe.train.epochs or DEFAULT_EPOCHS
    whole = sum(plan.steps(epoch) for epoch in range(int(epochs)))
    return max(1, whole + math.ceil((epochs - int(epochs)) * plan.steps(int(epochs)) - 1e-9))


def train(recipe: Recipe, adapted: Any, data: Data, run: RunDir, emit: Emitter, log: JsonLines) -> Any:
    """The loop; returns its TrainState with the best weights restored in `adapted`."""
    from luthier.models import compiled, trunk
    from luthier.pipeline.validated import Validation
    from luthier.train import loop
    from luthier.train.checkpoint import Checkpoints

    plan = batches(recipe, data.rows["train"], adapted.base.context)
    steps = total_steps(recipe, plan)
    settings = recipe.train.model_copy(update={"schedule": schedule(recipe)})
    lr = learning_rate(recipe, adapted)
    if recipe.train.lr == "probe":
        own = recipe.model_copy(update={"train": settings})
        lr = probe.best_rate(own, adapted, plan, data, lr, run, emit)
    if recipe.train.trunk_cache:
        trunk.install(adapted, data.rows["train"], run.trunk, emit)
    compiled.install_checked(adapted, _first_rows(data), recipe.train, _tokens(recipe, data, plan, steps), emit)
    run.write_status("running", total_steps=steps)
    emit.listeners.append(_heartbeat(run, steps))
    rows_log, validation_log = JsonLines(run.rows), JsonLines(run.validation_rows)
    checkpoints = Checkpoints(
        run.checkpoints,
        keep=recipe.train.keep_checkpoints,
        max_disk=recipe.train.max_disk,
        fingerprints={"recipe": recipe.fingerprint(), "base": adapted.base.fingerprint, "data": data.sources},
        logs={"events": log, "rows": rows_log, "validation_rows": validation_log},
        background=True,
    )

    validate = Validation(adapted, data.rows["validation"], recipe.evaluate.batch_tokens, validation_log)
    emit.listeners.append(validate.listen)
    try:
        return loop.fit(
            adapted,
            plan,
            adapted.loss,
            settings=settings,
            lr=lr,
            total_steps=steps,
            checkpoints=checkpoints,
            validate=validate,
            emit=emit,
            resume=True,
            seed=recipe.seed,
            multipliers=getattr(adapted.attached, "lr_factors", None),
            on_rows=lambda record: rows_log({"kind": "rows", **record}),
        )
    finally:
        rows_log.close()
        validation_log.close()
        emit.listeners.remove(validate.listen)
        trunk.remove(adapted, run.trunk)
        compiled.remove(adapted.base)


def _tokens(recipe: Recipe, data: Data, plan: Any, steps: int) -> float:
    """Tokens of the whole training, about."""
    from luthier.data.batching import lengths_of

    return float(lengths_of(data.rows["train"]).sum()) * steps / max(1, plan.steps(0))


def learning_rate(recipe: Recipe, adapted: Any) -> float:
    """The recipe's number, or the method's default for a model of this width (where `probe` looks around)."""
    from luthier.methods import METHODS

    if isinstance(recipe.train.lr, float):
        return recipe.train.lr
    member = METHODS.parse(recipe.method)
    fitting = getattr(member, "lr_for", None)
    return float(fitting(adapted.base) if fitting else member.default_lr)


def schedule(recipe: Recipe) -> ScheduleSettings:
    """The recipe's schedule; what it leaves open is the method's own."""
    from luthier.methods import METHODS

    own: Mapping[str, Any] = getattr(METHODS.parse(recipe.method), "default_schedule", {})
    return recipe.train.schedule.settled(**own)


def _heartbeat(run: RunDir, steps: int) -> Any:
    """Keeps status.json fresh, at most once in two seconds."""
    last = [0.0]

    def listen(record: dict[str, Any]) -> None:
        if record["kind"] == "train" and record["time"] - last[0] > 2:
            last[0] = record["time"]
            run.write_status("running", step=record.get("step", 0), total_steps=steps)

    return listen


def remember_best(run: RunDir, state: Any) -> None:
    """best.json names the best checkpoint."""
    atomic.write_json(run.checkpoints / "best.json", {"step": state.best[1], "metric": state.best[0]})
