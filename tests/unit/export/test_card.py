"""The model card of a real tiny run: data, metrics with intervals, health, licence, loading; English and escaped."""

import json
import re
import shutil
from contextlib import suppress

import pytest

import luthier as lu
from luthier.core.errors import GateFailed
from luthier.models.load import resolve
from luthier.pipeline import later

NAME = "rows|<img src=x>[a](b).json"
BASE = "base `|<b>&"
RECIPE = """
model: {path: "BASE"}
data: {train: "TRAIN", max_length: 64, split: {group: none}}
method: {name: lora, r: 2}
train: {steps: 12, batch_size: 8, lr: 5e-3, save_every: never, evaluate_every: never, threads: 1}
evaluate: {samples: {count: 1, max_new_tokens: 4}, generate_rows: 0, bootstrap: 100}
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    from luthier.data import builtin

    place = tmp_path_factory.mktemp("card")
    rows = [json.loads(line) for line in builtin.path("short_en").read_text("utf-8").splitlines()[:80]]
    kept = [{name: row[name] for name in ("instruction", "input", "output")} for row in rows]
    (place / NAME).write_text(json.dumps(kept, indent=1))
    shutil.copytree(resolve("builtin"), place / BASE)
    card = (place / BASE / "README.md").read_text("utf-8")
    (place / BASE / "README.md").write_text(card.replace("license: apache-2.0", "license: mine|\u202e<i>"), "utf-8")
    text = RECIPE.replace("BASE", str(place / BASE)).replace("TRAIN", str(place / NAME))
    with suppress(GateFailed):
        lu.run(lu.Recipe.parse(text), run_dir=place / "run")
    return place / "run"


@pytest.mark.parametrize("kind", ["adapter", "merged", "bundle"])
def test_the_card_tells_the_run(kind, tuned, tmp_path):
    later.export(tuned, tmp_path / "out", kind)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert f"library_name: {'peft' if kind == 'adapter' else 'transformers'}" in head
    assert f"base_model: {json.dumps(BASE)}" in head
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", body, re.S | re.M))
    manifest = json.loads((tuned / "data" / "manifest.json").read_text("utf-8"))["sources"][0]
    assert f"| {manifest['rows']} | `{manifest['sha256'][:12]}` |" in sections["Data"]
    metrics = json.loads((tuned / "evaluation" / "metrics.json").read_text("utf-8"))
    measured = sections[f"Measured on the {metrics['split']} split ({metrics['rows']} rows)"]
    low, high = metrics["difference"]["loss"]["ci95"]
    loss = [f"{metrics[side]['loss']:.4g}" for side in ("base", "tuned")]
    wanted = f"| loss | {loss[0]} | {loss[1]} | {metrics['difference']['loss']['value']:.4g} [{low:.4g}, {high:.4g}] |"
    assert wanted in measured
    assert low < high
    health = json.loads((tuned / "health.json").read_text("utf-8"))
    assert f"**{health['verdict']}**" in sections["Health"]
    for found in health["diagnoses"]:
        assert (f"- {found['name']}: " in sections["Health"]) == (found["status"] in ("warn", "fail"))
    assert "The base model's licence (mine" in sections["Licence"]
    how = {"adapter": "luthier.load(", "merged": "AutoModelForCausalLM.from_pretrained(", "bundle": "python answer.py"}
    assert how[kind] in sections["Loading"]
    assert '"name": "lora"' in sections["How it was made"]


def test_the_card_is_english_and_what_others_wrote_is_escaped(tuned, tmp_path):
    later.export(tuned, tmp_path / "out", "adapter")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert not re.search(r"[\u3040-\u30ff\u4e00-\u9fff\u202e]", card)
    body = card.removeprefix("---\n").partition("\n---\n")[2]
    prose = re.sub(r"```.*?```", "", body, flags=re.S)
    assert "<img" not in body
    assert "<b>" not in prose
    assert "<i>" not in prose
    assert "rows\\|&lt;img src=x>\\[a](b).json" in prose
    assert "`base '\\|&lt;b>&amp;`" in prose
    assert "mine\\|\\u202e&lt;i>" in prose
    table = [line for line in prose.split("\n") if "img src" in line]
    assert re.split(r"(?<!\\)\|", table[0])[1:-1] != []
    assert len(re.split(r"(?<!\\)\|", table[0])) == 5
