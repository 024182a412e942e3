"""E2, E4, E9: base beside tuned on the same rows and prompts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from luthier.core.errors import RecipeError
from luthier.evaluate.losses import row_losses
from luthier.evaluate.run import evaluate
from luthier.evaluate.settings import EvaluateSettings

SETTINGS = EvaluateSettings(samples={"count": 3, "max_new_tokens": 6}, generate_rows=8, bootstrap=100)


@pytest.fixture(scope="module")
def answered(questions):
    seen = {"training": questions.examples[:20], "seed": 1}
    return evaluate(questions.adapted, questions.rows, questions.examples, "instruct", SETTINGS, **seen)


@pytest.fixture(scope="module")
def classified(labelled):
    return evaluate(
        labelled.adapted, labelled.rows, labelled.examples, "classify", SETTINGS, labels=labelled.labels, seed=1
    )


def test_metrics_json_has_the_contracts_keys_and_is_json(answered, classified):
    for found in (answered.as_json(), classified.as_json()):
        keys = {"split", "rows", "supervised_tokens", "base", "tuned", "difference", "per_class", "confusion"}
        assert keys <= set(found)
        json.dumps(found, allow_nan=False)
        for name, value in found["difference"].items():
            assert len(value["ci95"]) == 2
            assert value["value"] == pytest.approx(found["tuned"][name] - found["base"][name], abs=1e-9)
            assert {"p", "detectable"} <= set(value)


def test_base_is_the_untouched_model_on_the_same_rows(questions, answered):
    with questions.adapted.off():
        base = row_losses(questions.adapted, questions.rows)
    assert answered.as_json()["base"]["loss"] == pytest.approx(base.loss, abs=1e-6)
    assert answered.as_json()["tuned"]["loss"] != pytest.approx(base.loss, abs=1e-3)


def test_noise_floor_of_the_losses_is_float_noise(answered):
    floor = answered.as_json()["noise_floor"]
    assert set(floor) == set(answered.as_json()["tuned"])
    assert floor["loss"] < 1e-5


def test_e9_the_same_seed_gives_the_same_numbers_and_texts(questions, answered):
    seen = {"training": questions.examples[:20], "seed": 1}
    again = evaluate(questions.adapted, questions.rows, questions.examples, "instruct", SETTINGS, **seen)
    assert again.as_json() == answered.as_json()
    assert again.samples == answered.samples


def test_e4_samples_show_base_tuned_and_reference_greedy_and_sampled(questions, answered):
    assert len(answered.samples) == 3
    by_id = {example.id: example for example in questions.examples}
    for sample in answered.samples:
        parts = {"prompt", "reference", "base", "tuned", "sampled", "base_sampled", "tuned_finish"}
        assert parts <= set(sample)
        assert sample["reference"] == by_id[sample["id"]].reference
        assert sample["prompt"] == by_id[sample["id"]].turns[0].text


def test_e4_the_answers_token_losses_are_coloured_with_text_and_two_numbers(answered):
    tokens = answered.samples[0]["tokens"]
    assert all(len(token) == 3 and token[0] for token in tokens)
    assert tokens[-1][0] == "</s>"


def test_e4_tokens_of_one_character_are_shown_together():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from luthier.evaluate.answers import _characters

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([], trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    ids = tokenizer("?a马维🎉b</s>").input_ids
    found = _characters(tokenizer, ids, list(range(len(ids) - 1)))
    texts = [tokenizer.decode(ids[part[0] + 1 : part[-1] + 2]) for part in found]
    assert texts == ["a", "马", "维", "🎉", "b", "</s>"]
    assert [place for part in found for place in part] == list(range(len(ids) - 1))
    assert len(_characters(tokenizer, ids[:4], [1, 2])) == 1, "a character that is cut off ends the list"


def test_e4_a_prompt_inside_the_answer_is_not_deleted(questions):
    """The documents' `text.replace(prompt, "")` deletes it; ids are cut here."""
    from luthier.models.decode import text_of

    tokenizer = questions.adapted.base.tokenizer
    prompt = tokenizer("w1 w2", add_special_tokens=False).input_ids
    assert text_of(tokenizer, prompt, [*prompt, prompt[0]]).split() == ["w1", "w2", "w1"]


