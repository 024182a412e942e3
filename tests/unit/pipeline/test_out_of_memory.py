"""Memory that runs out inside of a run: smaller parts, the same training, and the report says so."""

import json

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.events import read_jsonl
from luthier.models import segments
from luthier.pipeline import story
from luthier.recipe import Recipe
from luthier.train import step

RECIPE = """
data: {train: builtin, max_rows: 24, max_length: 128, split: {validation: 0.1, test: 0.1}}
method: {name: lora, r: 4, dropout: 0.0}
train: {steps: 3, batch_size: 6, optimizer: sgd, lr: 0.05, threads: 1, early_stop: null, evaluate_every: never}
evaluate: {samples: {count: 1, max_new_tokens: 2}, generate_rows: 0, bootstrap: 100}
"""


def outcome(folder):
    story.run(Recipe.parse(RECIPE), folder)
    events = list(read_jsonl(folder / "events.jsonl"))
    trained = [event for event in events if event["kind"] == "train"]
    told = [event["what"] for event in events if "out of memory" in str(event.get("what"))]
    return trained, told, load_file(folder / "adapter" / "adapter_model.safetensors")


def test_it_halves_until_it_fits_and_trains_the_same(tmp_path, monkeypatch):
    plain, nothing, wanted = outcome(tmp_path / "plain")
    assert not nothing
    attend, largest, sizes = segments.segment_attention, max(event["tokens"] for event in plain) // 3, []
    accumulate, inside = step._accumulate, []

    def accumulating(*given):
        inside.append(1)
        try:
            return accumulate(*given)
        finally:
            inside.pop()

    def short(query, *rest, **options):
        """An allocator that has room for a third of the largest batch; it gives up in the middle of a forward."""
        if inside:
            sizes.append(query.shape[1])
            if query.shape[1] > largest and len(sizes) % 2 == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return attend(query, *rest, **options)

    monkeypatch.setattr(step, "_accumulate", accumulating)
    monkeypatch.setattr(segments, "segment_attention", short)
    made, told, weights = outcome(tmp_path / "short")
    assert told[:2] == [f"out of memory: micro-batches are cut into {parts} parts" for parts in (2, 4)]
    assert min(sizes) < largest < max(sizes)
    assert [event["loss"] for event in made] == pytest.approx([event["loss"] for event in plain], abs=1e-6)
    assert [event["tokens"] for event in made] == [event["tokens"] for event in plain]
    for name, weight in wanted.items():
        assert torch.allclose(weights[name], weight, atol=1e-6)
    report = json.loads((tmp_path / "short" / "report" / "report.json").read_text("utf-8"))
    assert "out of memory: micro-batches are cut into 4 parts" in json.dumps(report)
