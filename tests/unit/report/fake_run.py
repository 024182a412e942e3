"""A run directory as the contract describes it, made of plain numbers: what the report and the verbs read."""

import json
import math
import random
from pathlib import Path

from luthier.core.rundir import RunDir

RECIPE = """\
model: {path: builtin, dtype: auto}
task: instruct
data:
  train: data/train.json
  max_length: 128
  split: {validation: 0.1, test: 0.1, seed: 42}
augment: [{name: synonyms, share: 0.3}]
method: {name: lora, r: 8, alpha: 16, dropout: 0.05, targets: auto}
context: none
train: {epochs: 3, batch_tokens: 2048, lr: auto, schedule: {name: cosine, warmup: 0.1}}
evaluate: {metrics: auto}
report: {language: LANGUAGE}
seed: 42
"""
SAMPLES = [
    (
        "Where does Ada Brook live?",
        "Ada Brook lives in Port Elm.",
        "The the of a in was",
        "Ada Brook lives in Port Elm.",
    ),
    ("What does Tom Reed do?", "Tom Reed is a baker.", "Reed reed reed reed reed", "Tom Reed is a miller."),
    ("林小雨住在哪里?", "林小雨住在青石镇。", "的的的是在了", "林小雨住在青石镇。"),
]


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def write_lines(path: Path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def events(steps: int = 90, overfit: bool = False) -> list[dict]:
    """A training that falls, and a validation that follows it or turns back half way."""
    rng, out, time = random.Random(7), [], 1_700_000_000.0
    out.append(
        {"kind": "start", "time": time, "trainable": 49152, "total": 1_310_720, "share": 0.0375, "layout": "flat"}
    )
    out[-1] |= {"base_bytes": 5_242_880}
    out[-1]["rows"] = {"train": 880, "validation": 110, "test": 110}
    out.append({"kind": "validate", "time": time, "step": 0, "epoch": 0, "loss": 3.21, "perplexity": math.exp(3.21)})
    for step in range(1, steps + 1):
        time += 0.4
        loss = 0.6 + 2.6 * math.exp(-step / 18) + rng.gauss(0, 0.08) - (0.005 * step if overfit else 0)
        point = {"kind": "train", "time": time, "step": step, "epoch": (step - 1) // 30, "loss": loss, "lr": 1e-3}
        point |= {"grad_norm": 0.8, "supervised_tokens": 400, "tokens": 2000, "seconds": 0.38}
        out.append(point | {"tokens_per_s": 5263.0, "memory_mb": 612.0})
        if step % 10 == 0:
            held = 0.75 + 2.4 * math.exp(-step / 16) + (0.012 * max(0, step - 45) if overfit else 0)
            measured = {"loss": held, "perplexity": math.exp(held), "token_accuracy": 0.8}
            out.append({"kind": "validate", "time": time, "step": step, "epoch": (step - 1) // 30, **measured})
            out.append({"kind": "checkpoint", "time": time, "step": step})
    out.append(
        {"kind": "warning", "time": time, "what": "3 rows are cut", "where": "data.max_length", "remedy": "raise it"}
    )
    out.append(
        {"kind": "finished", "time": time, "reason": "done", "step": steps, "best_step": 50, "best_metric": 0.83}
    )
    return out


METRICS = {
    "split": "test",
    "rows": 110,
    "supervised_tokens": 1234,
    "base": {"loss": 3.214, "perplexity": 24.88, "token_accuracy": 0.31, "exact_match": 0.0, "stop_rate": 0.02},
    "tuned": {"loss": 0.812, "perplexity": 2.252, "token_accuracy": 0.82, "exact_match": 0.61, "stop_rate": 1.0},
    "difference": {
        "loss": {"value": -2.402, "ci95": [-2.51, -2.29], "p": 0.0002},
        "perplexity": {"value": -22.63, "ci95": [-25.1, -20.4], "p": 0.0002},
        "token_accuracy": {"value": 0.51, "ci95": [0.48, 0.54], "p": 0.0002},
        "exact_match": {"value": 0.61, "ci95": [0.52, 0.70], "p": 0.0002},
        "stop_rate": {"value": 0.01, "ci95": [-0.02, 0.04], "p": 0.6},
    },
    "noise_floor": {"loss": 1e-6},
    "slices": {
        "length": {
            "1 to 32 tokens": {
                "rows": 80,
                "base": 3.3,
                "tuned": 0.7,
                "difference": {"value": -2.6, "ci95": [-2.8, -2.4]},
            },
            "33 to 128 tokens": {
                "rows": 12,
                "base": 3.0,
                "tuned": 1.1,
                "difference": {"value": -1.9, "ci95": [-2.4, -1.2]},
            },
        }
    },
    "directions": {"loss": False, "perplexity": False, "token_accuracy": True, "exact_match": True, "stop_rate": None},
    "extremes": {
        "wins": [{"id": "train.json:7", "source": "train.json:7", "base_loss": 5.0, "tuned_loss": 0.1, "change": -4.9}],
        "losses": [],
        "hardest": [
            {"id": "train.json:9", "source": "train.json:9", "base_loss": 5.0, "tuned_loss": 4.1, "change": -0.9}
        ],
    },
    "guards": {"general.txt": {"rows": 40, "base": 2.5, "tuned": 2.52, "value": 0.02, "ci95": [-0.01, 0.05], "p": 0.2}},
}


def health(verdict: str = "ok") -> dict:
    """health.json with four diagnoses and six layers."""
    diagnoses = [
        {
            "name": "dead_adapter",
            "status": "ok",
            "value": 0.21,
            "threshold": 1e-4,
            "evidence": "strength 0.21",
            "advice": "",
        },
        {
            "name": "exploding",
            "status": "ok",
            "value": 0.08,
            "threshold": 0.5,
            "evidence": "‖ΔW‖/‖W‖ 0.08",
            "advice": "",
        },
        {
            "name": "never_stops",
            "status": verdict,
            "value": 0.4,
            "threshold": 0.8,
            "evidence": "40 % end",
            "advice": "train the stop token",
        },
    ]
    layers = [
        {
            "name": f"model.layers.{index}.self_attn.q_proj",
            "activation_entropy": 0.7 + 0.03 * index,
            "activation_rate": 0.9,
            "relative_strength": 0.05 * (index + 1),
            "weight_norm_ratio": 0.02 * (index + 1),
            "effective_rank": 7.5 - index,
            "gradient_norm": None if index == 3 else 0.1 / (index + 1),
        }
        for index in range(6)
    ]
    return {"verdict": verdict, "diagnoses": diagnoses, "layers": layers}


def _tokens(rows: int) -> dict:
    return {
        "rows": rows,
        "tokens": rows * 98,
        "trained_tokens": rows * 33,
        "lengths": {"min": 53, "median": 94.0, "mean": 98.0, "p95": 146.0, "max": 206},
        "histogram": [{"upto": 64, "rows": 2}, {"upto": 128, "rows": rows - 2}],
        "cut": {"prompt_cut": 3, "windows": 0, "dropped": 0, "tokens_cut": 0},
        "dropped": 0,
        "trained_per_row": {"min": 4, "median": 29.0},
        "without_trained": 0,
        "stop_trained": rows,
    }


MANIFEST = {
    "sources": [{"path": "data/train.json", "sha256": "ab" * 32, "rows": 1100, "format": "instruction"}],
    "read": 1100,
    "repaired": {"count": 2, "listed": []},
    "dropped": {"count": 1, "listed": []},
    "template": "alpaca",
    "split": {
        "seed": 42,
        "by": "group",
        "groups": 686,
        "ids": {"train": ["train.json:1"], "validation": [], "test": []},
    },
    "tokens": {"train": _tokens(880), "validation": _tokens(110), "test": _tokens(110)},
    "labels": {},
    "duplicates": {"inside": {"train": {"rows": 880, "exact": 4, "near": 9}}},
    "language": {"found": {"en": {"rows": 1000, "share": 0.91}, "zh": {"rows": 99, "share": 0.09}}},
}


def make(folder: Path, language: str = "en", overfit: bool = False, state: str = "finished") -> RunDir:
    """A whole, finished run."""
    run = RunDir(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run.resolved.write_text(RECIPE.replace("LANGUAGE", language), "utf-8")
    run.recipe.write_text(RECIPE.replace("LANGUAGE", language), "utf-8")
    write_json(run.status, {"state": state, "step": 90, "total_steps": 90, "heartbeat": 1.0, "exit_code": 0})
    write_json(run.environment, {"versions": {"luthier": "0.1.0", "torch": "2.13.0"}, "threads": 2, "seed": 42})
    write_json(run.manifest, MANIFEST)
    run.preview.write_text("### Instruction:\nWhere does Ada live?\n### Response:\n⟦Port Elm.⟧\n", "utf-8")
    write_lines(run.events, events(overfit=overfit))
    write_lines(run.rows, [{"step": 1, "epoch": 0, "rows": ["train.json:1"], "loss": [3.0], "tokens": [6]}])
    write_json(run.metrics, METRICS)
    parts = ("prompt", "reference", "base", "tuned")
    samples = [{"id": f"train.json:{i}", **dict(zip(parts, item, strict=True))} for i, item in enumerate(SAMPLES, 1)]
    samples[0]["tokens"] = [["Ada", 6.1, 0.2], [" Brook", 2.0, 0.1], [" lives", 4.4, 0.05], [" in Port Elm.", 7.9, 0.9]]
    write_lines(run.samples, samples)
    write_json(run.health, health())
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"0" * 200_000)
    return run
