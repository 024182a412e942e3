"""The inspection finds what was planted, shows no secret, and is readable JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from luthier.core.types import IGNORE, Example, Row, Source, Turn
from luthier.data import inspect, inspect_labels, inspect_preview, inspect_rows, inspect_texts, language, load, privacy
from luthier.data import split as splitting
from luthier.data.settings import DataSettings, SplitSettings


class Letters:
    """A tokenizer of one token a character; 0 pad, 1 BOS, 2 EOS, 3 unknown. Non-Latin characters take their bytes."""

    bos_token_id, eos_token_id, unk_token_id, pad_token_id = 1, 2, 3, 0
    all_special_ids = (0, 1, 2, 3)

    def _ids(self, text: str) -> list[int]:
        return [4 + byte for byte in text.encode("utf-8")]

    def __call__(self, texts, add_special_tokens=True, **_):
        head = [1] if add_special_tokens else []
        if isinstance(texts, str):
            return {"input_ids": head + self._ids(texts)}
        return {"input_ids": [head + self._ids(text) for text in texts]}

    def decode(self, ids, skip_special_tokens=False):
        names = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>"}
        out, run = "", bytearray()
        for number in ids:
            if number >= 4:
                run.append(number - 4)
            else:
                out += run.decode("utf-8", "replace") + names[number]
                run = bytearray()
        return out + run.decode("utf-8", "replace")


@dataclass
class Named:
    name: str = "alpaca"


def row_of(example: Example, bos: int = 1, stop: bool = True, masked: bool = False) -> Row:
    letters = Letters()
    prompt = [1] * bos + [i for turn in example.prompt for i in letters._ids(turn.text)]
    answer = letters._ids(example.reference) + ([2] if stop else [])
    labels = [IGNORE] * len(prompt) + ([IGNORE] * len(answer) if masked else answer)
    return Row(example.id, np.array(prompt + answer, np.int32), np.array(labels, np.int32))


def example(number: int, ask: str | None = None, answer: str | None = None, **more) -> Example:
    text = ask or " ".join(f"the w{number}x{place}" for place in range(6))
    turns = (Turn("user", text), Turn("assistant", answer or f"it is answer {number}"))
    return Example(f"rows:{number + 1}", turns, Source("rows.jsonl", number + 1), **more)


def inspected(rows, make=row_of, **options):
    loaded = load.examples_of(rows)
    sides = splitting.split(loaded, SplitSettings(), "instruct")
    made = {name: [make(row) for row in getattr(sides, name)] for name in splitting.SIDES}
    return inspect.inspect(loaded, sides, made, Letters(), Named(), DataSettings(**options))


def said(problems) -> str:
    return "\n".join(map(str, problems))


def test_good_rows_raise_nothing_and_the_manifest_is_json():
    found = inspected([example(n) for n in range(60)])
    assert found.problems == []
    assert found.warnings == []
    text = json.dumps(found.manifest, allow_nan=False)
    manifest = json.loads(text)
    facts = manifest["tokens"]["train"]
    assert facts["rows"] == facts["stop_trained"] == 48
    assert facts["bos"] == {"1": 48}
    assert facts["without_trained"] == 0
    assert sum(item["rows"] for item in facts["histogram"]) == 48
    assert facts["trained_tokens"] == sum(len(f"it is answer {row}") + 1 for row in answers_of(manifest))
    assert sum(map(len, manifest["split"]["ids"].values())) == 60
    assert manifest["language"]["found"]["en"]["share"] == 1.0


def answers_of(manifest):
    return [int(name.partition(":")[2]) - 1 for name in manifest["split"]["ids"]["train"]]


def test_A5_all_labels_masked_is_fatal():
    found = inspected([example(n) for n in range(60)], lambda row: row_of(row, masked=True))
    assert "48 of 48 rows have no trained token (100.0%)" in said(found.problems)


def test_A5_a_few_masked_rows_are_told_and_many_are_fatal():
    bad = {f"rows:{n + 1}" for n in range(2)}
    found = inspected(
        [example(n) for n in range(60)], lambda row: row_of(row, masked=row.id in bad), max_unsupervised=0.5
    )
    assert found.problems == []
    assert "rows have no trained token" in said(found.warnings)


def test_D8_a_stop_token_that_is_not_trained_is_fatal():
    found = inspected([example(n) for n in range(60)], lambda row: row_of(row, stop=False))
    assert "do not train the stop token" in said(found.problems)


def test_two_bos_are_fatal():
    found = inspected([example(n) for n in range(60)], lambda row: row_of(row, bos=2))
    assert "more than one BOS" in said(found.problems)


def test_the_preview_marks_the_trained_tokens_of_the_very_rows():
    rows = [row_of(example(n, ask="Wie heißt du? 你", answer="Ich heiße 小明")) for n in range(9)]
    text = inspect_preview.preview(rows, Letters(), seed=1)
    assert text.count("⟦Ich heiße 小明</s>⟧") == 3
    assert text.count("<s>Wie heißt du? 你⟦") == 3
    assert inspect_preview.preview(rows, Letters(), 1) == text
    assert "no training rows" in inspect_preview.preview([], Letters(), 1)
    long = inspect_preview.preview([row_of(example(0, ask="x" * 5000))], Letters(), 1)
    assert len(long) < 2000
    assert "characters …" in long


SECRETS = {
    "private key": "-----BEGIN RSA PRIVATE KEY-----",
    "access key": "AKIA" + "ABCDEFGH12345678",
    "api key": "sk-" + "abcdefghij0123456789ABCD",
    "access token": "ghp_" + "a1B2" * 9,
    "password": "password: hunter2secret",
    "e-mail": "jane.doe@mail.org",
    "identity number": "11010519491231002X",
    "card number": "4539 1488 0343 6467",
    "bank account": "DE89 3704 0044 0532 0130 00",
    "social security number": "078-05-1120",
    "phone number": "+49 170 1234 5678",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_what_looks_secret_is_found_and_never_shown_whole(kind):
    secret = SECRETS[kind]
    rows = [example(n) for n in range(30)] + [example(30, ask=f"Please keep {secret} for me, thanks a lot")]
    found = inspect_texts.scan([rows])
    assert kind in found.counts
    facts, warnings = inspect_texts.manifest(found, Letters())
    assert facts["findings"][kind]["listed"][0]["where"] == "rows.jsonl:31"
    everything = json.dumps(facts, ensure_ascii=False) + said(warnings)
    assert secret not in everything
    assert secret[3:] not in everything
    assert kind in said(warnings)


@pytest.mark.parametrize(
    "text",
    [
        "Write to user@example.com", "The year 2024-05-31 and 1234567", "3.14159265358979323846", "sk-learn is nice",
        "password: ", "what is my secret: nothing", "call 555", "1111 1111 1111 1111", "version 1.2.3.4",
    ],
)  # fmt: skip
def test_what_is_harmless_is_left_alone(text):
    assert privacy.find(text) == []


def test_texts_that_went_wrong_are_found():
    rows = [
        example(0, answer="None"),
        example(1, answer="['a', 'b']"),
        example(2, ask="A clichÃ© of the worst kind"),
        example(3, ask="I am {{name}}, made by {{author}}"),
        example(4, ask="half a \ufffd character"),
    ]
    counts = inspect_texts.scan([rows]).counts
    assert counts == Counter(
        {
            "answer that is no answer": 1,
            "answer that is a printed list": 1,
            "broken characters": 2,
            "unfilled placeholder": 1,
        }
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the capital of France and how many people live in it?", "en"),
        ("请把下面的句子翻译成英文，并解释其中的语法。", "zh"),
        ("请解释 Python 里的 list comprehension 是什么", "zh"),
        ("これは日本語の文章です。", "ja"),
        ("이것은 한국어 문장입니다.", "ko"),
        ("Это предложение на русском языке.", "ru"),
        ("Das ist nicht der richtige Weg für mich und dich.", "de"),
        ("12345 + 678 = ?", "other"),
    ],
)
def test_languages(text, expected):
    assert language.of_text(text) == expected


def test_R7_an_english_tokenizer_on_chinese_text_is_a_warning_with_the_number():
    rows = [
        example(n, ask="请解释下面的句子是什么意思，并给出例子。", answer="这个句子的意思是学习") for n in range(20)
    ]
    facts, warnings = inspect_texts.manifest(inspect_texts.scan([rows]), Letters())
    assert facts["language"]["found"]["zh"]["tokens_per_character"] > 2.5
    assert "tokens a character here, for English 1.00" in said(warnings)
    english = inspect_texts.manifest(inspect_texts.scan([[example(n) for n in range(20)]]), Letters())[1]
    assert english == []


def test_label_typos_uneven_and_single_classes():
    counts = Counter({"positive": 500, "negative": 480, "postive": 3, "Negative": 400, "neutral": 2})
    pairs = {(rare, common) for rare, _, common, _ in inspect_labels.typos(counts)}
    assert pairs == {("postive", "positive"), ("Negative", "negative")}
    problems, warnings = inspect_labels.judge(counts, {})
    assert problems == []
    assert "'postive' (3 rows) looks like 'positive' (500 rows)" in said(warnings)
    assert "uneven" in said(warnings)
    assert "only one class" in said(inspect_labels.judge(Counter({"a": 5}), {})[0])
    assert "stands in test" in said(inspect_labels.judge(Counter({"a": 5, "b": 5}), {"test": Counter({"c": 1})})[0])
    assert inspect_labels.typos(Counter({"card_1": 100, "card_2": 3, "cat": 90, "car": 2})) == []


def test_conflicting_labels_and_duplicates_are_listed_with_their_places():
    rows = [
        Example(f"r{n}", (Turn("user", f"the text {n} of w{n} x{n} y{n} z{n}"),), Source("f", n), "ab"[n % 2])
        for n in range(40)
    ]
    rows += [Example(f"d{n}", rows[n].turns, Source("f", 100 + n), "ba"[n % 2]) for n in range(3)]
    rows += [Example(f"e{n}", rows[10 + n].turns, Source("f", 200 + n), rows[10 + n].label) for n in range(4)]
    loaded = load.examples_of(rows)
    sides = splitting.split(loaded, SplitSettings(), "classify")
    made = {
        name: [Row(row.id, np.array([1, 5, 6]), np.full(3, IGNORE), 0) for row in getattr(sides, name)]
        for name in splitting.SIDES
    }
    found = inspect.inspect(loaded, sides, made, Letters(), Named("plain"), DataSettings())
    assert found.problems == []
    assert found.manifest["labels"]["conflicts"]["rows"] == 6
    assert "6 rows say the same under different labels" in said(found.warnings)
    inside = found.manifest["duplicates"]["inside"]
    assert sum(side["near"] for side in inside.values()) == 7
    assert sum(cluster["rows"] for cluster in found.manifest["duplicates"]["clusters"]) == 14


def test_rows_that_are_nearly_all_the_same_are_told():
    texts = [" ".join(f"kind{n % 4}word{place}" for place in range(12)) for n in range(80)]
    rows = [example(n, f"{text} number {n}", "yes") for n, text in enumerate(texts)]
    assert "training rows say nearly the same as another one" in said(inspected(rows).warnings)


def test_what_the_encoding_cut_and_dropped_is_told():
    class Cut(list):
        cut: ClassVar = {"prompt_cut": 5, "dropped": 2}
        dropped: ClassVar = [{"row": "a"}, {"row": "b"}]

    rows = [example(n) for n in range(60)]
    loaded = load.examples_of(rows)
    sides = splitting.split(loaded, SplitSettings(), "instruct")
    made = {name: Cut(row_of(row) for row in getattr(sides, name)) for name in splitting.SIDES}
    found = inspect.inspect(loaded, sides, made, Letters(), Named(), DataSettings())
    assert "2 of 50 rows do not fit 512 tokens" in said(found.warnings)
    assert "5 of 48 prompts are cut" in said(found.warnings)


def test_quantiles_and_histogram_count_every_row():
    lengths = np.array([1, 16, 17, 500, 9000])
    assert [item["rows"] for item in inspect_rows.histogram(lengths)].count(0) >= 1
    assert sum(item["rows"] for item in inspect_rows.histogram(lengths)) == 5
    assert inspect_rows.quantiles(lengths)["median"] == 17
