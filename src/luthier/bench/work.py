"""The work that every arm does: a base made from a config, rows, and a LoRA to start from. Nothing is downloaded.

folder/model/      config.json, model.safetensors, a small tokenizer (TRL asks for one)
folder/rows.json   [{"input_ids": […], "labels": […]}, …]
folder/start/      the adapter before training, PEFT's format
folder/probe/      the same with B away from zero: gradients are compared at it
folder/start-top/, folder/probe-top/    the same with adapters in the top two layers alone
folder/work.json   everything else that an arm must know
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.bench.shapes import SHAPES

LORA = {"name": "lora", "r": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}
TRAIN = {"lr": 1e-3, "rows_per_step": 16, "clip_norm": 1.0}
LONGEST, MEDIAN, SIGMA, UNTRAINED = 512, 81, 1.08, 0.22
"""Lengths of instruction data: log-normal, p90 about 320 tokens; the share that is prompt."""
PREDICTABLE = 0.7
"""Share of tokens that the one before them determines: something to learn."""
CHECKED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Quantiles of the lengths whose rows the arms are checked on."""
PROBE_SCALE = 0.02
"""Standard deviation of B at which gradients are compared: at its start B is zero, and so is every gradient of A."""


def make_rows(count: int, vocabulary: int, seed: int = 0, prefix: int = 0) -> list[dict[str, list[int]]]:
    """Rows with the lengths of instruction data over a learnable chain of tokens, after `prefix` common ones."""
    import numpy as np

    source = np.random.default_rng(seed)
    after = source.permutation(np.arange(3, vocabulary))
    lengths = np.clip(np.exp(source.normal(np.log(MEDIAN), SIGMA, count)), 8, LONGEST).astype(int)
    rows = []
    common = np.random.default_rng([seed, 1]).integers(3, vocabulary, prefix).tolist()
    for length in lengths:
        ids = source.integers(3, vocabulary, length)
        keep = source.random(length) < PREDICTABLE
        for place in range(1, length):
            if keep[place]:
                ids[place] = after[ids[place - 1] - 3]
        prompt = int(length * UNTRAINED)
        labels = [-100] * (prefix + prompt) + ids[prompt:].tolist()
        rows.append({"input_ids": common + ids.tolist(), "labels": labels})
    return rows


def read_rows(path: str, count: int, tokenizer: Any, stop: int) -> list[dict[str, list[int]]]:
    """The first rows of the user's file, in any format that luthier reads, as instructions of at most 512 tokens."""
    from luthier.core.errors import DataError
    from luthier.data import encode, load, templates
    from luthier.data.settings import DataSettings

    settings = DataSettings(train=path, max_length=LONGEST)
    examples = load.load(settings, "instruct").examples
    template = templates.choose("auto", tokenizer, "instruct")
    few = [examples[index] for index in range(min(count, len(examples)))]
    made = encode.encode(few, template, tokenizer, settings, "instruct", labels=None, stop_id=stop)
    rows = [
        {"input_ids": list(map(int, row.input_ids)), "labels": list(map(int, row.labels))}
        for row in (made[index] for index in range(len(made)))
    ]
    rows = [row for row in rows if any(label != -100 for label in row["labels"][1:])]
    if len(rows) < 2:
        raise DataError(f"{len(rows)} rows with trained tokens", where="--data", remedy="give at least two")
    return rows


