"""Encoding in blocks: the same rows as one by one, whole characters, a cache that is read and never trusted blindly."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from little_tokenizers import TOKENIZERS, byte_level

from luthier.core.errors import DataError
from luthier.core.types import IGNORE, Example, Source, Turn
from luthier.data import cutting, encode, encode_cache, load, read_sections
from luthier.data.encode import encode as encoded
from luthier.data.settings import DataSettings, SplitSettings
from luthier.data.templates import TEMPLATES

TOKENIZER = TOKENIZERS["bytes"]
WIDE = "中文𝛼é"


def example(n, question="what is this?", answer="a thing", **more):
    return Example(f"r{n}", (Turn("user", question), Turn("assistant", answer)), Source("x.json", n + 1), **more)


def rows_of(examples, task="instruct", template="alpaca", labels=None, cache=None, tokenizer=TOKENIZER, **options):
    return encoded(
        examples, TEMPLATES.parse(template), tokenizer, DataSettings(**options), task,
        labels=labels, stop_id=tokenizer.eos_token_id, cache=cache,
    )  # fmt: skip


def same(one, other):
    return len(one) == len(other) and all(
        (a.id, a.input_ids.tolist(), a.labels.tolist(), a.target, a.task)
        == (b.id, b.input_ids.tolist(), b.labels.tolist(), b.target, b.task)
        for a, b in zip(one, other, strict=True)
    )


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(f"ab \n{WIDE}", max_size=60), st.text(f"ab {WIDE}", min_size=1, max_size=30)), max_size=9
    ),
    st.integers(12, 90),
    st.integers(1, 4),
)
def test_blocks_give_the_rows_that_each_row_gives_alone(talks, length, block):
    examples = [example(n, question, answer) for n, (question, answer) in enumerate(talks)]
    alone = [row for one in examples for row in rows_of([one], max_length=length)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BATCH", block)
        together = rows_of(examples, max_length=length)
    assert same(list(together), alone)
    assert together.lengths.tolist() == [len(row.input_ids) for row in together]
    ids, labels, edges = together.flat(0, len(together))
    assert [ids[a:b].tolist() for a, b in pairwise(edges)] == [r.input_ids.tolist() for r in together]
    assert (labels != IGNORE).sum() == sum((row.labels != IGNORE).sum() for row in together)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=st.text("a 中文𝛼🎉é\n", min_size=40, max_size=120), length=st.integers(30, 60))
def test_d11_no_cut_goes_through_a_character(name, text, length):
    tokenizer = TOKENIZERS[name]
    made = rows_of([example(0, text, "ok")], max_length=length, tokenizer=tokenizer)
    for row in made:
        assert len(row.input_ids) <= length
        assert "\ufffd" not in tokenizer.decode(row.input_ids)
    document = Example("d", (Turn("text", text),), Source("x.txt", 1))
    pieces = rows_of([document], "language_model", "plain", tokenizer=tokenizer, max_length=max(8, length // 4))
    trained = [int(t) for row in pieces for t in row.labels[1:] if t != IGNORE]
    whole = rows_of([document], "language_model", "plain", tokenizer=tokenizer, max_length=4096)[0]
    assert trained == whole.input_ids[1:].tolist(), "no token is lost or trained twice"
    ends = [tokenizer.decode(row.input_ids[: len(row.input_ids)]) for row in pieces]
    assert not any("\ufffd" in end for end in ends)


def test_d11_the_template_and_short_texts_stay_the_longest_text_is_cut():
    turns = (Turn("system", "Be brief."), Turn("user", "Sum up.", "long " * 300), Turn("assistant", "ok"))
    made = rows_of([Example("r", turns, Source("x", 1))], max_length=120)
    text = TOKENIZER.decode(made[0].input_ids)
    assert len(made[0].input_ids) == 120
    for part in ("Be brief.", "Sum up.", "### Instruction:\n", "### Input:\n", "### Response:\nok"):
        assert part in text
    assert (
        made.cut["tokens_cut"]
        == len(rows_of([Example("r", turns, Source("x", 1))], max_length=9999)[0].input_ids) - 120
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(0, 200))
def test_lengths_are_levelled_from_the_top(lengths, total):
    found = cutting.levelled(lengths, min(total, sum(lengths)))
    if found is None:
        return
    assert sum(found) == min(total, sum(lengths))
    assert all(0 <= kept <= length for kept, length in zip(found, lengths, strict=True))
    cut = [kept for kept, length in zip(found, lengths, strict=True) if kept < length]
    if cut:
        assert max(cut) - min(cut) <= 1
        assert max(found) <= min(cut) + 1
        assert min(cut) >= cutting.LEAST


def test_d16_only_the_last_section_of_a_document_ends_with_the_stop_token(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {n} says the number {n * n} aloud." for n in range(1500)))
    sections = load.load(DataSettings(train=str(path)), "language_model").examples
    assert len(sections) > 3
    made = rows_of(sections, "language_model", "plain", max_length=100_000)
    stops = [row.input_ids[-1] == TOKENIZER.eos_token_id for row in made]
    assert stops == [False] * (len(sections) - 1) + [True]
    assert "".join(row.turns[0].text for row in sections) == path.read_text()
    assert read_sections.FEW > 1


def test_rows_without_trained_tokens_are_told_and_not_fed():
    silent = Example("s", (Turn("user", "q"), Turn("assistant", "a", train=False)), Source("x.json", 9))
    made = rows_of([example(0), silent, example(1)])
    assert [row.id for row in made] == ["r0", "r1"]
    assert made.dropped == [{"where": "x.json:9", "row": "s", "reason": "no token is trained", "untrained": True}]
    assert made.cut["untrained"] == 1


def test_targets_of_every_kind():
    def labelled(label):
        return [Example("r", (Turn("user", "text"),), Source("x", 1), label=label)]

    assert rows_of(labelled("b"), "classify", "plain", ("a", "b"))[0].target == 1
    assert rows_of(labelled(("b",)), "classify", "plain", ("a", "b", "c"))[0].target == (0, 1, 0)
    assert rows_of(labelled(2.5), "classify", "plain", ("value",))[0].target == 2.5
    assert rows_of(labelled("2.5"), "classify", "plain", ("value",))[0].target == 2.5
    for label, labels in (("x", ("value",)), ("c", ("a", "b"))):
        with pytest.raises(DataError, match=r"no number|not among"):
            rows_of(labelled(label), "classify", "plain", labels)


def test_numbers_with_fractions_in_a_table_are_values(tmp_path):
    path = tmp_path / "scores.csv"
    rows = ["text,label", *(f"text number {n},{n / 4}" for n in range(40))]
    path.write_text("\n".join(rows))
    split = SplitSettings()
    found = load.load(DataSettings(train=str(path), split=split), "classify").examples
    assert [row.label for row in found] == [n / 4 for n in range(40)]
    path.write_text("\n".join(["text,label", *(f"text number {n},{n % 3}" for n in range(40))]))
    found = load.load(DataSettings(train=str(path)), "classify").examples
    assert {row.label for row in found} == {"0", "1", "2"}, "whole numbers are classes"
    lines = tmp_path / "versions.jsonl"
    lines.write_text("\n".join(json.dumps({"text": f"t {n}", "label": f"1.{n % 3 + 1}"}) for n in range(40)))
    found = load.load(DataSettings(train=str(lines)), "classify").examples
    assert {row.label for row in found} == {"1.1", "1.2", "1.3"}, "what JSON says is text is a class"


# ---- cache
def test_a_second_start_reads_the_cache_and_gets_the_same_rows(tmp_path, monkeypatch):
    examples = [example(n, f"question {n} {WIDE}", f"answer {n}") for n in range(50)]
    examples.append(example(50, "too long " * 900, "x " * 900))
    first = rows_of(examples, cache=tmp_path / "cache")
    assert same(first, rows_of(examples))
    assert isinstance(first.ids, np.memmap), "the arrays are mapped, not held"
    monkeypatch.setattr(encode._Encoder, "run", None)
    again = rows_of(examples, cache=tmp_path / "cache")
    assert same(first, again)
    assert (again.cut, again.dropped) == (first.cut, first.dropped)
    assert first.cut["dropped"] == 1
    names = {path.name for path in (tmp_path / "cache").rglob("*.*") if path.is_file()}
    assert names == {"ids.npy", "trained.npy", "bounds.npy", "tasks.npy", "names.arrow", "rows.json"}


def test_the_key_hangs_on_all_that_decides_the_rows(tmp_path):
    examples = [example(n, f"question {n}", "yes" if n % 2 else "no") for n in range(6)]
    other = byte_level()
    other.add_tokens(["question"])
    cache = tmp_path / "cache"
    variants = [
        lambda: rows_of(examples, cache=cache),
        lambda: rows_of(examples[::-1], cache=cache),
        lambda: rows_of(examples[:5], cache=cache),
        lambda: rows_of([*examples[:5], example(5, "question 5", "YES")], cache=cache),
        lambda: rows_of([*examples[:5], example(5, "question 5", "yes", task="t")], cache=cache),
        lambda: rows_of(examples, template="plain", cache=cache),
        lambda: rows_of(examples, max_length=64, cache=cache),
        lambda: rows_of(examples, truncate="drop", cache=cache),
        lambda: rows_of(examples, loss_on="everything", cache=cache),
        lambda: rows_of(examples, tokenizer=other, cache=cache),
        lambda: encoded(examples, TEMPLATES.parse("alpaca"), TOKENIZER, DataSettings(), "instruct",
                        labels=None, stop_id=0, cache=cache),
    ]  # fmt: skip
    for number, variant in enumerate(variants):
        variant()
        assert len(list(cache.iterdir())) == number + 1
    for variant in variants:
        variant()
    assert len(list(cache.iterdir())) == len(variants)


@pytest.mark.parametrize("file", ["ids.npy", "trained.npy", "names.arrow", "rows.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_cache_is_made_again(tmp_path, file, damage):
    examples = [example(n, f"question {n}") for n in range(9)]
    first = rows_of(examples, cache=tmp_path)
    wanted = [row.input_ids.tolist() for row in first]
    place = next(tmp_path.iterdir())
    data = bytearray((place / file).read_bytes())
    data[len(data) // 2] ^= 4
    if damage == "gone":
        (place / file).unlink()
    else:
        (place / file).write_bytes(data if damage == "flip" else data[:-3])
    assert [row.input_ids.tolist() for row in rows_of(examples, cache=tmp_path)] == wanted
    assert encode_cache.load(place) is not None, "the folder is whole again"


def test_no_room_for_the_cache_costs_only_the_cache(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode_cache.np, "save", full)
    examples = [example(n) for n in range(3)]
    assert same(rows_of(examples, cache=tmp_path / "c"), rows_of(examples))
    assert not list((tmp_path / "c").iterdir())


def test_classes_come_back_from_the_cache(tmp_path):
    rows = [Example(f"r{n}", (Turn("user", f"text {n}"),), Source("x", n), label="ab"[n % 2]) for n in range(6)]
    for _ in range(2):
        made = rows_of(rows, "classify", "plain", ("a", "b"), tmp_path)
        assert [row.target for row in made] == [0, 1, 0, 1, 0, 1]
        assert type(made[0].target) is int
    assert json.loads((next(tmp_path.iterdir()) / "rows.json").read_text())["version"] == encode_cache.VERSION
