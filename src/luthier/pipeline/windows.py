"""Which window extension? Every one that fits, untuned, measured on the user's own documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.errors import DataError, LuthierError, RecipeError
from luthier.core.events import Emit, silent

DOCUMENTS = 6
OF_A_RUN = 4
"""Documents that a run measures itself on, so that this costs less than a short training."""
TASKS_OF_A_KIND = 1
HOWS = ("tile", "interpolate", "random")


def fitting(config: Mapping[str, Any], length: int) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """({method: plan}, {method: why not}). RecipeError where the target is no extension, or positions are unknown."""
    from luthier.context import CONTEXTS
    from luthier.context.plan import window_of

    window = window_of(config) if config.get("model_type") not in ("xglm", "m2m_100") else None
    if window is not None and length <= window.length:
        raise RecipeError(
            f"the target {length} is not longer than the model's window {window.length}",
            where="--to",
            remedy=f"more than {window.length}",
        )
    plans: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for name in CONTEXTS.names():
        for how in HOWS if name == "learned" else ("",):
            spec = {"name": name, "length": length, **({"how": how} if how else {})}
            shown = f"{name}-{how}" if how else name
            if name == "extrapolate":  # measured as "none"
                continue
            try:
                if name == "longrope":
                    raise RecipeError("needs lists of divisors: bring short_factor and long_factor")
                plans[shown] = CONTEXTS.parse(spec).plan(config)
            except LuthierError as error:
                refused[name] = error.what
    return plans, refused


def compare(
    model: str, length: int, text: str | None = None, documents: int = DOCUMENTS, emit: Emit = silent, seed: int = 0
) -> dict[str, Any]:
    """The contract's object. Without `text` the methods that fit, unmeasured; with it their losses and passkeys."""
    from luthier.models.load import read_config, resolve

    config = read_config(resolve(model))
    plans, refused = fitting(config, length)
    family, window = _facts(plans, config)
    found: dict[str, Any] = {"window": window, "target": length, "family": family, "recommended": None}
    if not plans:
        found |= {"methods": [], "refused": refused, "reason": "no method fits this model's positions"}
        return found
    if text is None:
        methods = [
            {"name": name, "loss_by_bucket": None, "passkey": None, "warnings": p["warnings"]}
            for name, p in plans.items()
        ]
        return {**found, "methods": methods, "refused": refused, "reason": "give --text to measure and recommend"}
    measured = _Measuring(model, window, length, text, documents, emit, seed)
    methods = [measured.none(family, config), *(measured.of(name, plan, config) for name, plan in plans.items())]
    name, reason = recommend(methods)
    reason += beside_own_window(next(one for one in methods if one["name"] == name), measured.truncated, window)
    base = {"truncated": measured.truncated, "passkey_floor": measured.floor, "documents": measured.count}
    return {
        **found, "methods": methods, "baselines": base, "refused": refused, "recommended": name, "reason": reason
    }  # fmt: skip


