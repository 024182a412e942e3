"""Every kind of answer that a bundle's script gives, asked in another process: labels four ways, long texts, T5."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_world import CLASSES, TEXTS, made, rows_for

from luthier.adapted import attach
from luthier.core.errors import ModelError
from luthier.core.types import Example, Source, Turn
from luthier.data.encode import encode
from luthier.data.settings import DataSettings
from luthier.data.templates import choose
from luthier.engine.batch import from_rows
from luthier.export.run import export
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.tasks import TASKS

sys.path.insert(0, str(Path(__file__).parents[2] / "battery"))
from models import folder

LORA = {"name": "lora", "r": 4}
RUN = """
import json, runpy, sys
for script, text in json.loads(sys.argv[1]):
    sys.argv = [script, text]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print("exit", end.code)
"""


def run(*jobs):
    """What the scripts print, one line each, from one process; and stderr."""
    command = [sys.executable, "-c", RUN, json.dumps([[str(script), text] for script, text in jobs])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n").split("\n"), done.stderr


def labelled(task, labels, problem="single", path="builtin", scale=0.3):
    """A run with labels: with a head, or by the likelihood of their texts."""
    parsed = TASKS.parse(task)
    heads = labels if parsed.has_head else None
    base = load_base(ModelSettings(path=str(path)), task=parsed.name, labels=heads, problem=problem, seed=5)
    template = choose("auto", base.tokenizer, "instruct" if parsed.spoken else "classify")
    adapted = attach(base, LORA, parsed, template, seed=1, labels=tuple(labels), problem=problem)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in adapted.parameters_by_name().values():
            weight.add_(torch.randn(weight.shape, generator=source) * scale)
    return adapted.eval()


def encoded(adapted, texts, value):
    asked = [Example(str(at), (Turn("user", text),), Source("here", 0), value) for at, text in enumerate(texts)]
    options = {"labels": adapted.labels, "stop_id": adapted.base.stop_ids[0], "spoken": adapted.task.spoken}
    settings = DataSettings(train="here", max_length=min(adapted.max_length, adapted.base.anatomy.window))
    rows = encode(asked, adapted.template, adapted.base.tokenizer, settings, "classify", **options)
    return asked, [rows[at] for at in range(len(rows))]


KINDS = {
    "head": ("classify", CLASSES, "single", "chess"),
    "likelihood": ({"name": "classify", "by": "likelihood"}, CLASSES, "single", "chess"),
    "asked": (
        {"name": "classify", "by": "likelihood", "instruction": "Which hobby?", "normalize": "tokens"},
        CLASSES, "single", "chess",
    ),
    "multi": ("classify", CLASSES, "multi", ()),
    "value": ("classify", ("value",), "regression", 0.5),
}  # fmt: skip


def told(adapted, logits):
    """What the script must print."""
    if adapted.problem == "regression":
        return float(logits[0])
    if adapted.problem == "multi":
        return ", ".join(name for name, one in zip(adapted.labels, logits.tolist(), strict=True) if one >= 0)
    return adapted.labels[int(logits.argmax())]


def test_labels_four_ways(tmp_path):
    texts = [question for question, _ in TEXTS]
    jobs, wanted = [], []
    for name, (task, labels, problem, value) in KINDS.items():
        adapted = labelled(task, labels, problem, scale=0.3 if name in ("head", "multi") else 0.05)
        examples, rows = encoded(adapted, texts, value)
        found = export(adapted, rows, tmp_path / name, "bundle", examples=examples)
        assert found["prompts"]["equal_ids"] == found["prompts"]["compared"] == 4 + len(texts), name
        facts = json.loads((tmp_path / name / "prompt.json").read_text("utf-8"))
        assert (facts["has_head"], facts["problem"]) == (name in ("head", "multi", "value"), problem)
        scores = adapted.row_logits(from_rows(rows))
        jobs += [(tmp_path / name / "answer.py", text) for text in texts]
        wanted += [told(adapted, one) for one in scores]
    assert len({one for one in wanted if one in CLASSES}) > 1
    assert len(set(wanted[-12:-6])) > 1
    printed, _ = run(*jobs)
    assert len(printed) == len(wanted)
    for line, one in zip(printed, wanted, strict=True):
        if isinstance(one, float):
            assert float(line) == pytest.approx(one, rel=1e-4, abs=1e-5)
        else:
            assert line == one


def test_long_texts_and_both_sides(tmp_path):
    """GPT-2's and OPT's positions end: prompts beyond them are refused, texts to be labelled are cut; T5 answers."""
    writes = made(LORA, path=folder("opt"), template="plain")
    export(writes, rows_for(writes), tmp_path / "opt", "bundle")
    labels = labelled("classify", CLASSES, path=folder("gpt2"))
    long = " ".join(f"w{at % 90}" for at in range(100))
    examples, rows = encoded(labels, ["w3 w4 w5", long], "chess")
    assert len(rows[1].input_ids) == 64
    export(labels, rows[:1], tmp_path / "gpt2", "bundle", examples=examples[:1])
    speaks = made(LORA, path=folder("t5"), template="plain")
    found = export(speaks, rows_for(speaks), tmp_path / "t5", "bundle")
    assert found["max_logit_difference"] <= 1e-5 * max(1, found["logit_size"])
    assert found["greedy"]["identical"] == 4
    near = " ".join(f"w{at}" for at in range(1, 60))
    script = {name: tmp_path / name / "answer.py" for name in ("opt", "gpt2", "t5")}
    printed, errors = run(
        (script["opt"], long), (script["opt"], near), (script["gpt2"], long), (script["t5"], "w5 w6 w7")
    )
    scores = labels.row_logits(from_rows(rows))
    assert printed[0] == "exit 2"
    assert "tokens leave no room for an answer: the model takes 64" in errors
    assert "Traceback" not in errors
    assert 0 < len(printed[1].split()) <= 64 - 59
    assert printed[2] == CLASSES[int(scores[1].argmax())]
    assert printed[3] == speaks.generate("w5 w6 w7", 200).strip()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_encoder_decoder_merges(dtype, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    adapted = made(LORA, path=folder("t5"), template="plain")
    rows = rows_for(adapted)
    found = export(adapted, rows, tmp_path / "out", "merged", dtype)
    answers = sum(int((row.labels >= 0).sum()) for row in rows)
    assert found["positions"] == answers + len(rows)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype)).eval()
    row = rows[0]
    prompt = int(np.flatnonzero(row.labels >= 0)[0])
    sides = torch.tensor([row.input_ids[:prompt].tolist()]), torch.tensor([[0, *row.input_ids[prompt:-1].tolist()]])
    with torch.no_grad():
        plain = model(input_ids=sides[0], decoder_input_ids=sides[1]).logits[0].float()
        nll = torch.nn.functional.cross_entropy(plain, torch.tensor(row.input_ids[prompt:].tolist()).long())
    mine = adapted.token_nll(from_rows([row])).sum() / (len(row.input_ids) - prompt)
    assert float(nll) == pytest.approx(float(mine), rel=1e-5 if dtype == "float32" else 0.02)
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("kind", ["vllm", "gguf", "ollama"])
def test_an_encoder_decoder_is_refused_by_name(kind, tmp_path):
    adapted = made(LORA, path=folder("t5"), template="plain")
    with pytest.raises(ModelError, match="T5ForConditionalGeneration"):
        export(adapted, rows_for(adapted), tmp_path / "out", kind)
    assert not list(tmp_path.iterdir())


def test_virtual_tokens_of_an_encoder_decoder_are_refused(tmp_path):
    adapted = made({"name": "prompt", "length": 3}, path=folder("t5"), template="plain")
    with pytest.raises(ModelError, match="cannot be bundled"):
        export(adapted, rows_for(adapted), tmp_path / "out", "bundle")


COUNTING = (
    "{{ bos_token }}{% if messages|length > 2 %}<|pad|>{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def bundled(folder):
    from luthier.export.bundle import _script

    return _script(folder / "answer.py").Bundle(folder)


def test_documents_and_templates_that_look_at_the_whole_conversation(tmp_path):
    """Neither has a constant text around its turns; the script asks as training does all the same."""
    goes_on = made(LORA, "language_model")
    found = export(goes_on, rows_for(goes_on), tmp_path / "text", "bundle")
    assert found["prompts"] == {"compared": 4, "equal_ids": 4}
    counts = made(LORA, template={"name": "chat", "source": COUNTING})
    found = export(counts, rows_for(counts), tmp_path / "chat", "bundle")
    assert json.loads((tmp_path / "chat" / "prompt.json").read_text("utf-8"))["shape"] is None
    assert found["template"] == {"prompts": 6, "equal_ids": 6}
    talk = [("user", "Hi"), ("assistant", "Yes"), ("user", "And now?")]
    messages = [{"role": role, "content": text} for role, text in talk]
    ids = bundled(tmp_path / "chat").prompt_ids(messages)
    assert ids == counts.prompt_ids([Turn(*one) for one in talk])
    assert ids[:2] == [1, 0]
