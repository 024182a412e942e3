"""Adapters that plain PEFT wrote are measured and diagnosed; lm-evaluation-harness is an extra."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from luthier.core.errors import CannotMerge, MissingExtra, ModelError, RecipeError
from luthier.evaluate import harness
from luthier.evaluate.losses import row_losses
from luthier.pipeline import foreign


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """Saved by peft alone, after its weights moved."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(world.folder)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    place = tmp_path_factory.mktemp("peft") / "adapter"
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def judged(world, folder, tmp_path_factory):
    source = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [[" ".join(f"w{i}" for i in source.integers(0, 16, 3)) for _ in range(2)] for _ in range(12)]
    file.write_text("".join(json.dumps({"instruction": a, "output": b}) + "\n" for a, b in texts))
    return foreign.bring(folder, str(world.folder), str(file), template="plain")


def test_a_peft_folder_is_an_adapter_and_a_run_is_not(folder, tmp_path):
    assert foreign.is_adapter(folder)
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "luthier.json").write_text("{}")
    assert not foreign.is_adapter(tmp_path)


def test_a_foreign_adapter_is_measured_like_ones_own(world, folder, judged):
    """The tuned loss equals that of peft's own model on the same tokens, to 1e-5."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    judged.recipe.evaluate.samples.__dict__["max_new_tokens"] = 4
    found = foreign.evaluate(judged)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.folder), folder).eval()
    total = count = 0.0
    for row in (judged.rows[i] for i in range(len(judged.rows))):
        ids, labels = (torch.tensor(part.astype(np.int64))[None] for part in (row.input_ids, row.labels))
        with torch.no_grad():
            logits = theirs(input_ids=ids).logits[:, :-1].double()
        total += float(torch.nn.functional.cross_entropy(logits[0], labels[0, 1:], reduction="sum"))
        count += float((labels[0, 1:] != -100).sum())
    assert found["tuned"]["loss"] == pytest.approx(total / count, abs=1e-5)
    assert abs(found["difference"]["loss"]["value"]) > 1e-3
    assert found["rows"] == 12


def test_a_foreign_adapter_is_diagnosed(judged):
    found = foreign.health(judged)
    assert {one["name"] for one in found["diagnoses"]} >= {"dead_adapter", "exploding", "rank_collapse"}
    dead = next(one for one in found["diagnoses"] if one["name"] == "dead_adapter")
    assert dead["status"] == "ok"
    assert dead["value"] > 1e-4


def test_without_rows_the_weights_are_looked_at(world, folder):
    found = foreign.health(foreign.bring(folder, str(world.folder), None))
    assert found["rows"] == 0
    assert all(layer["weight_norm_ratio"] > 0 for layer in found["layers"])


def test_what_is_missing_is_said(folder, tmp_path):
    with pytest.raises(RecipeError, match="which base"):
        foreign.bring(folder, None, None)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS"}))
    with pytest.raises(ModelError, match="which class is which"):
        foreign.bring(tmp_path, "x", None)


def test_without_the_harness_there_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        harness.need()
    assert "luthier[eval]" in str(caught.value.problems[0].remedy)


def test_e8_downstream_tasks_of_the_harness_get_the_same_losses(questions):
    """log p(answer | context) is minus the row's summed loss; a rolling text is the sum over its windows."""
    rows = [questions.rows[i] for i in range(4)]
    pairs = []
    for row in rows:
        cut = int(np.flatnonzero(row.labels != -100)[0])
        pairs.append((row.input_ids[:cut].tolist(), row.input_ids[cut:].tolist()))
    found = harness.likelihoods(questions.adapted, pairs)
    wanted = row_losses(questions.adapted, rows)
    assert [value for value, _ in found] == pytest.approx((-wanted.total).tolist(), abs=1e-4)
    assert [greedy for _, greedy in found] == (wanted.right == wanted.count).tolist()
    ids = [int(i) for i in np.random.default_rng(0).integers(7, 23, 100)]
    whole = harness.rolling(questions.adapted, ids, 1)
    assert whole < harness.rolling(questions.adapted, ids[:50], 1) < 0


def test_harness_results_are_paired_by_row():
    def side(values):
        samples = [{"doc_id": i, "acc": value} for i, value in enumerate(values)]
        return {"results": {"t": {"acc,none": float(np.mean(values)), "ppl,none": 2.0}}, "samples": {"t": samples}}

    found = harness._compared(side([0, 0, 1, 0]), side([1, 1, 1, 0]), ["t"], 0)
    assert found["difference"]["t/acc"]["value"] == 0.5
    assert found["difference"]["t/acc"]["ci95"][0] >= 0
    assert found["difference"]["t/ppl"]["ci95"] == [None, None]


def test_harness_answers_are_cut_before_the_first_stop(questions, monkeypatch):
    from luthier.models import decode

    monkeypatch.setattr(decode, "generate", lambda *a, **k: [SimpleNamespace(ids=[7])])
    monkeypatch.setattr(decode, "text_of", lambda *a: "yes. no\nmore")
    assert harness.answers(questions.adapted, [([7], {"until": ["\n", "."]}), ([7], {})]) == ["yes", "yes. no\nmore"]


def test_r5_a_saved_adapter_gives_the_same_logits_0(questions, world, tmp_path):
    from luthier.adapted import load

    questions.adapted.save(tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "luthier.json"} <= names
    again = load(tmp_path / "adapter", base=str(world.folder))
    here, there = (row_losses(model, questions.rows).total for model in (questions.adapted, again))
    assert np.abs(here - there).max() == 0.0


def test_r6_the_merged_model_is_the_adapted_one_to_1e_5_and_a_prefix_cannot_merge(questions, world, tmp_path):
    from transformers import AutoModelForCausalLM

    questions.adapted.merge(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    row = questions.rows[0]
    ids = torch.tensor(row.input_ids.astype(np.int64))[None]
    labels = torch.tensor(row.labels.astype(np.int64))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(merged(input_ids=ids).logits[0, :-1], labels[1:], reduction="sum")
    assert float(loss) == pytest.approx(float(row_losses(questions.adapted, [row]).total[0]), abs=1e-4)
    with pytest.raises(CannotMerge):
        world.fresh({"name": "prefix", "length": 2}, 0).merge(tmp_path / "no")
