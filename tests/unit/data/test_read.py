"""Readers: every kind of file, whatever the block bounds; places that are right; tables that are strict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.data import columns, load, read, read_bytes, read_json, read_sections, read_text
from luthier.data.settings import DataSettings, SourceSettings

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(
    st.dictionaries(st.text(min_size=1, max_size=6), VALUES, min_size=1, max_size=4), min_size=1, max_size=8
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LABEL = st.sampled_from([None, "x", 1.5, ("p", "q")])
GROUP = st.none() | st.text("gh", min_size=1, max_size=2)
CELL = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=12)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(read_bytes, "BLOCK", 7)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.sampled_from([None, 1, 2]), st.booleans())
def test_documents_and_lines_give_the_same_rows(tmp_path, rows, indent, ascii_only):
    document, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    document.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), "utf-8")
    lines.write_text("\r\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows), "utf-8", newline="")
    assert [item.value for item in read_json.read_document(document)] == rows
    found = list(read_json.read_lines(lines))
    assert [item.value for item in found] == rows
    assert [item.line for item in found] == list(range(1, len(rows) + 1))


def test_lines_of_elements_and_objects_that_hold_one_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{\n "version": "1",\n "rows": [\n  {"a": 1},\n\n  {"a": 2}\n ],\n "n": 2}')
    assert [(item.value["a"], item.line) for item in read_json.read_document(path)] == [(1, 4), (2, 6)]
    path.write_text('{"a": [{"x": 1}], "b": [{"x": 2}]}')
    with pytest.raises(DataError, match="two lists, 'a' and 'b'"):
        list(read_json.read_document(path))
    path.write_text('{"instruction": "a", "output": "b"}')
    assert len(list(read_json.read_document(path))) == 1
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert [item.line for item in read_json.read_document(path)] == [1, 2]


def test_a_syntax_error_tells_line_column_and_byte(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"é": 1},\n {"b": 1 "c": 2},\n {"d": 3}\n]', "utf-8")
    with pytest.raises(DataError) as caught:
        list(read_json.read_document(path))
    assert caught.value.where == f"{path}:3"
    assert "column 10" in caught.value.what
    place = path.read_bytes().index(b'"c"')
    assert f"byte {place}" in caught.value.what


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6))
def test_csv_cells_survive(tmp_path, cells):
    import csv

    path = tmp_path / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows([("text", "label"), *cells])
    located = read.Located(str(path), "csv", "a")
    found = list(read.rows(located, "utf-8", frozenset({"text", "label"}), lambda note: None, "classify"))
    assert [tuple(item.value.values()) for item in found] == cells


def table(tmp_path, text, name="a.csv", task="classify"):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return load.load(DataSettings(train=str(path)), task)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("text,label\na,b\nc\n", "1 cells where 2 are expected", 3),
        ("text,label\na,b,c\n", "3 cells where 2 are expected", 2),
        ('text,label\n"a,b\nc,d\n', "quoting is broken", 2),
        ('text,label\n"a"b,c\n', "quoting is broken", 2),
        ("text,label,label\na,b,c\n", "stands twice", 1),
        ("text,label\na\0b,c\n", "NUL byte at byte 12", 2),
    ],
)
def test_broken_tables_name_the_line(tmp_path, text, message, line):
    with pytest.raises(DataError, match=message) as caught:
        table(tmp_path, text)
    assert [problem.where for problem in caught.value.problems] == [f"{tmp_path}/a.csv:{line}"] or line in (2, 3)


def test_cells_with_line_ends_and_other_delimiters(tmp_path):
    found = table(tmp_path, 'text,label\n"two\nlines, here",a\nnext,b\n')
    assert found.examples[0].turns[0].text == "two\nlines, here"
    assert [row.source.line for row in found.examples] == [2, 4]
    assert [row.label for row in table(tmp_path, "text;label\na, b;x\nc;y\n").examples] == ["x", "y"]
    plain = table(tmp_path, 'text\tlabel\n"so he said\tx\nan inch is 1" long\ty\n', "a.tsv")
    assert [row.turns[0].text for row in plain.examples] == ['"so he said', 'an inch is 1" long']
    assert any("plain characters" in note for note in plain.report.notes)


def test_table_cells_that_say_nan_stay_text_and_empty_ones_are_refused(tmp_path):
    assert table(tmp_path, "text,label\nnan,None\nb,x\n").examples[0].label == "None"
    with pytest.raises(DataError, match="no label"):
        table(tmp_path, "text,label\na,x\nb,\n")


def test_documents_by_mark_and_by_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One.\n\nStill one.\n<|endoftext|>\nTwo.<|endoftext|>Three.\n<|endoftext|>\n\n", "utf-8")
    found = list(read_text.read_documents(path))
    assert [item.value["text"] for item in found] == ["One.\n\nStill one.", "Two.", "Three."]
    assert found[0].line == 1
    path.write_text("Line\u2028with separator\n", "utf-8")
    assert next(iter(read_text.read_documents(path))).value["text"] == "Line\u2028with separator"


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab \n.。"), max_size=400), st.integers(5, 50))
def test_sections_put_together_are_the_document(text, size):
    pieces = list(read_sections.pieces_of(text, size))
    assert "".join(pieces) == text
    assert all(len(piece) >= size for piece in pieces[:-1])


def test_one_book_is_cut_into_sections_that_can_be_divided(tmp_path):
    from luthier.data import split

    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {n}. " + f"sentence {n} " * 40 for n in range(400)), "utf-8")
    found = load.load(DataSettings(train=str(path)), "language_model")
    assert len(found.examples) >= 20
    assert "".join(row.turns[0].text for row in found.examples) == path.read_text("utf-8").strip()
    sides = split.split(found, DataSettings().split, "language_model")
    assert all(count > 0 for count in sides.report["rows"].values())


def test_parallel_text_and_label_files(tmp_path):
    (tmp_path / "train_text.txt").write_text("good film\nbad film\nso so\n")
    (tmp_path / "train_labels.txt").write_text("1\n0\n1\n")
    for source in (tmp_path / "train_text.txt", tmp_path):
        found = load.load(DataSettings(train=str(source)), "classify")
        assert [(row.turns[0].text, row.label) for row in found.examples][:2] == [("good film", "1"), ("bad film", "0")]
    (tmp_path / "train_labels.txt").write_text("1\n0\n")
    with pytest.raises(DataError, match="do not go together"):
        load.load(DataSettings(train=str(tmp_path / "train_text.txt")), "classify")


def test_locating_folders_globs_mixes_and_what_does_not_exist(tmp_path):
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "README.md", "classes.txt", ".hidden.jsonl"):
        (tmp_path / name).write_text('{"text": "a", "label": "b"}\n')
    found = read.locate(DataSettings(train=str(tmp_path)))["train"]
    assert {(Path(item.path).name, item.split) for item in found} == {
        ("train.jsonl", "train"), ("dev.jsonl", "validation"), ("test.jsonl", "test"),
    }  # fmt: skip
    globbed = read.locate(DataSettings(train=f"{tmp_path}/t*.jsonl"))["train"]
    assert [Path(item.path).name for item in globbed] == ["test.jsonl", "train.jsonl"]
    mixed = [SourceSettings(path=str(tmp_path / "train.jsonl"), weight=2.0), str(tmp_path / "dev.jsonl")]
    assert [item.weight for item in read.locate(DataSettings(train=mixed))["train"]] == [2.0, 1.0]
    for path in ("trian.jsonl", "*.none", "rows.zip", "rows.exe"):
        (tmp_path / "rows.zip").write_bytes(b"PK")
        (tmp_path / "rows.exe").write_bytes(b"MZ")
        with pytest.raises(DataError) as caught:
            read.locate(DataSettings(train=str(tmp_path / path)))
        assert caught.value.where == "data.train"
        assert caught.value.remedy
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data files"):
        read.locate(DataSettings(train=str(tmp_path / "empty")))


def test_files_of_one_name_give_different_row_ids(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.json").write_text('[{"text": "x", "label": "p"}, {"text": "y", "label": "q"}]')
    sources = [str(tmp_path / folder / "rows.json") for folder in ("a", "b")]
    found = load.load(DataSettings(train=sources), "classify")
    assert found.examples.column("id") == ["a/rows:1", "a/rows:1+1", "b/rows:1", "b/rows:1+1"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXT, st.text("ab", max_size=3), LABEL, GROUP), max_size=12))
def test_columns_give_back_what_was_put_in(rows):
    from luthier.core.types import Example, Source, Turn

    made = [
        Example(
            f"r{n}", (Turn("user", text, context), Turn("assistant", "z", train=False)), Source("f", n), label, group
        )
        for n, (text, context, label, group) in enumerate(rows)
    ]
    builder = columns.Builder()
    for at, row in enumerate(made):
        builder.append(row)
        if at % 3 == 2:
            builder._flush()
    held = builder.finish()
    assert list(held) == made
    assert [held[at] for at in range(len(made))] == made
    assert list(held[::-1]) == made[::-1]
    assert list(held[1:3][::-1]) == made[1:3][::-1]
    shuffled = np.random.default_rng(len(made)).permutation(len(made)).tolist() * 2
    assert list(held.select(shuffled)) == [made[at] for at in shuffled]
    assert [row for block in held.select(shuffled).blocks(2) for row in block] == [made[at] for at in shuffled]
    assert held.select(shuffled).digest() == columns.of(held).select(shuffled).digest()
    more = columns.extended(held[::-1], made[:2])
    assert list(more) == [*made[::-1], *made[:2]]
    if len(made) > 1:
        assert len({held.digest(), held[::-1].digest(), held[1:].digest(), more.digest()}) == 4


def test_rows_on_one_line_are_told_by_their_number(tmp_path):
    path = tmp_path / "a.json"
    rows = [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(20)]
    rows[16]["output"] = None
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError) as caught:
        load.load(DataSettings(train=str(path)), "instruct")
    assert caught.value.problems[0].where == f"{path}:1 (row 17)"
    found = load.load(DataSettings(train=str(path), on_error="skip"), "instruct")
    assert found.report.dropped[0]["where"] == f"{path}:1 (row 17)"
    assert [row.source.row for row in found.examples] == [n for n in range(1, 21) if n != 17]
    assert str(found.examples.select([18, 0])[0].source) == f"{path}:1 (row 20)"
    path.write_text(json.dumps(rows, indent=1))
    with pytest.raises(DataError) as caught:
        load.load(DataSettings(train=str(path)), "instruct")
    assert caught.value.problems[0].where == f"{path}:66", "the line says it where rows have lines of their own"


def test_on_error_stop_collects_some_and_stops(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join('{"instruction": "a", "output": null}' for _ in range(100)))
    with pytest.raises(DataError) as caught:
        load.load(DataSettings(train=str(path)), "instruct")
    assert len(caught.value.problems) == load.SHOWN + 1
    with pytest.raises(DataError, match="no row is left of 100 read"):
        load.load(DataSettings(train=str(path), on_error="skip"), "instruct")
