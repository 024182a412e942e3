"""A1-A7: augmentation adds, never replaces; touches inputs only; is seeded by row; works in both languages."""

import os
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.core.types import Example, Source, Turn
from luthier.data.augment import AUGMENTERS
from luthier.data.augmenting import augment

DATA = Path(os.environ.get("LUTHIER_DATA", Path(__file__).parents[4] / "shared" / "data"))
EN = "The small dog runs quickly over the green hill near 42 houses while <|im_end|> stays"
ZH = "今天的天气非常好，我们一起去公园散步吧，数字3.14不能变"


def examples():
    return [
        Example(f"r{i}", (Turn("user", text), Turn("assistant", "The answer 42 stays.")), Source("x", i), label="keep")
        for i, text in enumerate([EN, ZH] * 5)
    ]


def spec(name):
    if name == "synonyms":
        return {"name": name, "lexicon": str(LEXICON)}
    if name == "truncate":
        return {"name": name, "longer_than": 4}
    return {"name": name, "parts": ["swap", "delete"]} if name in ("one_of", "all_of") else name


@pytest.fixture(autouse=True, scope="module")
def lexicon(tmp_path_factory):
    global LEXICON
    LEXICON = tmp_path_factory.mktemp("lexicon") / "own.tsv"
    LEXICON.write_text("1\tn\tdog|hound\n2\ta\tsmall|little\n3\tn\t公园|花园\n")


@pytest.mark.parametrize("name", AUGMENTERS.names())
def test_a2_a5_originals_stay_answers_and_numbers_are_never_touched(name):
    before = examples()
    made = augment(before, [spec(name)], seed=1)
    assert made.examples[: len(before)] == before, "A5: rows are added, not replaced"
    children = made.examples[len(before) :]
    assert children
    parents = {example.id: example for example in before}
    for child in children:
        parent = parents[child.parent]
        assert child.turns[1] == parent.turns[1], "A2: the answer stays"
        assert child.label == parent.label
        assert child.turns[0].text != parent.turns[0].text
        if name != "truncate":
            assert "42" in child.turns[0].text or "3.14" in child.turns[0].text
            assert ("<|im_end|>" in child.turns[0].text) == ("<|im_end|>" in parent.turns[0].text)
    counts = next(iter(made.report["by"].values()))
    assert counts["made"] == len(children), "A4: what could not be changed is counted"


@pytest.mark.parametrize("name", AUGMENTERS.names())
def test_a3_randomness_belongs_to_the_row_not_to_the_order(name):
    forward = augment(examples(), [spec(name)], seed=1).examples
    backward = augment(examples()[::-1], [spec(name)], seed=1).examples
    assert {e.id: e.turns for e in forward} == {e.id: e.turns for e in backward}
    other = augment(examples(), [spec(name)], seed=2).examples
    assert {e.id: e.turns for e in forward} != {e.id: e.turns for e in other} or name == "synonyms"


def test_a1_chinese_words_have_synonyms_too():
    made = augment(examples()[1:2], [spec("synonyms")], seed=1).examples
    assert "花园" in made[1].turns[0].text


def test_a1_a_missing_lexicon_is_a_clear_error(monkeypatch):
    monkeypatch.delenv("LUTHIER_LEXICON", raising=False)
    with pytest.raises(DataError) as caught:
        augment(examples(), [{"name": "synonyms", "lexicon": "/absent"}], seed=1)
    assert "wordnet-base" in str(caught.value)


def test_a6_random_space_is_no_no_op():
    made = augment(examples()[:1], ["space"], seed=1).examples
    assert made[1].turns[0].text.replace(" ", "") == EN.replace(" ", "")
    assert made[1].turns[0].text != EN


def test_a7_short_texts_are_not_truncated():
    assert AUGMENTERS.parse("truncate").change("too short to cut", None) is None


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize("file", ["wordnet30_synonyms.tsv", "chinese_open_wordnet_cmn.tab"])
def test_a1_real_lexicons_are_read(file):
    from luthier.data.lexicon import synonyms

    found = synonyms(str(DATA / "lexical" / file))
    assert len(found) > 10_000
    assert "car" in found if file.startswith("wordnet") else "汽车" in found
