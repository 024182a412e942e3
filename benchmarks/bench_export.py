"""Parity certificates of short real runs, and what every exporter says to every method.

    python benchmarks/bench_export.py [--steps 60] [--out benchmarks/results/export.json]

LoRA, DoRA and rsLoRA are trained on the built-in base and exported in float32, bfloat16 and float16 by the same call
as `luthier export`; each certificate compares held-out rows with the float32 adapted model. The second table holds
one cell for each method and kind: the largest logit difference in float32, or the refusal in its own words.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import luthier as lu
from luthier.adapted import attach
from luthier.core.errors import LuthierError
from luthier.core.types import IGNORE, Row, Turn
from luthier.data.templates import choose
from luthier.export.run import export
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.pipeline import later
from luthier.tasks import TASKS

CERTIFIED = {
    "LoRA": {"name": "lora", "r": 8},
    "DoRA": {"name": "lora", "r": 8, "dora": True},
    "rsLoRA": {"name": "lora", "r": 8, "rslora": True},
}
DTYPES = ("float32", "bfloat16", "float16")
METHODS: dict[str, Any] = {
    "lora": {"name": "lora", "r": 4},
    "ia3": "ia3",
    "last_layers": {"name": "last_layers", "count": 1},
    "full": "full",
    "bottleneck": {"name": "bottleneck", "reduction": 4},
    "prefix": {"name": "prefix", "length": 4},
    "prompt": {"name": "prompt", "length": 4},
    "p_tuning": {"name": "p_tuning", "length": 4, "hidden": 16},
    "dynamic_prefix": {"name": "dynamic_prefix", "length": 4, "hidden": 8},
    "multitask_prefix": {"name": "multitask_prefix", "length": 4, "tasks": ("a", "b")},
    "stack": {"name": "stack", "methods": ({"name": "lora", "r": 2}, {"name": "prefix", "length": 3})},
}
KINDS = ("adapter", "merged", "bundle", "gguf", "vllm", "ollama")
RECIPE = """
model: {path: builtin}
data: {train: "builtin:short_en", max_length: 96}
train: {batch_size: 8, lr: 2e-3, threads: 1, evaluate_every: 1000, save_every: 1000}
evaluate: {samples: {count: 0}}
"""


def certificates(steps: int, scratch: Path, save: Callable[[str, Any], None]) -> None:
    """One row for each method, kind and dtype; `save` gets them as they come."""
    rows: list[dict[str, Any]] = []
    for title, method in CERTIFIED.items():
        recipe = lu.Recipe.parse(RECIPE, f"train.steps={steps}", f"method={json.dumps(method)}")
        run = lu.run(recipe, scratch / title)
        for kind in ("merged", "gguf"):
            for dtype in DTYPES:
                told = _certified(run.dir.path, scratch / f"{title}-{kind}-{dtype}", kind, dtype)
                rows.append({"method": title, "kind": kind, "dtype": dtype, **told})
                print(json.dumps(rows[-1]), flush=True)
                save("certificates", rows)


def _certified(run: Path, folder: Path, kind: str, dtype: str) -> dict[str, Any]:
    """What the certificate says, or why nothing was published."""
    try:
        return _told(later.export(run, folder, kind, dtype))
    except LuthierError as error:
        return {"refused": error.what}


def _told(found: dict[str, Any]) -> dict[str, Any]:
    names = ("passed", "rows", "positions", "max_logit_difference", "mean_logit_difference", "logit_size",
             "top1_agreement", "perplexity", "greedy")  # fmt: skip
    return {name: found.get(name) for name in names}


def adapted_with(method: Any) -> Any:
    """The built-in base with this method, every trained weight moved."""
    base = load_base(ModelSettings(path="builtin"))
    made = attach(base, method, TASKS.parse("instruct"), choose("auto", base.tokenizer, "instruct"), seed=1)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters_by_name().values():
            weight.add_(torch.randn(weight.shape, generator=source) * 0.02)
    return made.eval()


def held_out(adapted: Any) -> list[Row]:
    """Two rows."""
    rows = []
    for number, (question, answer) in enumerate((("Where does Ada live?", "In London."), ("北京在哪里？", "在中国。"))):
        prompt = adapted.template.prompt_ids((Turn("user", question),), adapted.base.tokenizer)
        ids = prompt + adapted.base.tokenizer(answer, add_special_tokens=False).input_ids + [adapted.base.stop_ids[0]]
        labels = torch.tensor([IGNORE] * len(prompt) + ids[len(prompt) :]).numpy()
        rows.append(Row(f"r{number}", torch.tensor(ids).numpy(), labels))
    return rows


def outcome(adapted: Any, kind: str, folder: Path) -> str:
    """`exported` with the largest logit difference, or the refusal."""
    try:
        found = export(adapted, held_out(adapted), folder, kind)
    except LuthierError as error:
        return f"refused: {error.what}"
    return f"exported, {found['max_logit_difference']:.1e}"


def matrix(scratch: Path, save: Callable[[str, Any], None]) -> None:
    """method → kind → outcome."""
    found: dict[str, dict[str, str]] = {}
    for name, method in METHODS.items():
        found[name] = {kind: outcome(adapted_with(method), kind, scratch / name / kind) for kind in KINDS}
        print(name, json.dumps(found[name], ensure_ascii=False), flush=True)
        save("matrix", found)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"steps": options.steps, "torch": torch.__version__}
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def save(part: str, found: Any) -> None:
        report[part] = found
        options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")

    with tempfile.TemporaryDirectory() as place:
        certificates(options.steps, Path(place), save)
        matrix(Path(place), save)


if __name__ == "__main__":
    main()
