"""Texts of any language, numbers, JSON, endings; the traps of the widespread tools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.metrics import METRICS
from luthier.metrics.rougeL import common_subsequence
from luthier.metrics.words import normalized, words


def value(name, prediction, reference):
    return METRICS.get(name)([prediction], [reference]).value


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL", "exact_match", "qa_f1", "bleu", "chrf"])
@pytest.mark.parametrize(
    "text", ["今天天气很好，我们去公园吧。", "使用GPU训练大模型", "the cat sat on the mat", "日本語のテキスト"]
)
def test_e3_identical_texts_score_one_in_every_language(name, text):
    best = 100.0 if name in ("bleu", "chrf") else 1.0
    assert value(name, text, text) == pytest.approx(best)


def test_e3_a_shared_latin_word_does_not_make_different_chinese_texts_equal():
    assert value("rouge1", "使用GPU训练", "完全不同GPU") < 0.5
    assert value("rougeL", "使用GPU训练", "完全不同GPU") < 0.5


def test_words_of_mixed_text():
    assert words("使用GPU-4 训练_了, Don't") == ["使", "用", "gpu", "4", "训", "练", "了", "don", "t"]
    assert words("ＡＢＣ　１２３") == ["abc", "123"]


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [("The  Cat!", "cat"), ("《红楼梦》。", "红楼梦"), ("北京 大学", "北京大学"), ("a an the", ""), ("$5.00", "500")],
)
def test_squad_normalisation(given_text, wanted):
    assert normalized(given_text) == wanted


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The answer is 18.", "9 * 2 = 18\n#### 18", 1.0),
        ("it costs $1,080.00", "#### 1080", 1.0),
        ("10-3", "#### 3", 1.0),
        ("it is -3", "#### -3", 1.0),
        ("答案是１８", "#### 18", 1.0),
        ("18 and then 19", "#### 18", 0.0),
        ("no number", "#### 18", 0.0),
        ("no number", "none here", 0.0),
        ("9" * 400, "#### " + "9" * 399, 0.0),
    ],
)
def test_number_match_as_gsm8k_scores(answer, reference, right):
    assert value("number_match", answer, reference) == right


def test_json_valid():
    texts = ['{"a": 1}', "```json\n[1, 2]\n```", "{a: 1}", "NaN", "[" * 100_000]
    assert METRICS.get("json_valid")(texts, texts).each.tolist() == [1, 1, 0, 0, 0]


def test_stop_rate_repetition_distinct_and_length_ratio():
    assert METRICS.get("stop_rate")(["stop", "length"], ["", ""]).value == 0.5
    loop = "a b c d " * 10
    assert value("repetition", loop, "") > 0.8
    assert value("repetition", "a b c d e f", "") == 0.0
    assert value("distinct2", loop, "") < 0.2
    assert value("distinct1", "a b c", "") == 1.0
    assert value("length_ratio", "a b c d", "a b") == 2.0
    assert METRICS.get("length_ratio").higher_is_better is None


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_longest_common_subsequence_equals_the_plain_table(left, right):
    table = np.zeros((len(left) + 1, len(right) + 1), int)
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
    assert (common_subsequence(left, right) if right else 0) == table[-1, -1]


@given(st.text(max_size=40), st.text(max_size=40))
def test_text_metrics_never_fail_and_stay_in_their_range(prediction, reference):
    for name in METRICS.names():
        metric = METRICS.get(name)
        if metric.kind == "text":
            found = value(name, prediction, reference)
            assert np.isfinite(found)
            assert found >= 0
