"""The memo of words gives the very ids of the tokenizer, or is not used."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from little_tokenizers import TOKENIZERS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from luthier.data import known_words
from luthier.data.templates.base import Tokens, tokenize

LESSON = ["The cat's 12 words, and the dog 中文字符 doesn't!", "a\n\n b  c\t d é ё 99,000 it's we'll", "  x \n y "] * 9


def made(splitter, normalizer=None, extra=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LESSON, trainer)
    tokenizer.add_tokens(list(extra))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>")


def split_by(expression):
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
KINDS = {
    "gpt2": made(GPT2),
    "llama3": made(split_by(known_words.CL100K)),
    "qwen": made(split_by(known_words.QWEN), normalizers.NFC(), [AddedToken("<think>", normalized=False)]),
}
PIECES = ["the", " cat", "'s", " ", "  ", "\n", "\r\n", "\t", "12", " 345", "中文", "，", "é", "e\u0301", " \u0301",
          "\u00a0", "\u2028", "\x1c", "\x85", "</s>", "<think>", "!", " -", "it's", "x" * 60, "🎉", "I'LL",
          "\u3000"]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=14).map("".join)


def lists(flat, edges):
    return [flat[start : start + size].tolist() for start, size in edges.tolist()]


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())
@settings(max_examples=80, deadline=None)
@given(blocks=st.lists(st.lists(TEXTS, max_size=6), min_size=1, max_size=3))
def test_the_ids_are_the_tokenizers_own(tokenizer, blocks):
    tokens = Tokens(tokenizer)
    assert tokens._words is not None
    for texts in [LESSON, *blocks]:
        wanted = tokenize(tokenizer, texts, False)
        tokens.ready()
        assert lists(*tokens.finish(tokens.start(texts))) == wanted
    assert tokens._words is not None, "the comparison of the first block agreed"


@pytest.mark.parametrize(
    "tokenizer",
    [
        made(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        made(split_by(r"\w+ \w+|\s+")),
        made(pre_tokenizers.Metaspace()),
        made(GPT2, normalizers.Lowercase()),
        made(GPT2, extra=["New York"]),
        made(GPT2, extra=[AddedToken("<x>", lstrip=True)]),
    ],
    ids=["prefix space", "two words a part", "metaspace", "lower case", "a token with a space", "a token eats spaces"],
)
def test_other_tokenizers_are_left_alone(tokenizer):
    assert not known_words.fits(tokenizer.backend_tokenizer)
    assert Tokens(tokenizer)._words is None


def test_sentencepiece_is_left_alone():
    if "sentencepiece" not in TOKENIZERS:
        pytest.skip("LUTHIER_DATA names no folder with stories260K")
    assert not known_words.fits(TOKENIZERS["sentencepiece"].backend_tokenizer)


def test_a_tokenizer_that_disagrees_is_asked_itself(monkeypatch):
    monkeypatch.setattr(known_words, "fits", lambda backend: True)
    tokenizer = made(split_by(r"\w+ \w+|\s+"))
    tokens = Tokens(tokenizer)
    tokens.ready()
    found = lists(*tokens.finish(tokens.start(LESSON)))
    assert tokens._words is None
    assert found == tokenize(tokenizer, LESSON, False)


def test_words_are_tokenised_once_and_the_memo_is_bounded(monkeypatch):
    monkeypatch.setattr(known_words, "MOST_WORDS", 50)
    asked = []

    def encode(texts):
        asked.extend(texts)
        return [[ord(letter) for letter in text] for text in texts]

    words = known_words.KnownWords(encode, "\n", [10])
    words._compared = True
    for block in range(30):
        flat, edges, bad = words.ids([f"a{block} b{block} c c c", "y" * 99, "a0"])
        assert not bad
        said = ["".join(map(chr, ids)) for ids in lists(flat, edges)]
        assert said == [f"a{block} b{block} c c c", "y" * 99, "a0"]
        assert len(words._slots) <= 53
    assert asked.count(" c") == 2, "once, and once more after the memo was emptied"
    assert asked.count("\n" + "y" * 99) == 30, "long parts are not remembered"
