"""Labels as text: scores against the plainest computation, in every layout; a run learns, and is measured as a
classifier against its zero-shot base."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import models as tiny
import numpy as np
import pytest
import torch

import luthier as lu
from luthier.adapted import attach
from luthier.core.errors import DataError, GateFailed, ModelError, RecipeError
from luthier.core.types import Example, Source, Turn
from luthier.data.encode import encode
from luthier.data.settings import DataSettings
from luthier.data.templates import TEMPLATES
from luthier.engine.batch import from_rows
from luthier.evaluate.losses import row_losses
from luthier.tasks import TASKS, label_text

LABELS = ("w5", "w6 w7", "w8 w9 w10")


def world(kind: str, layout: str, method: Any = "lora", **params: Any) -> tuple[Any, Any]:
    """An adapted model whose adapter acts, and three rows."""
    task = TASKS.parse({"name": "classify", "by": "likelihood", **params})
    base = tiny.base(kind)
    adapted = attach(base, method, task, TEMPLATES.parse("plain"), seed=0, labels=LABELS)
    with torch.no_grad():
        for weight in adapted.parameters_by_name().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    adapted.layout = layout
    texts = ("w20 w21 w22", " ".join(["w30"] * 20), " ".join(["w30"] * 20) + " w31")
    place = Source("t", 1)
    examples = [Example(str(i), (Turn("user", t),), place, LABELS[i]) for i, t in enumerate(texts)]
    options: dict[str, Any] = {"labels": LABELS, "stop_id": base.stop_ids[0], "spoken": task.spoken}
    settings = DataSettings(train="x", max_length=60)
    return adapted.eval(), encode(examples, adapted.template, base.tokenizer, settings, "classify", **options)


def slowly(adapted: Any, prompt: list[int], label: str) -> tuple[float, int]:
    """(log-likelihood of the label's tokens, their number), one token at a time through plain transformers."""
    ids = adapted.base.tokenizer(label, add_special_tokens=False).input_ids
    total, model = 0.0, adapted.base.model
    for at, token in enumerate(ids):
        with torch.no_grad():
            if adapted.base.kind == "encoder_decoder":
                start = model.config.decoder_start_token_id
                given = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[start, *ids[:at]]])}
            else:
                given = {"input_ids": torch.tensor([[*prompt, *ids[:at]]])}
            total += float(model(**given).logits[0, -1].double().log_softmax(-1)[token])
    return total, len(ids)