def prepare(
    folder: Path,
    shape: str,
    count: int,
    seed: int = 0,
    *,
    data: str | None = None,
    prefix: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Write the work; returns work.json."""
    kind, options = SHAPES[shape]
    if data is None:
        tokenizer = _words()
        rows = make_rows(count, options["vocab_size"], seed, prefix)
    else:
        from luthier.models.load import load_base
        from luthier.models.settings import ModelSettings

        own = load_base(ModelSettings(device="cpu"))
        tokenizer = own.tokenizer
        options = {**options, "vocab_size": max(options["vocab_size"], len(tokenizer))}
        rows = read_rows(data, count, tokenizer, own.stop_ids[0])
    _save_model(folder / "model", kind, options, dtype, seed)
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.json").write_text(json.dumps(rows), "utf-8")
    base = _save_adapters(folder, seed)
    work = {
        **TRAIN,
        **{name: str(folder / name) for name in ("model", "start", "probe")},
        "rows": str(folder / "rows.json"),
        "shape": shape,
        "data": data or "generated",
        "prefix": prefix,
        "shared": shared(rows),
        "device": device,
        "dtype": dtype,
        **_facts(rows),
        "flops": flops(base, rows),
        "base_bytes": sum(weight.numel() * weight.element_size() for weight in base.model.parameters()),
        "lora": LORA,
    }
    (folder / "work.json").write_text(json.dumps(work), "utf-8")
    return work


def _facts(rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """Counts, and which rows the arms are checked on."""
    lengths = [len(row["input_ids"]) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    return {
        "count": len(rows),
        "tokens": sum(lengths),
        "supervised": sum(sum(label != -100 for label in row["labels"][1:]) for row in rows),
        "longest": max(LONGEST, *lengths),
        "checked": sorted({order[int(share * len(order))] for share in CHECKED}),
    }


def shared(rows: Sequence[dict[str, list[int]]]) -> int:
    """How many tokens all rows begin with."""
    ids = [row["input_ids"] for row in rows]
    same = 0
    for one, other in zip(min(ids), max(ids), strict=False):  # the outermost two differ where any two do
        if one != other:
            break
        same += 1
    return same


def _save_model(folder: Path, kind: str, options: dict[str, Any], dtype: str, seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from luthier.core.seeding import seed_everything

    seed_everything(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options), dtype=getattr(torch, dtype))
    model.save_pretrained(folder)


def _save_adapters(folder: Path, seed: int) -> Any:
    """Start and probe of both kinds; returns the base with adapters in all layers."""
    import torch

    from luthier.methods import METHODS

    for ending in ("-top", ""):
        base = base_of(folder / "model")
        top = [-2, -1] if len(base.anatomy.layers) > 2 else [-1]
        attached = METHODS.parse({**LORA, "layers": top} if ending else LORA).attach(base, seed)
        attached.save(folder / f"start{ending}")
        source = torch.Generator().manual_seed(seed + 1)
        kept = {name: weight.detach().clone() for name, weight in attached.parameters().items()}
        for name, weight in attached.parameters().items():
            if "lora_B" in name:
                weight.data = (torch.randn(weight.shape, generator=source) * PROBE_SCALE).to(weight)
        attached.save(folder / f"probe{ending}")
        for name, weight in attached.parameters().items():
            weight.data = kept[name]
    return base


def _words() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<end>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")


def base_of(folder: Path, device: str = "cpu") -> Any:
    """The base as luthier holds it, without a tokenizer that could read text."""
    from transformers import AutoModelForCausalLM

    from luthier.models import anatomy
    from luthier.models.base import Base

    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
    model.to(device).eval().requires_grad_(False)
    found = anatomy.of(model)
    nothing: Any = None
    return Base(model, nothing, found, "decoder", folder, {"name": folder.name}, (2,), 1)


def flops(base: Any, rows: list[dict[str, list[int]]]) -> float:
    """Of one epoch with a frozen base: forward and input gradients of every product, no weight gradients.

    4 · (weights of the layers and the head) a token + 6 · 2 · hidden · n / 2 a layer for causal attention over n
    tokens + 6 · r · (in + out) a LoRA target.
    """
    facts = base.anatomy
    model = base.model
    names = [name for name, _ in model.named_modules()]
    linear = sum(
        module.base_layer.weight.numel() if hasattr(module, "base_layer") else module.weight.numel()
        for name, module in model.named_modules()
        if "lora_" not in name
        and not name.endswith("base_layer")
        and (hasattr(module, "base_layer") or type(module).__name__ == "Linear")
    )
    assert names, "a model without modules"
    adapters = sum(w.numel() for name, w in model.named_parameters() if "lora_" in name)
    tokens = sum(len(row["input_ids"]) for row in rows)
    squares = sum(len(row["input_ids"]) ** 2 for row in rows)
    layers = len(facts.layers)
    return float((4 * linear + 6 * adapters) * tokens + 6 * 2 * facts.hidden_size * layers * squares / 2)
