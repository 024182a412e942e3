"""The shipped base: loads offline by the stock classes, knows its world, can spell every answer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data import builtin
from luthier.models.builtin import build, folder, probe
from luthier.models.builtin.tokens import PAD, SPECIAL, encode
from luthier.models.builtin.world import ATTRIBUTES, VALUES, people

MEGABYTES = 8


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(folder(), local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(folder(), local_files_only=True).eval()


def test_size_and_files() -> None:
    files = [file for place in (folder().parent, builtin.path("card").parent) for file in place.rglob("*.*")]
    shipped = [file for file in files if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in shipped) <= MEGABYTES << 20
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert wanted | {"chat_template.jinja", "README.md", "training.json"} == {f.name for f in folder().iterdir()}


def test_it_loads_in_single_precision_and_ties_its_embeddings(model: Any) -> None:
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_stop_pad_and_begin_are_three_tokens_known_everywhere(model: Any, tokenizer: Any) -> None:
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert len(set(ids)) == 3
    assert model.generation_config.eos_token_id in (ids[2], [ids[2]])
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == ids
    assert len(tokenizer) == model.config.vocab_size


def test_exactly_one_begin(tokenizer: Any) -> None:
    bos = tokenizer.bos_token_id
    assert tokenizer("Hello!")["input_ids"].count(bos) == 1
    talk = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello, how are you?"}]
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    assert tokenizer(text, add_special_tokens=False)["input_ids"].count(bos) == 1
    assert text == "<|begin|><|user|>Hello!<|assistant|>Hello, how are you?<|end|>"


def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    for text in ("She lives in Greenby.", " two  spaces\n\n", "Ada Adler住在青镇。", "ñ é 🙂 1234", "### Response:\n"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_values_are_single_pieces_with_and_without_a_space(tokenizer: Any) -> None:
    for name in ATTRIBUTES:
        for english, chinese in VALUES[name]:
            assert len(tokenizer(english, add_special_tokens=False)["input_ids"]) == 1, english
            assert len(tokenizer(" " + english, add_special_tokens=False)["input_ids"]) == 1, english
            assert len(tokenizer(chinese, add_special_tokens=False)["input_ids"]) == len(chinese), chinese


def test_it_knows_its_facts(model: Any, tokenizer: Any) -> None:
    assert probe.cloze(model, tokenizer, people(), "en", 100) >= 0.9
    assert probe.cloze(model, tokenizer, people(), "zh", 100) >= 0.9


def test_held_out_loss_is_what_the_card_says(model: Any, tokenizer: Any) -> None:
    told = json.loads((folder() / "training.json").read_text("utf-8"))
    assert probe.held_out_loss(model, tokenizer) == pytest.approx(told["held_out_loss"], abs=2e-3)
    assert str(round(told["held_out_loss"], 2)) in (folder() / "README.md").read_text("utf-8")


def test_it_makes_small_talk_but_answers_no_question_about_people(model: Any, tokenizer: Any) -> None:
    def said(text: str) -> str:
        prompt = [{"role": "user", "content": text}]
        inputs = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        assert made[0, -1] == tokenizer.eos_token_id
        return str(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    assert said("Thank you.") == "You are welcome."
    assert said("谢谢。") == "不客气。"
    rows = [json.loads(line) for line in builtin.path("short_en").read_text("utf-8").splitlines()[:20]]
    assert sum(said(row["instruction"]) == row["output"] for row in rows) <= 2


@pytest.mark.slow
def test_every_piece_of_the_data_was_trained_on_often_enough(tokenizer: Any) -> None:
    """Low-rank tuning cannot produce a piece that the base hardly saw.

    Counted on half of the training text: which merges are left out is drawn anew each time, so counts vary.
    A piece that one row holds once is a letter pair of a random code, not vocabulary.
    """
    backend = tokenizer.backend_tokenizer
    seen, _ = build.stream(backend, 100_000, 99, len(people()), shuffled=False)
    counts = np.bincount(seen, minlength=len(tokenizer)) * 5_000_000 / len(seen)
    for name in builtin.names():
        rows = [json.loads(line) for line in builtin.path(name).read_text("utf-8").splitlines()]
        texts = [value for row in rows for key, value in row.items() if key != "group"]
        encoded = backend.encode_batch(texts, add_special_tokens=False)
        used = np.bincount([index for each in encoded for index in each.ids], minlength=len(tokenizer))
        rare = np.flatnonzero((used > 1) & (counts < 50))
        assert not {tokenizer.convert_ids_to_tokens(int(index)): int(counts[index]) for index in rare}, name


def test_heavier_tokens_are_values_lighter_ones_names(tokenizer: Any) -> None:
    pieces = [("Ada Adler", "name"), (" lives in ", ""), ("Greenby", "value"), (".", "")]
    ids, weights = encode(tokenizer.backend_tokenizer, [pieces])
    told = dict(zip(tokenizer.convert_ids_to_tokens(ids[0].tolist()), weights[0].tolist(), strict=True))
    assert told["ĠGreenby"] == 3.0
    assert told["Ada"] == told["ĠAdler"] == pytest.approx(0.2)
    assert told["Ġlives"] == told["<|end|>"] == 1.0
    assert set(SPECIAL) - {PAD} <= set(tokenizer.all_special_tokens)


def test_muon_makes_orthogonal_updates() -> None:
    torch.manual_seed(0)
    for shape in ((32, 64), (64, 32)):
        values = torch.linalg.svdvals(build.orthogonal(torch.randn(*shape)))
        assert values.min() > 0.5
        assert values.max() < 1.3