def _facts(plans: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> tuple[str, int]:
    from luthier.context.plan import window_of

    if plans:
        plan = next(iter(plans.values()))
        return str(plan["family"]), int(plan["from"])
    window = window_of(config)
    return window.family, window.length


def recommend(methods: list[dict[str, Any]]) -> tuple[str, str]:
    """The lowest mean loss over the whole target; passkeys decide what lies within 0.02."""
    whole = [one for one in methods if one["loss"] is not None]
    best = min(one["loss"] for one in whole)
    near = [one for one in whole if one["loss"] <= best + 0.02]
    chosen = max(near, key=lambda one: (one["passkey"], -one["loss"]))
    others = sorted((one for one in whole if one is not chosen), key=lambda one: one["loss"])
    second = f"; next {others[0]['name']} {others[0]['loss']:.3f}" if others else ""
    reason = f"mean loss {chosen['loss']:.3f} over all positions, passkey {chosen['passkey']:.2f}{second}"
    if chosen["name"] == "none":
        reason += ": untuned, no method beats leaving the positions alone; tune none beside one of them as control"
    return str(chosen["name"]), reason


def beside_own_window(chosen: Mapping[str, Any], truncated: Mapping[str, float], window: int) -> str:
    """What is to be said where the base that sees only its own window does better beyond it; else nothing."""
    beyond = [edge for edge in truncated if int(edge.split("-")[0]) >= window and edge in chosen["loss_by_bucket"]]
    if not beyond:
        return ""
    own, longer = (float(np.mean([found[edge] for edge in beyond])) for found in (truncated, chosen["loss_by_bucket"]))
    if longer < own:
        return ""
    return f"; beyond {window} the base with its own window only has {own:.3f}, this {longer:.3f}: untuned, it costs"


def read_text(path: str) -> list[str]:
    """The documents of a file, in any format that a recipe reads."""
    from luthier.data import load as loading
    from luthier.data.settings import DataSettings, SplitSettings

    settings = DataSettings(train=path, split=SplitSettings(validation=0, test=0))
    loaded = loading.load(settings, "language_model")
    return ["\n".join(turn.text for turn in row.turns) for row in loaded.examples]


class _Measuring:
    """The same windows of the same documents for every method."""

    def __init__(self, model: str, window: int, length: int, text: str, documents: int, emit: Emit, seed: int):
        from luthier.evaluate import window as room

        self.model, self.window, self.length, self.emit, self.seed, self.room = model, window, length, emit, seed, room
        texts = read_text(text)
        base = self._load(None)
        self.text = max(texts, key=len)
        self.rows = self._windows(base, texts, documents)
        self.count = len(self.rows)
        self.edges = room.buckets(window, length)
        emit("context", method="truncated", documents=self.count)
        self.truncated = room.by_bucket([room.truncated_losses(base, row, window) for row in self.rows], self.edges)
        self.floor = 0.0

    def _load(self, plan: Mapping[str, Any] | None) -> Any:
        from luthier.models.load import load_base
        from luthier.models.settings import ModelSettings

        return load_base(ModelSettings(path=self.model), context=plan)

    def _windows(self, base: Any, texts: list[str], documents: int) -> list[np.ndarray]:
        """Evenly spread windows of the target's length. DataError where no document is that long."""
        longest, rows = 0, []
        for text in texts:
            ids = np.array(base.tokenizer(text[: 40 * self.length * documents], verbose=False)["input_ids"])
            longest = max(longest, len(ids))
            whole = len(ids) // self.length
            rows += [ids[i * self.length : (i + 1) * self.length] for i in range(whole)]
            if len(rows) >= 4 * documents:
                break
        if not rows:
            raise DataError(
                f"the longest of {len(texts)} documents has {longest} tokens, the target window is {self.length}",
                where="--text",
                remedy=f"longer documents, or --to {longest}" if longest > self.window else "longer documents",
            )
        keep = np.unique(np.linspace(0, len(rows) - 1, min(documents, len(rows))).round().astype(int))
        return [rows[index] for index in keep]

    def none(self, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The base as it is: beyond its window too where its positions allow that, else inside only."""
        if family == "rope":
            from luthier.context import CONTEXTS

            free = CONTEXTS.parse({"name": "extrapolate", "length": self.length}).plan(config)
            return self._one("none", self._load(free), self.rows)
        found = self._one("none", self._load(None), [row[: self.window] for row in self.rows], tasks=False)
        return {**found, "loss": None, "passkey": None}

    def of(self, name: str, plan: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """One method, proved to act before it is measured."""
        from luthier.context.proof import prove

        base = self._load(plan)
        proof = prove(base, config)
        return {**self._one(name, base, self.rows), "effect": proof, "warnings": plan["warnings"]}

    def _one(self, name: str, base: Any, rows: list[np.ndarray], tasks: bool = True) -> dict[str, Any]:
        self.emit("context", method=name, documents=len(rows))
        losses = [self.room.token_losses(base, row) for row in rows]
        found: dict[str, Any] = {"name": name, "loss_by_bucket": self.room.by_bucket(losses, self.edges)}
        found["median_by_bucket"] = self.room.medians(losses, self.edges)
        found["loss"] = round(float(np.nanmean(np.concatenate(losses))), 4)
        if tasks:
            lengths = sorted({self.window, (self.window + self.length) // 2, self.length})
            grid = self.room.grid(base, self.text, lengths, trials=1, seed=self.seed)
            found |= {"passkey": grid["mean"], "passkey_grid": grid}
            self.floor = grid["floor"]
        return found


def write_tasks(model: str, length: int, text: str, folder: str | Path, count: int = 200, seed: int = 0) -> list[Path]:
    """long_train.jsonl and long_test.jsonl (a tenth) with every kind of long task, sized by the model's tokenizer."""
    import json

    from luthier.core import atomic
    from luthier.data import longtasks
    from luthier.evaluate.window import counter
    from luthier.models.load import load_base
    from luthier.models.settings import ModelSettings

    base = load_base(ModelSettings(path=model))
    sizes, joined = counter(base), "\n".join(read_text(text))
    written = []
    splits: tuple[tuple[longtasks.Split, int], ...] = (("train", count), ("test", max(6, count // 10)))
    for split, number in splits:
        tasks = longtasks.make_many(longtasks.KINDS, joined, length - 32, sizes, number, split, seed)
        lines = [json.dumps({**task.as_row(), "kind": task.kind}, ensure_ascii=False) for task in tasks]
        path = Path(folder) / f"long_{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, "\n".join(lines) + "\n")
        written.append(path)
    return written


def of_run(adapted: Any, data: Any, run: Any, emit: Emit = silent) -> dict[str, Any] | None:
    """evaluation/window.json of a run with a longer window: loss by position, long tasks and attention, of the base as
    it is (where its positions reach so far), of the extended base untuned, and tuned; beside them the base that sees
    only its own window. None where there is no extension or nothing long to measure on."""
    from luthier.core import atomic
    from luthier.evaluate import window as room
    from luthier.models import attention
    from luthier.pipeline.finish import evaluation_split

    base, plan = adapted.base, adapted.base.context
    if not plan or adapted.task.has_head or base.kind != "decoder":
        return None
    old, new = int(plan["from"]), int(plan["to"]) - int(adapted.attached.virtual_tokens)
    rows = data.rows[evaluation_split(data)]
    ids = sorted((np.asarray(rows[i].input_ids)[:new] for i in range(len(rows))), key=len, reverse=True)[:OF_A_RUN]
    ids = [row for row in ids if len(row) > old]
    if not ids:
        return None
    edges = room.buckets(old, new)
    found: dict[str, Any] = {"plan": named_plan(plan), "window": old, "target": new, "documents": len(ids)}
    text = " ".join(base.tokenizer.decode(row, skip_special_tokens=True) for row in ids)
    for arm, inside in _arms(adapted):
        emit("stage", name=f"window: {arm}")
        with inside():
            found[arm] = room.by_bucket([room.token_losses(base, row, adapted) for row in ids], edges)
            found.setdefault("passkey", {})[arm] = _passkeys(adapted, text, [old, new])
            found.setdefault("tasks", {})[arm] = _tasks(adapted, text, new)
            found.setdefault("attention", {})[arm] = attention.inspect(adapted, ids[:2], old)
    with adapted.off(), _own_positions(base):
        found["own_window_only"] = room.by_bucket([room.truncated_losses(base, row, old) for row in ids], edges)
    for kind in ("passkey", "tasks", "attention"):
        found[kind] = {arm: value for arm, value in found[kind].items() if value} or None
    atomic.write_json(run.window, found)
    return found


def _arms(adapted: Any) -> list[tuple[str, Any]]:
    """What is measured on the same rows: (name, what to be inside of)."""
    from contextlib import ExitStack, nullcontext

    def as_it_is() -> Any:
        stack = ExitStack()
        stack.enter_context(adapted.off())
        stack.enter_context(_own_positions(adapted.base))
        return stack

    plan = adapted.base.context
    arms: list[tuple[str, Any]] = [("base", as_it_is)] if plan["family"] == "rope" else []
    if not plan.get("control"):  # whose untuned positions are the base's own
        arms.append(("untuned", adapted.off))
    return [*arms, ("tuned", nullcontext)]


def named_plan(plan: Mapping[str, Any]) -> str:
    """`yarn 512 → 2048`."""
    from luthier.context.plan import named

    return named(plan)


def _own_positions(base: Any) -> Any:
    """The positions of the base's own config, where they rotate."""
    from contextlib import nullcontext

    from luthier.context.proof import as_before
    from luthier.models.load import read_config

    return as_before(base, read_config(base.path)) if base.context["family"] == "rope" else nullcontext()


def _passkeys(adapted: Any, text: str, lengths: list[int]) -> dict[str, Any] | None:
    from luthier.evaluate import window as room

    try:
        return room.grid(adapted.base, text, lengths, trials=1, adapted=adapted)
    except DataError:  # the text has no two sentences, or the window is smaller than the task
        return None


def _tasks(adapted: Any, text: str, length: int) -> dict[str, Any] | None:
    from luthier.evaluate import window as room

    try:
        return dict(room.battery(adapted.base, text, length, TASKS_OF_A_KIND, adapted))
    except DataError:
        return None