def test_predictions_hold_every_row_and_its_answers(questions, answered):
    assert [record["id"] for record in answered.predictions] == [row.id for row in questions.rows]
    tokens = sum(record["tokens"] for record in answered.predictions)
    assert tokens == answered.as_json()["supervised_tokens"]
    total = sum(record["tokens"] * record["tuned_loss"] for record in answered.predictions)
    assert total / tokens == pytest.approx(answered.as_json()["tuned"]["loss"])
    assert sum("reference" in record for record in answered.predictions) == 8
    json.dumps(answered.predictions, allow_nan=False)


def test_slices_are_marked_small_and_cover_all_rows(answered):
    slices = answered.as_json()["slices"]
    assert set(slices) >= {"length", "source", "distance"}
    assert len(slices["distance"]) == 3
    for members in slices.values():
        assert sum(one["rows"] for one in members.values()) == 40
        assert all(one["small"] == (one["rows"] < 30) for one in members.values())


def test_wins_and_losses_are_named_with_their_source(answered):
    found = answered.as_json()["extremes"]
    assert found["better"] + found["worse"] <= 40
    assert all(item["change"] < 0 and item["source"] for item in found["wins"])
    assert all(" → " in item["text"] for item in [*found["wins"], *found["hardest"]])
    assert all(item["change"] > 0 for item in found["losses"])


def test_e2_classification_has_every_number_and_the_confusion_matrix(labelled, classified):
    found = classified.as_json()
    names = "accuracy precision_macro precision_weighted recall_macro recall_weighted f1_macro f1_weighted mcc ece"
    assert set(names.split()) <= set(found["tuned"])
    assert np.array(found["confusion"]["matrix"]).sum() == 36
    assert sum(one["rows"] for one in found["per_class"].values()) == 36
    called = [record["tuned"] for record in classified.predictions]
    right = np.mean([record["target"] == name for record, name in zip(classified.predictions, called, strict=True)])
    assert right == pytest.approx(found["tuned"]["accuracy"])
    assert classified.samples == []


def test_asked_metrics_only_and_the_first_is_the_headline(questions):
    settings = SETTINGS.model_copy(update={"metrics": ["rougeL", "stop_rate"]})
    found = evaluate(questions.adapted, questions.rows, questions.examples, "instruct", settings).as_json()
    assert set(found["tuned"]) == {"loss", "rougeL", "stop_rate"}
    assert found["primary"] == "rougeL"


def test_a_metric_that_does_not_fit_is_refused(questions):
    settings = SETTINGS.model_copy(update={"metrics": ["f1_macro"]})
    with pytest.raises(RecipeError, match="does not fit"):
        evaluate(questions.adapted, questions.rows, questions.examples, "instruct", settings)


def test_an_unknown_metric_has_a_suggestion(questions):
    settings = SETTINGS.model_copy(update={"metrics": ["rouge_l"]})
    with pytest.raises(RecipeError) as caught:
        evaluate(questions.adapted, questions.rows, questions.examples, "instruct", settings)
    assert "rouge" in str(caught.value)


def test_no_rows_give_an_empty_evaluation(questions):
    assert evaluate(questions.adapted, [], [], "instruct", SETTINGS).as_json()["rows"] == 0


def test_references_that_are_numbers_or_json_bring_their_metric():
    from luthier.evaluate.scores import text_metrics

    assert "number_match" in text_metrics(["x #### 5", "#### 6", "7"])
    assert "json_valid" in text_metrics(['{"a": 1}', "[1]"])
    assert not {"number_match", "json_valid"} & set(text_metrics(["some text", "more"]))
