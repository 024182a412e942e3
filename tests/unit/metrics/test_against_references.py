"""Every metric against scikit-learn, scipy or sacrebleu, where those are right."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from sklearn import metrics as reference

from luthier.metrics import METRICS, classes

SOURCE = np.random.default_rng(7)
SHARES = SOURCE.dirichlet(np.ones(5), 300)
TRUTH = SOURCE.integers(0, 5, 300)
ENGLISH = (
    ["the cat sat on the mat", "hello there my friend", "", "a b c d e f"],
    ["the cat sat on a mat today", "hello my friend", "something", "a b c d e f"],
)
CHINESE = (["我喜欢吃苹果和香蕉", "今天天气很好"], ["我喜欢吃香蕉", "今天的天气不太好"])


@pytest.mark.parametrize("how", ["macro", "weighted"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_e2_precision_recall_f1_equal_scikit_learn(how, place):
    name = ("precision", "recall", "f1")[place]
    wanted = reference.precision_recall_fscore_support(TRUTH, SHARES.argmax(1), average=how)[place]
    assert METRICS.get(f"{name}_{how}")(SHARES, TRUTH).value == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("how", ["macro", "weighted"])
def test_e2_a_class_that_never_occurs_is_left_out_as_scikit_learn_does(how):
    shares, truth = np.eye(4)[[0, 1, 1, 0]], np.array([0, 1, 0, 0])
    wanted = reference.f1_score(truth, shares.argmax(1), average=how)
    assert METRICS.get(f"f1_{how}")(shares, truth).value == pytest.approx(wanted)


def test_e2_accuracy_mcc_and_confusion_equal_scikit_learn():
    called = SHARES.argmax(1)
    assert METRICS.get("accuracy")(SHARES, TRUTH).value == pytest.approx(reference.accuracy_score(TRUTH, called))
    assert METRICS.get("mcc")(SHARES, TRUTH).value == pytest.approx(reference.matthews_corrcoef(TRUTH, called))
    matrix = classes.confusion(SHARES, TRUTH, list("abcde"))["matrix"]
    assert matrix == reference.confusion_matrix(TRUTH, called).tolist()
    each = classes.per_class(SHARES, TRUTH, list("abcde"))
    wanted = reference.precision_recall_fscore_support(TRUTH, called)
    for index, name in enumerate("abcde"):
        found = [each[name][part] for part in ("precision", "recall", "f1", "rows")]
        assert found == pytest.approx([part[index] for part in wanted])


def test_mcc_of_one_class_is_zero_not_an_error():
    assert METRICS.get("mcc")(np.eye(2)[[0, 0]], np.array([0, 0])).value == 0.0


def test_auroc_with_ties_equals_scikit_learn():
    truth = SOURCE.integers(0, 2, 200)
    score = np.round(SOURCE.random(200), 1)
    shares = np.stack([1 - score, score], axis=1)
    assert METRICS.get("auroc")(shares, truth).value == pytest.approx(reference.roc_auc_score(truth, score))


def test_auroc_of_one_class_is_not_a_number():
    assert np.isnan(METRICS.get("auroc")(np.eye(2), np.array([1, 1])).value)


def test_ece_of_a_sure_and_right_model_is_zero_and_of_a_sure_and_wrong_one_is_one():
    assert METRICS.get("ece")(np.eye(2), np.array([0, 1])).value == 0.0
    assert METRICS.get("ece")(np.eye(2), np.array([1, 0])).value == 1.0


def test_m14_regression_metrics_equal_scipy():
    from scipy import stats

    x, y = SOURCE.normal(size=100), SOURCE.normal(size=100)
    assert METRICS.get("mse")(x, y).value == pytest.approx(reference.mean_squared_error(y, x))
    assert METRICS.get("pearson")(x + 1e6, y).value == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-6)
    assert METRICS.get("spearman")(np.round(x, 1), y).value == pytest.approx(stats.spearmanr(np.round(x, 1), y)[0])
    assert METRICS.get("pearson")(np.ones(5), np.arange(5)).value == 0.0


def test_multi_label_f1_equals_scikit_learn():
    truth = SOURCE.integers(0, 2, (60, 4))
    shares = SOURCE.random((60, 4))
    wanted = reference.f1_score(truth, shares > 0.5, average="macro", zero_division=0)
    assert METRICS.get("f1_macro")(shares, truth).value == pytest.approx(wanted)
    exact = reference.accuracy_score(truth, shares > 0.5)
    assert METRICS.get("accuracy")(shares, truth).value == pytest.approx(exact)


@pytest.mark.parametrize(("texts", "tokenizer"), [(ENGLISH, "13a"), (CHINESE, "zh")])
def test_bleu_equals_sacrebleus_corpus_score(texts, tokenizer):
    wanted = sacrebleu.corpus_bleu(texts[0], [texts[1]], tokenize=tokenizer).score
    assert METRICS.get("bleu")(*texts).value == pytest.approx(wanted)


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE])
def test_chrf_equals_sacrebleus_corpus_score(texts):
    assert METRICS.get("chrf")(*texts).value == pytest.approx(sacrebleu.corpus_chrf(texts[0], [texts[1]]).score)


def test_rouge_equals_the_definition_on_english():
    predicted, wanted = "the cat sat on the mat", "the cat lay on the mat today"
    assert METRICS.get("rouge1")([predicted], [wanted]).value == pytest.approx(2 * 5 / (6 + 7))
    assert METRICS.get("rouge2")([predicted], [wanted]).value == pytest.approx(2 * 3 / (5 + 6))
    assert METRICS.get("rougeL")([predicted], [wanted]).value == pytest.approx(2 * 5 / (6 + 7))
