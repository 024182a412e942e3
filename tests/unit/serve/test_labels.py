"""/v1/classify reads a text exactly as a row of training and evaluation is read."""

import numpy as np
import pytest
import torch
from serving_world import CLASSES, made, running

from luthier.adapted import load
from luthier.core.types import Example, Source, Turn
from luthier.data.encode import encode
from luthier.data.settings import DataSettings
from luthier.evaluate.scores import shares
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.serve import labels
from luthier.serve.labels import _entry, _logits

LONG = "Karl Ulrich plays chess on Mondays. " * 90 + "He never dances."


@pytest.fixture(scope="module")
def adapted(classifier):
    return load(classifier)


def test_long_texts_lose_their_middle_as_in_training(adapted):
    settings = DataSettings(max_length=adapted.max_length)
    example = Example("a", (Turn("user", LONG),), Source("f", 1), CLASSES[0])
    options = {"labels": CLASSES, "stop_id": adapted.base.stop_ids[0]}
    row = encode([example], adapted.template, adapted.base.tokenizer, settings, "classify", **options)[0]
    assert len(row.input_ids) == adapted.max_length
    ids = torch.tensor(row.input_ids.tolist())[None]
    with torch.no_grad():
        wanted = adapted.base.model(input_ids=ids).logits[0].double()
    assert torch.allclose(_logits(adapted, [LONG])[0], wanted, atol=1e-4)
    ends = adapted.base.tokenizer.decode(row.input_ids[-8:].tolist())
    assert "never dances." in ends


def test_many_texts_are_few_forwards_and_each_is_what_it_is_alone(adapted, monkeypatch):
    monkeypatch.setattr(labels, "TOKENS_AT_ONCE", 200)
    texts = [f"Boris Mann reads book {number}. " * (1 + number % 7) for number in range(40)]
    sizes, plain = [], type(adapted).row_logits

    def counted(self, batch):
        sizes.append((len(batch.row_ids), len(batch.input_ids)))
        return plain(self, batch)

    monkeypatch.setattr(type(adapted), "row_logits", counted)
    with torch.no_grad():
        together = _logits(adapted, texts)
        forwards = len(sizes)
        alone = [_logits(adapted, [text])[0] for text in texts]
    assert sum(rows for rows, _ in sizes[:forwards]) == 40
    assert forwards < 30
    assert all(tokens <= 200 or rows == 1 for rows, tokens in sizes)
    torch.testing.assert_close(torch.stack(together), torch.stack(alone), atol=1e-4, rtol=1e-4)
    assert len({tuple(one.tolist()) for one in alone}) == 40


def test_entries_read_logits_as_evaluation_does(adapted, monkeypatch):
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)

    class Losses:
        logits = np.array([[0.3, -1.0, 2.0]])

    single = _entry(adapted, logits)
    assert single["label"] == CLASSES[2]
    assert list(single["scores"].values()) == pytest.approx(shares(Losses, "single")[0])
    monkeypatch.setattr(adapted, "problem", "multi")
    several = _entry(adapted, logits)
    assert several["labels"] == [CLASSES[0], CLASSES[2]]
    assert list(several["scores"].values()) == pytest.approx(shares(Losses, "multi")[0])
    monkeypatch.setattr(adapted, "problem", "regression")
    assert _entry(adapted, logits) == {"value": pytest.approx(0.3)}


def test_a_library_s_task_and_a_name_with_a_colon(adapters, tmp_path):
    """Unloading takes the whole library, never the base, and never says that it took what it left."""
    from luthier.serve.registry import Registry
    from luthier.serve.schema import ApiError

    base = load_base(ModelSettings(path="builtin"))
    registry = Registry(base, "org:base")
    registry.load("lib", adapters.folders["library"])
    registry.load("org", adapters.folders["lora-b"])
    assert registry.names() == ["org:base", "lib:places", "lib:jobs", "org"]
    with pytest.raises(ApiError):
        registry.unload("lib:plac")
    registry.unload("org")
    registry.unload("lib")
    assert registry.names() == ["org:base"]


def test_messages_that_the_template_refuses_are_400(base, adapters, tmp_path):
    import httpx

    made(tmp_path, "odd", {"name": "lora", "r": 2})
    with running(base, {"odd": adapters.folders["lora-b"]}) as server:
        template = server.registry.get("odd").adapted.template
        source = (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}"
        )
        odd = type(template)(template.params.model_copy(update={"source": source + "{% endfor %}"}))
        object.__setattr__(server.registry.get("odd").adapted, "template", odd)
        for roles in (["system", "user"], ["tool"], ["assistant", "assistant"], ["developer"], ["user", "system"]):
            messages = [{"role": role, "content": "Hello"} for role in roles]
            body = {"model": "odd", "messages": messages, "max_tokens": 1}
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
            assert answer.status_code == (400 if {"system", "developer", "tool"} & set(roles) else 200), answer.text


def test_label_texts_are_scored_beside_running_answers(base, tmp_path):
    """A run without a head: /v1/classify gives the shares that evaluation reads, and chat goes on answering."""
    import httpx

    task = {"name": "classify", "by": "likelihood"}
    folder = made(tmp_path, "spoken", {"name": "lora", "r": 4}, task, CLASSES, 5)
    loaded = load(folder)
    wanted = torch.softmax(_logits(loaded, ["Boris Mann reads."])[0], dim=-1).tolist()
    assert max(wanted) - min(wanted) > 1e-3
    with running(base, {"spoken": folder}) as server:
        body = {"model": "spoken", "input": ["Boris Mann reads.", "Hello."]}
        answer = httpx.post(f"{server.url}/v1/classify", json=body, timeout=300).json()["data"]
        assert list(answer[0]["scores"].values()) == pytest.approx(wanted, abs=1e-4)
        body = {"model": "spoken", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300).status_code == 200


def test_a_library_of_classifiers_answers_with_the_task_s_prefix(tmp_path):
    """NAME:TASK: the second task's labels come from the second prefix."""
    method = {"name": "multitask_prefix", "length": 3, "tasks": ("one", "two")}
    adapted = load(made(tmp_path, "both", method, "classify", CLASSES, 6))
    first, second = (_logits(adapted, ["Boris Mann reads."], task)[0] for task in (0, 1))
    assert (first - second).abs().max() > 1e-3