@pytest.mark.parametrize(
    ("kind", "layout"), [("llama", "flat"), ("llama", "padded"), ("gpt2", "padded"), ("t5", "padded")]
)
@pytest.mark.parametrize("normalize", ["none", "tokens"])
def test_scores_are_log_likelihoods(kind: str, layout: str, normalize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batched, with shared prompts, in one group or many: the sums that one forward for each token gives."""
    adapted, rows = world(kind, layout, normalize=normalize)
    batch = from_rows([rows[i] for i in range(3)])
    found, losses = label_text.scores(adapted, batch)
    for index in range(3):
        row = rows[index]
        prompt = row.input_ids[row.labels == -100].tolist()
        for number, label in enumerate(LABELS):
            total, size = slowly(adapted, prompt, label)
            assert found[index, number].item() == pytest.approx(
                total / (size if normalize == "tokens" else 1), abs=2e-4
            )
    assert losses.tolist() == pytest.approx(
        [float(adapted.token_nll(from_rows([rows[i]])).double().sum()) for i in range(3)], abs=2e-4
    )
    monkeypatch.setattr(label_text, "TOKENS", 8)
    assert torch.allclose(label_text.scores(adapted, batch)[0], found, atol=2e-4)
    assert adapted.base.shared_prefix is False


def test_virtual_tokens_stand_before_every_candidate() -> None:
    """A prefix, shared over the trie, gives the scores that each candidate has alone."""
    adapted, rows = world("llama", "flat", {"name": "prefix", "length": 3})
    batch = from_rows([rows[i] for i in range(3)])
    together = adapted.row_logits(batch)
    adapted.layout = "padded"
    alone = torch.cat([adapted.row_logits(from_rows([rows[i]])) for i in range(3)])
    assert torch.allclose(together, alone, atol=2e-4)
    with adapted.off():
        assert (adapted.row_logits(batch) - alone).abs().max() > 0.1


def test_one_loss_a_row_is_the_answers_own() -> None:
    """Training: − log p(label and its end), summed over a row's tokens, counted as one unit; evaluation the same."""
    adapted, rows = world("llama", "flat")
    made = adapted.loss(from_rows([rows[i] for i in range(3)]))
    assert made.count == 3
    assert made.row_counts.tolist() == [1.0, 1.0, 1.0]
    measured = row_losses(adapted, rows)
    assert measured.total.tolist() == pytest.approx(made.row_losses.tolist(), abs=2e-4)
    assert measured.logits is not None
    assert measured.logits.shape == (3, 3)
    assert measured.right.tolist() == [float(np.argmax(measured.logits[i]) == i) for i in range(3)]


def rows_file(folder: Path, labels: tuple[Any, ...] = LABELS) -> Path:
    """60 rows whose first word says the label."""
    lines = [{"text": f"w{40 + i % 3} w{i + 20}", "label": labels[i % 3]} for i in range(60)]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return file


def recipe(file: Path, kind: str = "llama", task: str = "by: likelihood", **train: Any) -> lu.Recipe:
    """A short training."""
    steps = train.get("steps", 60)
    return lu.Recipe.parse(f"""
model: {{path: {tiny.folder(kind)}}}
task: {{name: classify, {task}}}
data: {{train: {file}, max_length: 32, template: plain}}
method: {{name: lora, r: 8}}
train: {{steps: {steps}, batch_size: 12, threads: 1, lr: 1e-2, save_every: never, evaluate_every: 20}}
""")


def test_a_run_learns_the_labels_and_is_measured_as_a_classifier(tmp_path: Path) -> None:
    """Every classification metric, for the zero-shot base too; loaded again it scores the same."""
    with suppress(GateFailed):
        lu.run(recipe(rows_file(tmp_path)), run_dir=tmp_path / "run")
    found = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text("utf-8"))
    assert found["problem"] == "single"
    assert {"accuracy", "f1_macro", "mcc", "ece"} <= found["tuned"].keys() == found["base"].keys()
    assert found["tuned"]["accuracy"] == 1.0
    assert found["base"]["accuracy"] < 0.9
    assert set(found["per_class"]) >= set(LABELS)
    told = (tmp_path / "run" / "evaluation" / "predictions.jsonl").read_text("utf-8").splitlines()
    assert json.loads(told[0])["tuned"] in LABELS
    again = lu.load(tmp_path / "run")
    assert again.generate("w41 w50", max_new_tokens=5).strip() == "w6 w7"


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    """Encoders, several labels a row, values, and settings of the other kind."""
    with pytest.raises(ModelError, match="encoder"):
        lu.run(recipe(rows_file(tmp_path), "bert", steps=2), run_dir=tmp_path / "a")
    with pytest.raises(DataError, match="regression"):
        lu.run(recipe(rows_file(tmp_path, (1.5, 2.5, 3.25)), steps=2), run_dir=tmp_path / "b")
    for task in ("by: head, normalize: tokens", "by: likelihood, problem: multi"):
        with pytest.raises(RecipeError, match="by: "):
            recipe(rows_file(tmp_path), task=task)


def test_an_instruction_stands_before_every_text(tmp_path: Path) -> None:
    """The prompt is the instruction and the text; candidates stay the same."""
    plain, asked = world("llama", "flat")[1], world("llama", "flat", instruction="w90 w91")[1]
    before, after = plain[0].input_ids.tolist(), asked[0].input_ids.tolist()
    assert after != before
    assert 93 in after
    assert 94 in after
    assert after[-2:] == before[-2:]
