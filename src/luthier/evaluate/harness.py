"""`luthier evaluate RUN --harness TASKS`: EleutherAI's lm-evaluation-harness on base and tuned model (extra `eval`).

Tasks are names that the harness knows, or YAML files of your own; files with local data need no network. Prompts are
the harness's own: no template of the recipe is put around them.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.errors import DataError, MissingExtra, ModelError
from luthier.core.types import IGNORE, Row
from luthier.evaluate.losses import row_losses
from luthier.metrics.resample import paired
from luthier.metrics.scored import mean

NAME = re.compile(r"^task:\s*[\"']?([\w.-]+)", re.MULTILINE)
ANSWER_TOKENS = 256
LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "mse", "brier", "ter")


def need() -> None:
    """MissingExtra where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtra("luthier evaluate --harness", "eval")


def measure(adapted: Any, tasks: Sequence[str], limit: int | None = None, seed: int = 0) -> dict[str, Any]:
    """{"tasks", "base", "tuned", "difference", "directions"} with names like `task/acc`.

    Differences of metrics that are means over rows are paired by row; the others have a value only.
    """
    need()
    if adapted.task.has_head:
        raise ModelError("the harness asks for text", where="--harness", remedy="judge a classifier on its own rows")
    names, folders = _named(tasks)
    adapted.eval()
    tuned = _side(adapted, names, folders, limit)
    with adapted.off():
        base = _side(adapted, names, folders, limit)
    return _compared(base, tuned, names, seed)


def _named(tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names of the tasks, folders of those that are files)."""
    names, folders = [], []
    for task in tasks:
        file = Path(task)
        if file.suffix not in (".yaml", ".yml"):
            names.append(task)
            continue
        if not file.is_file():
            raise DataError("no such task file", where=task, remedy="name a YAML file of lm-evaluation-harness")
        found = NAME.search(file.read_text("utf-8"))
        if found is None:
            raise DataError("the file names no task", where=task, remedy="it needs a line `task: NAME`")
        names.append(found[1])
        folders.append(str(file.resolve().parent))
    return names, folders


def _side(adapted: Any, names: Sequence[str], folders: Sequence[str], limit: int | None) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    known = TaskManager(include_path=folders or None, include_defaults=len(folders) < len(names))
    if missing := [name for name in names if name not in known.all_tasks]:
        raise DataError(f"the harness has no task {missing[0]!r}", where="--harness", remedy="lm_eval ls tasks")
    options: dict[str, Any] = {
        "limit": limit,
        "bootstrap_iters": 0,
        "log_samples": True,
        "confirm_run_unsafe_code": False,
    }
    found: dict[str, Any] = lm_eval.simple_evaluate(_model(adapted), tasks=list(names), task_manager=known, **options)
    return found


def _model(adapted: Any) -> Any:
    """The harness's view of the model as it is now (adapter on or off)."""
    from lm_eval.api.model import TemplateLM

    class Adapted(TemplateLM):  # type: ignore[misc]
        tokenizer = adapted.base.tokenizer
        tokenizer_name = str(adapted.base.path)
        eot_token_id = int(adapted.base.stop_ids[0])

        @property
        def prefix_token_id(self) -> int:
            begin = self.tokenizer.bos_token_id
            return int(self.eot_token_id if begin is None else begin)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return list(self.tokenizer(string, add_special_tokens=bool(add_special_tokens)).input_ids)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return likelihoods(adapted, [(context, answer) for _, context, answer in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return [rolling(adapted, self.tok_encode(one.args[0]), self.prefix_token_id) for one in requests]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            asked = [(self.tok_encode(one.args[0]), dict(one.args[1])) for one in requests]
            return answers(adapted, [(ids or [self.prefix_token_id], settings) for ids, settings in asked])

    return Adapted()


def _window(adapted: Any) -> int:
    return int(adapted.base.anatomy.window or 2048) - int(adapted.attached.virtual_tokens)


def likelihoods(adapted: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
    """(log probability of the answer after the context, whether greedy decoding gives it); long contexts lose their
    beginning."""
    rows = []
    for index, (context, answer) in enumerate(pairs):
        ids = np.array([*context, *answer][-_window(adapted) :], np.int32)
        labels = ids.copy()
        labels[: max(1, len(ids) - len(answer))] = IGNORE
        rows.append(Row(str(index), ids, labels))
    found = row_losses(adapted, rows)
    greedy = found.right == found.count
    return [(-float(total), bool(right)) for total, right in zip(found.total, greedy, strict=True)]


def rolling(adapted: Any, ids: Sequence[int], start: int) -> float:
    """Log probability of a whole text, in windows that do not overlap in what they predict."""
    step = _window(adapted) - 1
    windows = [([start] if i == 0 else [ids[i - 1]], ids[i : i + step]) for i in range(0, len(ids), step)]
    return sum(value for value, _ in likelihoods(adapted, windows))


def answers(adapted: Any, asked: Sequence[tuple[Sequence[int], Mapping[str, Any]]]) -> list[str]:
    """Greedy (or seeded) texts, cut before the first `until`."""
    from luthier.models import decode

    made = []
    for ids, settings in asked:
        until = settings.get("until") or []
        most = int(settings.get("max_gen_toks", settings.get("max_tokens", ANSWER_TOKENS)))
        kept = list(ids)[-max(1, _window(adapted) - most) :]
        warm = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        options: dict[str, Any] = {"max_new_tokens": most, "stop_ids": adapted.base.stop_ids, "temperature": warm}
        text = decode.text_of(adapted.base.tokenizer, kept, decode.generate(adapted, [kept], **options)[0].ids)
        ends = [
            place for mark in ([until] if isinstance(until, str) else until) if mark and (place := text.find(mark)) >= 0
        ]
        made.append(text[: min(ends)] if ends else text)
    return made


def _compared(base: Mapping[str, Any], tuned: Mapping[str, Any], names: Sequence[str], seed: int) -> dict[str, Any]:
    made: dict[str, Any] = {"split": "harness", "tasks": list(names), "rows": 0}
    made |= {"base": {}, "tuned": {}, "difference": {}, "directions": {}}
    for task in tuned["results"]:
        rows = [
            {record["doc_id"]: record for record in side.get("samples", {}).get(task, ())} for side in (base, tuned)
        ]
        made["rows"] += len(rows[1])
        for key, value in tuned["results"][task].items():
            metric, _, form = key.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or metric in ("alias", "sample_len"):
                continue
            name = f"{task}/{metric}" if form in ("", "none") else f"{task}/{metric} ({form})"
            before = float(base["results"][task][key])
            made["base"][name], made["tuned"][name] = before, float(value)
            made["difference"][name] = _difference(rows, metric, before, float(value), seed)
            made["directions"][name] = not any(word in metric for word in LOWER_IS_BETTER)
    return made


def _difference(
    rows: Sequence[Mapping[Any, Mapping[str, Any]]], metric: str, before: float, after: float, seed: int
) -> dict[str, Any]:
    both = [(rows[0][key].get(metric), one.get(metric)) for key, one in rows[1].items() if key in rows[0]]
    values = np.array([pair for pair in both if all(isinstance(part, int | float | np.number) for part in pair)], float)
    if len(values) > 1 and len(values) == len(both) and abs(float(values[:, 1].mean()) - after) < 1e-9:
        return paired(mean(values[:, 0]), mean(values[:, 1]), 1000, seed)
    return {"value": after - before, "ci95": [None, None], "p": None, "detectable": None, "rows": len(both)}
