"""GGUF read back, Modelfile, launch line; what they cannot take is refused by name."""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from export_world import CLASSES, TEXTS, made, rows_for, trained

from luthier.core.errors import ModelError
from luthier.core.types import Turn
from luthier.export import gguf_vocabulary
from luthier.export.run import export

sys.path.insert(0, str(Path(__file__).parents[2] / "battery"))
LORA = {"name": "lora", "r": 4}


@pytest.fixture(scope="module")
def tuned():
    torch.set_num_threads(1)
    return trained(LORA)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gguf(tuned, dtype, tmp_path):
    gguf = pytest.importorskip("gguf")
    found = export(tuned, rows_for(tuned), tmp_path / "out", "gguf", dtype)
    assert found["tokenizer"]["way"] in gguf_vocabulary.WAYS
    assert not (tmp_path / "out" / ".merged").exists()
    reader = gguf.GGUFReader(str(tmp_path / "out" / "model.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["llama.embedding_length"] == 128
    assert fields["tokenizer.ggml.eos_token_id"] == tuned.base.stop_ids[0]
    assert fields["tokenizer.chat_template"] == tuned.base.tokenizer.chat_template
    assert fields["tokenizer.ggml.tokens"][5:] == [
        tuned.base.tokenizer.convert_ids_to_tokens(i) for i in range(5, 1938)
    ]
    if dtype == "float32":
        assert found["max_logit_difference"] <= 1e-5 * max(1, found["logit_size"])
        assert found["greedy"]["identical"] == 4
    else:
        assert found["top1_agreement"] >= 0.99


@pytest.mark.parametrize("count", [1, 3, 5])
def test_gguf_keeps_every_stop_token_it_can_hold(count, tmp_path):
    gguf = pytest.importorskip("gguf")
    adapted = made(LORA)
    adapted.base = dataclasses.replace(adapted.base, stop_ids=(2, 3, 4, 300, 301)[:count])
    found = export(adapted, rows_for(adapted), tmp_path / "out", "gguf")["stop_ids"]
    reader = gguf.GGUFReader(str(tmp_path / "out" / "model.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    stored = [fields.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    assert stored == ([2, None, None] if count == 1 else [2, 3, 4])
    assert found["held"] == [one for one in stored if one is not None]
    card = (tmp_path / "out" / "README.md").read_text()
    if count == 5:
        assert found["not_held"] == adapted.base.tokenizer.convert_ids_to_tokens([300, 301])
        assert "three stop tokens" in card
    else:
        assert "not_held" not in found
        assert "stop tokens" not in card


def test_gguf_names_what_it_cannot_hold(tmp_path):
    pytest.importorskip("gguf")
    from models import folder

    adapted = made(LORA, path=folder("gpt2"), template="plain")
    with pytest.raises(ModelError, match="GPT2LMHeadModel"):
        export(adapted, rows_for(adapted), tmp_path / "out", "gguf")
    adapted = made(LORA, path=folder("llama"), template="plain")
    with pytest.raises(ModelError, match="byte-level BPE"):
        export(adapted, rows_for(adapted), tmp_path / "out", "gguf")


@pytest.mark.parametrize("kind", ["gguf", "vllm", "ollama"])
def test_classification_is_refused_in_words(kind, tmp_path):
    adapted = made(LORA, "classify", CLASSES)
    with pytest.raises(ModelError, match="classification head"):
        export(adapted, rows_for(adapted), tmp_path / "out", kind)
    assert not list(tmp_path.iterdir())


def go(template, messages):
    """What ollama makes of our subset of Go's templates."""
    import re

    body, opening = re.fullmatch(r"{{- range \.Messages }}(.*){{- end }}{{- end }}(.*)", template, re.S).groups()
    parts = dict(re.findall(r'{{- (?:else )?if eq \.Role "(\w+)" }}(.*?)(?={{- else if|$)', body, re.S))

    def text(code, content):
        words = re.findall(r'{{ ("(?:[^"\\]|\\.)*"|\.Content) }}', code)
        return "".join(content if word == ".Content" else json.loads(word) for word in words)

    return "".join(text(parts[m["role"]], m["content"]) for m in messages) + text(opening, "")


@pytest.mark.parametrize("template", ["auto", "alpaca", "plain"])
def test_ollama(template, tmp_path):
    from luthier.export.ollama import modelfile

    adapted = made(LORA, template=template)
    text = modelfile(adapted)
    source = text.split('"""')[1]
    assert text.startswith("FROM ./model.gguf\n")
    assert 'PARAMETER stop "<|end|>"' in text
    talk = [("system", "Be brief."), ("user", 'Hi "you"'), ("assistant", "Yes"), ("user", "再来")]
    for said in (talk[1:2], talk[1:], talk):
        written = go(source, [{"role": role, "content": words} for role, words in said])
        ids = adapted.prompt_ids([Turn(*one) for one in said])
        assert [1, *adapted.base.tokenizer(written, add_special_tokens=False).input_ids] == ids


def test_ollama_folder(tuned, tmp_path):
    pytest.importorskip("gguf")
    export(tuned, rows_for(tuned), tmp_path / "out", "ollama")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"Modelfile", "README.md", "certificate.json", "model.gguf"}


def test_vllm(tuned, tmp_path):
    found = export(tuned, rows_for(tuned), tmp_path / "out", "vllm", "bfloat16")
    assert found["launch"] == (
        "vllm serve . --served-model-name tuned --dtype bfloat16 --max-model-len 512 --generation-config ."
        " --override-generation-config '{\"temperature\": 0}'"
    )
    command = json.loads((tmp_path / "out" / "launch.json").read_text())["command"]
    assert command == shlex.split(found["launch"])
    assert json.loads(command[-1]) == {"temperature": 0}
    assert f"```bash\n{found['launch']}\n```" in (tmp_path / "out" / "README.md").read_text()
    stop = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert stop == list(tuned.base.stop_ids)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": TEXTS[0][0]}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert ids == tuned.prompt_ids(TEXTS[0][0])


def test_vllm_refuses_narrow_heads(tmp_path):
    from models import folder

    adapted = made(LORA, path=folder("llama"), template="plain")
    with pytest.raises(ModelError, match="heads of width 8"):
        export(adapted, rows_for(adapted), tmp_path / "out", "vllm")
