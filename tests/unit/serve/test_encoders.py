"""Classification runs of encoders: no text, no slots; labels of several runs over one set of layers."""

import json
import shutil
import sys
from pathlib import Path

import httpx
import pytest
import torch
from serving_world import get, running

from luthier.adapted import attach, load
from luthier.cli import app as cli
from luthier.core.errors import ModelError
from luthier.data.templates import choose
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.serve import start
from luthier.serve.labels import _logits
from luthier.serve.registry import Registry
from luthier.tasks import TASKS

sys.path.insert(0, str(Path(__file__).parents[2] / "battery"))
import models as tiny

RUNS = {
    "colours": ({"name": "lora", "r": 4}, ("red", "green", "blue")),
    "moods": ({"name": "prefix", "length": 3}, ("glad", "sad")),
    "all": ({"name": "full"}, ("yes", "no")),
}
TEXTS = ["w5 w6 w7", "w30", "w8 w9 w10 w11 w12"]


def distilbert():
    """An encoder that has no class with a language model's head for transformers to build."""
    import transformers as t

    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": tiny.WINDOW}
    config = t.DistilBertConfig(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, **sizes, **tiny.SMALL)
    torch.manual_seed(3)
    return t.AutoModelForMaskedLM.from_config(config)


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def world(request, tmp_path_factory):
    """(folder of the base, name → adapter folder)."""
    root = tmp_path_factory.mktemp(request.param)
    path = tiny.folder("bert")
    if request.param == "distilbert":
        path = root / "model"
        distilbert().save_pretrained(path)
        tiny.tokenizer().save_pretrained(path)
    for number, (name, (method, labels)) in enumerate(RUNS.items()):
        task = TASKS.parse("classify")
        base = load_base(ModelSettings(path=str(path)), task="classify", labels=labels, seed=number)
        adapted = attach(base, method, task, choose("auto", base.tokenizer, "classify"), seed=number, labels=labels)
        source = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in adapted.parameters_by_name().values():
                weight.add_(torch.randn(weight.shape, generator=source) * 0.2)
        adapted.save(root / name)
    return path, {name: root / name for name in RUNS}


@pytest.fixture(scope="module")
def server(world):
    base = start.open_base(None, world[1], threads=1)
    build, way, reason = start.engine_for(base, 4)
    assert reason == ""
    with running(base, world[1], world[1]["moods"].parent, build=build, way=way) as found:
        yield found


def test_each_run_gives_the_probabilities_that_it_gives_alone(world, server):
    """Several labels, methods and heads side by side; full tuning of one leaves the layers of the others alone."""
    for name, (_, labels) in RUNS.items():
        alone = load(world[1][name])
        wanted = [torch.softmax(one, -1).tolist() for one in _logits(alone, TEXTS)]
        body = {"model": name, "input": TEXTS}
        for _ in range(2):
            found = httpx.post(f"{server.url}/v1/classify", json=body, timeout=300).json()["data"]
            assert [tuple(one["scores"]) for one in found] == [labels] * len(TEXTS)
            assert [list(one["scores"].values()) for one in found] == [pytest.approx(row, abs=1e-5) for row in wanted]
        assert max(abs(a - b) for a, b in zip(wanted[0], wanted[1], strict=True)) > 1e-3


def test_the_layers_are_in_memory_once(server):
    registry = server.registry
    query = next(
        name for name in dict(registry.base.anatomy.backbone.named_parameters()) if "ffn" in name or "key" in name
    )
    own = dict(registry.base.anatomy.backbone.named_parameters())[query].data_ptr()

    def place(name):
        return dict(registry.get(name).base.anatomy.backbone.named_parameters()).get(query)

    assert place("moods").data_ptr() == own
    assert place("all").data_ptr() != own  # its own layers were trained


def test_text_is_refused_and_says_where_labels_are(server):
    for model in ("base", "colours"):
        for path, asked in (
            ("completions", {"prompt": "w5"}),
            ("chat/completions", {"messages": [{"role": "user", "content": "w5"}]}),
        ):
            answer = httpx.post(f"{server.url}/v1/{path}", json={"model": model, **asked}, timeout=300)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_endpoint")
            assert "/v1/classify" in answer.json()["error"]["message"]
    answer = httpx.post(f"{server.url}/v1/classify", json={"model": "base", "input": "w5"}, timeout=300)
    assert answer.json()["error"]["code"] == "wrong_endpoint"


def test_the_other_routes_are_there(server):
    assert get(f"{server.url}/readyz").json() == {"ready": True}
    assert get(f"{server.url}/healthz").status_code == 200
    assert "luthier_free_slots 0" in get(f"{server.url}/metrics").text
    assert [one["id"] for one in get(f"{server.url}/v1/models").json()["data"]] == ["base", *RUNS]
    body = {"name": "again", "path": "moods"}
    assert httpx.post(f"{server.url}/v1/adapters", json=body, timeout=300).status_code == 200
    given = [httpx.post(f"{server.url}/v1/classify", json={"model": name, "input": "w9"}, timeout=300).json()["data"]
             for name in ("again", "moods")]  # fmt: skip
    assert given[0] == given[1]
    assert httpx.delete(f"{server.url}/v1/adapters/again", timeout=300).status_code == 200


def test_a_run_without_a_head_is_refused(world, server, tmp_path):
    card = world[1]["colours"] / "luthier.json"
    shutil.copytree(card.parent, tmp_path / "spoken")
    (tmp_path / "spoken" / "luthier.json").write_text(
        json.dumps({**json.loads(card.read_text()), "task": {"name": "instruct"}})
    )
    with pytest.raises(ModelError, match="labels only"):
        Registry(server.registry.base, "base").load("spoken", tmp_path / "spoken")


def test_the_command_serves_an_encoder(world, monkeypatch, capsys):
    """`luthier serve RUN` → a listener, told what it is good for."""
    from luthier.serve import app

    heard = []

    class Listener:
        def __init__(self, config):
            self.server = config.app.server

        def run(self, sockets):
            heard.extend(self.server.registry.names())
            sockets[0].close()
            self.server.worker.close(0)

    monkeypatch.setattr(app, "listener", Listener)
    folders = [f"{name}={folder}" for name, folder in world[1].items()]
    assert cli.outcome(["serve", *folders, "--port", "0", "--threads", "1"]) == 0
    assert heard == ["base", *RUNS]
    assert "POST /v1/classify" in capsys.readouterr().err
