"""AdaptedModel: base + context + method + task + template, as one thing that trains, answers and is saved.

adapted = load("runs/…")                       # or load("some-peft-adapter", base="path")
adapted.generate("Where does Ada live?")
with adapted.off(): adapted.generate("…")      # the untouched base
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.context.plan import named, same_plan
from luthier.context.proof import positions_of
from luthier.core import atomic
from luthier.core.errors import ModelError
from luthier.core.rundir import RunDir
from luthier.core.types import Turn
from luthier.data.templates import TEMPLATES
from luthier.engine.batch import Batch
from luthier.methods import METHODS
from luthier.methods.base import Attached
from luthier.methods.targets import packing
from luthier.models import decode, forward, gate
from luthier.models.base import Base
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.tasks import TASKS, label_text
from luthier.train.loss import LossOutput

CARD = "luthier.json"
FORMAT = 1


@dataclass
class AdaptedModel:
    """What a run trains and every later verb uses. `layout` is how batches go through the model."""

    base: Base
    attached: Attached
    template: Any
    task: Any
    method: dict[str, Any]
    labels: tuple[str, ...] = ()
    problem: str = "single"
    max_length: int = 512
    layout: str = "padded"
    loss_options: dict[str, Any] = field(default_factory=dict)
    _off: bool = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.base.model.parameters()).device

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of a multi-task method's tasks, empty for all others."""
        return tuple(self.attached.tasks)

    def task_index(self, task: str | None) -> int:
        """Which task's prefix answers. ModelError where a name is missing or unknown."""
        if task in self.tasks:
            return self.tasks.index(task)
        if task is None and len(self.tasks) < 2:
            return 0
        what = "which task shall answer?" if task is None else f"there is no task {task!r}"
        raise ModelError(what, where="task", remedy=f"one of: {', '.join(self.tasks) or 'none here'}")

    def parameters_by_name(self) -> Mapping[str, nn.Parameter]:
        """Every trained weight."""
        return self.attached.parameters()

    def state(self) -> dict[str, Tensor]:
        """All that exact resume needs."""
        return self.attached.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.attached.load_state(state)

    def train(self, mode: bool = True) -> AdaptedModel:
        """Dropout on."""
        self.base.model.train(mode)
        switch = getattr(self.attached, "train", None)
        if callable(switch):
            switch(mode)
        return self

    def eval(self) -> AdaptedModel:
        """Dropout off."""
        return self.train(False)

    @contextmanager
    def off(self) -> Iterator[AdaptedModel]:
        """Inside: the untouched base."""
        before, self._off = self._off, True
        try:
            with self.attached.off():
                yield self
        finally:
            self._off = before

    def virtual(self, batch: Batch) -> forward.Virtual | None:
        """The method's virtual tokens for this batch; none while off."""
        return None if self._off else self.attached.virtual(batch)

    def loss(self, batch: Batch) -> LossOutput:
        """Summed training loss of a batch, differentiable."""
        batch = batch.to(self.device)
        return self.task.loss(self.base, batch, self.virtual(batch), self.layout, **self.loss_options)

    def hidden(self, batch: Batch) -> Tensor:
        """[T, hidden] states after the final norm, for the batch's flat tokens."""
        batch = batch.to(self.device)
        return forward.hidden(self.base, batch, self.virtual(batch), layout=self.layout)

    @torch.no_grad()
    def token_nll(self, batch: Batch) -> Tensor:
        """[T] negative log-likelihood of each target, 0 where nothing is trained."""
        batch = batch.to(self.device)
        return forward.token_nll(self.base, self.hidden(batch), batch.targets)

    @torch.no_grad()
    def row_logits(self, batch: Batch) -> Tensor:
        """[S, labels] of a classification head, or the scores of the labels' texts (log-likelihoods)."""
        if self.task.spoken:
            return label_text.scores(self, batch)[0]
        batch = batch.to(self.device)
        virtual = self.virtual(batch)
        hidden = forward.hidden(self.base, batch, virtual, layout=self.layout)
        return forward.row_logits(self.base, batch, hidden, virtual, self.layout)

    @cached_property
    def label_ids(self) -> list[list[int]]:
        """Tokens of every label's text and the stop token, where labels are answers."""
        return label_text.candidates(self)

    def prompt_ids(self, prompt: str | Sequence[Turn]) -> list[int]:
        """The very ids that a training row with this prompt begins with."""
        turns = (Turn("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
        return list(self.template.prompt_ids(turns, self.base.tokenizer))

    def generate(
        self,
        prompt: str | Sequence[Turn],
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        task: str | None = None,
    ) -> str:
        """One answer, greedy unless a temperature is given. `task` chooses among multi-task prefixes."""
        if self.task.has_head:
            raise ModelError("a classification model gives labels, not text", remedy="use classify()")
        self.eval()
        ids = self.prompt_ids(prompt)
        made = decode.generate(
            self,
            [ids],
            max_new_tokens=max_new_tokens,
            stop_ids=self.base.stop_ids,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            tasks=[0 if self._off else self.task_index(task)],
        )
        return decode.text_of(self.base.tokenizer, ids, made[0].ids)

    def save(self, folder: str | Path) -> None:
        """Write the adapter folder atomically: the method's own files, tokenizer, and luthier.json."""
        with atomic.publish_folder(Path(folder)) as staged:
            self.attached.save(staged)
            self.base.tokenizer.save_pretrained(staged)
            atomic.write_json(staged / CARD, self.card())

    def card(self) -> dict[str, Any]:
        """luthier.json: what loading needs beyond PEFT's own files, and the fingerprints it is refused by."""
        return {
            "format": FORMAT,
            "method": self.method,
            "peft_type": self.attached.peft_type,
            "task": {"name": self.task.name, **self.task.params.model_dump()},
            "template": {"name": self.template.name, **self.template.params.model_dump(mode="json")},
            "labels": list(self.labels),
            "problem": self.problem,
            "max_length": self.max_length,
            "base": {"path": str(self.base.path), "fingerprint": self.base.fingerprint, "quantize": packing(self.base)},
            "context": self.base.context,
            "positions": positions_of(self.base.model),
            "stop_ids": list(self.base.stop_ids),
            "virtual_tokens": self.attached.virtual_tokens,
        }

    def merge(self, folder: str | Path) -> None:
        """A standalone model folder: base and adapter folded together in float32. CannotMerge says why not."""
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            self.save(Path(scratch) / "adapter")
            fresh = load(Path(scratch) / "adapter", base=str(self.base.path), dtype="float32", quantize="none")
            fresh.attached.merge()
            with atomic.publish_folder(Path(folder)) as staged:
                fresh.base.model.save_pretrained(staged)
                fresh.base.tokenizer.save_pretrained(staged)


def attach(
    base: Base, method: str | Mapping[str, Any], task: Any, template: Any, *, seed: int, **facts: Any
) -> AdaptedModel:
    """Put a method on a base. The seed is set before any weight is made."""
    member = METHODS.parse(method)
    attached = member.attach(base, seed)
    spec = {"name": member.name, **member.params.model_dump(mode="json")}
    return AdaptedModel(base, attached, template, task, spec, **facts)


def load(
    source: str | Path | RunDir, base: str | None = None, *, trainable: bool = False, **model: Any
) -> AdaptedModel:
    """The adapted model of a run directory, of an adapter folder, or of a folder that another tool wrote.

    `base` names the base model (needed for folders without luthier.json); other keywords are `model:` settings
    (the base is quantised as it was in training, unless `quantize` says otherwise). ModelError when the base is
    not the one that the adapter was trained on.
    """
    folder = adapter_folder(source)
    card = read_card(folder)
    path = base or (card.get("base") or {}).get("path")
    if not path:
        raise ModelError(f"{folder} does not say its base model", where=str(folder), remedy="give base=… (--base)")
    task = TASKS.parse(card.get("task", "instruct"))
    packed = (card.get("base") or {}).get("quantize", "none")
    loaded = load_base(
        ModelSettings(**{"path": path, "quantize": packed, **model}),
        task=task.name,
        labels=(tuple(card.get("labels", ())) or None) if task.has_head else None,
        problem=card.get("problem", "single"),
        context=card.get("context") or None,
    )
    return load_onto(folder, loaded, trainable=trainable)


def load_onto(source: str | Path | RunDir, base: Base, *, trainable: bool = False) -> AdaptedModel:
    """Put a saved adapter on a base that is already in memory (and must be the right one)."""
    folder = adapter_folder(source)
    card = read_card(folder)
    _refuse_other_base(card, base, folder)
    _refuse_other_window(card, base, folder)
    task = TASKS.parse(card.get("task", "instruct"))
    attached, spec = _reload(card, folder, base, trainable)
    template = TEMPLATES.parse(card["template"]) if "template" in card else _default_template(base, task)
    adapted = AdaptedModel(
        base,
        attached,
        template,
        task,
        spec,
        tuple(card.get("labels", ())),
        card.get("problem", "single"),
        card.get("max_length", 512),
    )
    return adapted.eval()


def adapter_folder(source: str | Path | RunDir) -> Path:
    """The folder with the weights: of a run directory its `adapter/`."""
    folder = source.adapter if isinstance(source, RunDir) else Path(source)
    return folder / "adapter" if (folder / "adapter").is_dir() else folder


def _default_template(base: Base, task: Any) -> Any:
    from luthier.data.templates import choose

    return choose("auto", base.tokenizer, task.name)


def read_card(folder: Path) -> dict[str, Any]:
    """luthier.json of an adapter folder, empty where another tool wrote it."""
    if not folder.is_dir():
        raise ModelError(f"no adapter at {folder}", where=str(folder), remedy="name a run directory or adapter folder")
    card = gate.check_card(folder)
    if card and card.get("format") != FORMAT:
        raise ModelError(
            f"adapter format {card.get('format')} is not {FORMAT}", where=str(folder / CARD), remedy="update luthier"
        )
    return card


def _refuse_other_base(card: Mapping[str, Any], base: Base, folder: Path) -> None:
    wanted = (card.get("base") or {}).get("fingerprint") or {}
    for part in ("weights", "tokenizer"):
        if wanted.get(part) and base.fingerprint.get(part) != wanted[part]:
            raise ModelError(
                f"the {part} of {base.path} are not those that this adapter was trained on",
                where=str(folder),
                remedy=f"load it on {card['base'].get('path')}",
            )


def _refuse_other_window(card: Mapping[str, Any], base: Base, folder: Path) -> None:
    """The plan and the frequencies must be those of the training; an adapter without a plan knows no extension."""
    if not same_plan(card.get("context"), base.context):
        raise ModelError(
            f"this adapter was trained with {named(card.get('context'))}, the base is built with {named(base.context)}",
            where=str(folder),
            remedy="load it through its run or luthier.json, which hold the plan",
        )
    wanted = card.get("positions")
    if wanted and wanted != positions_of(base.model):
        raise ModelError(
            f"positions mean something else to {base.path} than to the base of the training",
            where=str(folder),
            remedy="restore rope_parameters and max_position_embeddings in the base's config.json",
        )


def _reload(card: Mapping[str, Any], folder: Path, base: Base, trainable: bool) -> tuple[Attached, dict[str, Any]]:
    from luthier.methods.reading import method_of_folder

    name = (card.get("method") or {}).get("name") or method_of_folder(folder)
    attached = METHODS.get(name).reload(folder, base, trainable)
    return attached, dict(card.get("method") or {"name": name})
