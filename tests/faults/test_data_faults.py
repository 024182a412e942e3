"""FAULTS.md A and the founding documents' data traps: each is refused with a place and a remedy, or read rightly."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from luthier.core.errors import DataError
from luthier.core.types import IGNORE, Row
from luthier.data import load, split
from luthier.data.settings import DataSettings, SplitSettings

GOOD = [{"instruction": f"What is number {n}?", "input": "", "output": f"It is {n}."} for n in range(40)]


def write(path: Path, rows: list, kind: str = "jsonl") -> Path:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) if kind == "jsonl" else json.dumps(rows)
    path.write_text(text, "utf-8")
    return path


def loaded(path: Path, task: str = "instruct", **settings):
    return load.load(DataSettings(train=str(path), **settings), task)


def refused(path: Path, task: str = "instruct", **settings) -> DataError:
    with pytest.raises(DataError) as caught:
        loaded(path, task, **settings)
    error = caught.value
    assert error.exit_code == 2
    assert all(problem.what for problem in error.problems)
    return error


DAMAGE = {
    "cut off": lambda line: line[: len(line) // 2],
    "trailing comma": lambda line: line[:-1] + ",}",
    "single quotes": lambda line: line.replace('"', "'"),
    "no quotes on key": lambda line: line.replace('"instruction"', "instruction"),
    "NaN": lambda line: line.replace('""', "NaN"),
    "Infinity": lambda line: line.replace('""', "Infinity"),
    "doubled brace": lambda line: line + "}",
    "two rows in a line": lambda line: line + line,
    "missing colon": lambda line: line.replace(":", "", 1),
    "missing comma": lambda line: line.replace('", "', '" "', 1),
    "raw tab": lambda line: line.replace("What is", "What\tis"),
    "bad escape": lambda line: line.replace("What", "\\What"),
    "lone surrogate": lambda line: line.replace("What", "\\ud800"),
    "not an object": lambda line: "[1, 2]",
    "a number": lambda line: "17",
    "comment": lambda line: "// " + line,
    "leading zero": lambda line: line.replace('""', "007"),
    "repeated key": lambda line: line[:-1] + ', "output": "other"}',
    "python None": lambda line: line.replace('""', "None"),
    "NUL": lambda line: line.replace("What", "Wh\0at"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_fault_A1_one_broken_line_of_ten_thousand_is_named(tmp_path, kind):
    lines = [json.dumps(GOOD[n % 40] | {"input": f"row {n}"}) for n in range(10_000)]
    bad = 7_321
    lines[bad] = DAMAGE[kind](json.dumps(GOOD[0]))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    error = refused(path)
    assert [problem.where for problem in error.problems] == [f"{path}:{bad + 1}"]
    assert error.problems[0].remedy
    kept = loaded(path, on_error="skip")
    assert len(kept.examples) == 9_999
    assert [item["where"] for item in kept.report.dropped] == [f"{path}:{bad + 1}"]
    assert kept.report.counts["dropped"] == 1
    assert kept.report.read == 10_000


def test_fault_A1_column_and_byte_are_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = json.dumps(GOOD[0]) + "\n"
    path.write_bytes(first.encode() + '{"instruction": "é", "output" 3}\n'.encode())
    (problem,) = refused(path).problems
    assert "column 31" in problem.what
    assert f"byte {len(first) + 31}" in problem.what


@pytest.mark.parametrize(
    ("damage", "line"),
    [("[{}, {},", 2), ('[{"a": 1}\n{"a": 2}]', 2), ('[{"a": 1},]', 1), ('[\n{"a": 1}\n] x', 3), ('[{"a": NaN}]', 1)],
)
def test_fault_A1_broken_json_documents_name_the_line(tmp_path, damage, line):
    path = tmp_path / "rows.json"
    path.write_text(damage)
    places = [problem.where for problem in refused(path).problems]
    assert places == [f"{path}:{line}"] or damage.startswith("[{}")


LINE = json.dumps({"instruction": "Say café", "output": "ligne une"}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("name", "data", "rows"),
    [
        ("bom", b"\xef\xbb\xbf" + LINE.encode(), 1),
        ("crlf", LINE.encode() + b"\r\n" + LINE.encode() + b"\r\n", 2),
        ("blank lines", b"\n\n" + LINE.encode() + b"\n  \n" + LINE.encode(), 2),
        ("u2028", LINE.replace("une", "une\u2028deux").encode(), 1),
        ("u0085", LINE.replace("une", "une\u0085deux").encode(), 1),
        ("escaped pair", LINE.replace("une", "\\ud83d\\ude00").encode(), 1),
        ("latin-1", LINE.encode("latin-1"), None),
        ("utf-16", LINE.encode("utf-16"), None),
        ("nul", LINE.encode() + b"\n\0\0", None),
        ("lone high surrogate", LINE.replace("une", "\\ud83d").encode(), None),
        ("encoded surrogate", LINE.encode() + b"\n" + LINE.encode().replace(b"une", b"\xed\xa0\x80"), None),
        ("overlong", LINE.encode().replace(b"une", b"\xc0\xaf"), None),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_fault_A2_encodings_are_decoded_or_refused_with_the_byte(tmp_path, name, data, rows, kind):
    path = tmp_path / f"rows.{kind}"
    if kind == "json":
        data = data.replace(b"\r\n", b"\n")
        if name in ("utf-16", "crlf", "blank lines", "nul", "encoded surrogate"):
            pytest.skip("the same bytes are tested as lines")
        data = data[:3] + b"[" + data[3:] + b"]" if name == "bom" else b"[" + data + b"]"
    path.write_bytes(data)
    if rows is None:
        text = str(refused(path))
        assert "byte" in text or "surrogate" in text
        return
    found = list(loaded(path).examples)
    assert len(found) == rows
    assert found[0].turns[0].text == "Say café"
    if name in ("u2028", "u0085"):
        assert len(found[0].reference) == len("ligne une deux")


def test_fault_A2_another_encoding_only_when_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"instruction": "你好吗", "output": "很好"}\n'.encode("gb18030") * 30)
    assert "byte" in str(refused(path))
    found = loaded(path, encoding="gb18030").examples
    assert found[29].reference == "很好"
    utf16 = tmp_path / "rows.csv"
    utf16.write_bytes("text,label\nà,b\n".encode("utf-16"))
    assert "utf-16" in str(refused(utf16, "classify"))
    assert loaded(utf16, "classify", encoding="utf-16").examples[0].turns[0].text == "à"
    assert "no encoding" in str(refused(utf16, encoding="klingon"))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt", "rows.tsv"])
@pytest.mark.parametrize("text", ["", "\n \n", "[]", "text,label\n"])
def test_fault_A3_nothing_to_read_is_an_error(tmp_path, name, text):
    path = tmp_path / name
    if (text == "[]") != name.endswith(".json") or (text.startswith("text") and not name.endswith("csv")):
        pytest.skip("not an empty file of this kind")
    path.write_text(text)
    assert "no row is left" in str(refused(path, "instruct"))


FIELDS = {
    "missing": ({"instruction": "a"}, "output: the field is missing"),
    "null answer": ({"instruction": "a", "output": None}, "output: null"),
    "empty answer": ({"instruction": "a", "output": "  "}, "output: empty"),
    "bool": ({"instruction": "a", "output": True}, "output: true is a truth value"),
    "list of two": ({"instruction": "a", "output": ["b", "c"]}, "output: a list"),
    "object": ({"instruction": "a", "output": {"b": 1}}, "output: an object"),
    "float in two spellings": ({"instruction": "a", "output": 1.0}, "more than one spelling"),
    "huge float": ({"instruction": "a", "output": 1e300}, "more than one spelling"),
    "misspelt": ({"instruction": "a", "ouput": "b"}, "is that meant?"),
    "null instruction": ({"instruction": None, "output": "b"}, "instruction: null"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_fault_A4_missing_or_mistyped_fields_name_row_field_and_fix(tmp_path, kind):
    row, expected = FIELDS[kind]
    path = write(tmp_path / "rows.jsonl", [*GOOD, row])
    (problem,) = refused(path).problems
    assert expected in f"{problem.what} {problem.remedy}"
    assert problem.where == f"{path}:41"
    assert problem.remedy


def test_fault_A6_a_row_of_ten_million_characters_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "a", "output": "x" * 10_000_000}) + "\n")
    peak, _ = measured(f"load.load(DataSettings(train={str(path)!r}), 'instruct')")
    assert peak < 300


def test_fault_A6_a_row_without_end_is_refused(tmp_path):
    for name, head in (
        ("rows.jsonl", '{"a": "'),
        ("rows.json", '[{"a": "'),
        ("rows.csv", 'text,label\n"'),
        ("a.txt", ""),
    ):
        path = tmp_path / name
        path.write_text(head + "x" * (40 << 20))
        peak, said = measured(f"load.load(DataSettings(train={str(path)!r}), 'instruct')")
        assert "DataError" in said, name
        assert peak < 300, name


def test_fault_A7_overlap_with_given_files_finds_37_of_37(tmp_path):
    rng = random.Random(3)
    words = [f"word{n}" for n in range(3000)]
    rows = [
        {"instruction": " ".join(rng.choices(words, k=12)), "output": " ".join(rng.choices(words, k=6))}
        for _ in range(700)
    ]
    train, test = rows[:500], rows[500:]
    planted = rng.sample(range(500), 37)
    test += [train[n] for n in planted]
    settings = DataSettings(train=str(write(tmp_path / "a.jsonl", train)), test=str(write(tmp_path / "b.jsonl", test)))
    found = load.load(settings, "instruct")
    overlap = split.split(found, settings.split, "instruct").report["overlap"]
    listed = [item for pair in ("test in train", "test in validation") for item in overlap[pair]["rows"]]
    assert overlap["test in train"]["exact"] + overlap["test in validation"]["exact"] == 37
    assert {item["where"] for item in listed} == {f"{tmp_path}/b.jsonl:{n}" for n in range(201, 238)}
    assert {item["twin_where"] for item in listed} == {f"{tmp_path}/a.jsonl:{n + 1}" for n in planted}


def bomb(head: bytes, body: bytes, size: int = 300 << 20) -> bytes:
    """A small gzip file that unpacks to `size` bytes."""
    packer = zlib.compressobj(6, wbits=31)
    block = body * ((1 << 20) // len(body))
    return b"".join([packer.compress(head), *(packer.compress(block) for _ in range(size >> 20)), packer.flush()])


def archives(folder: Path) -> dict[str, Path]:
    """Twelve damaged or hostile files."""
    lines = "\n".join(json.dumps(row) for row in GOOD * 200).encode()
    table = pa.table({"instruction": ["a"] * 50_000, "output": [f"b{n}" for n in range(50_000)]})
    parquet.write_table(table, folder / "good.parquet")
    whole = (folder / "good.parquet").read_bytes()
    files = {
        "cut.jsonl.gz": gzip.compress(lines)[:-300],
        "not.jsonl.gz": b"plain text that is no gzip",
        "crc.jsonl.gz": gzip.compress(lines)[:-8] + b"\0" * 8,
        "flipped.jsonl.gz": bytes(b ^ (at == 2000) * 255 for at, b in enumerate(gzip.compress(lines))),
        "bomb.jsonl.gz": bomb(b"", b"\n"),
        "bomb.json.gz": bomb(b'["', b"a"),
        "bomb.csv.gz": bomb(b"text,label\n", b"\n\n"),
        "cut.jsonl.zst": bytes(pa.compress(lines, "zstd"))[:-300],
        "cut.parquet": whole[: len(whole) // 2],
        "head.parquet": whole[:200],
        "flipped.parquet": whole[:3000] + bytes(255 - byte for byte in whole[3000:3400]) + whole[3400:],
        "slip.zip": b"PK\x03\x04" + b"../../evil" * 9,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in files}


def test_fault_A8_archives_cut_or_hostile_are_refused_in_bounded_memory(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    for name, path in archives(inside).items():
        peak, said = measured(f"load.load(DataSettings(train={str(path)!r}), 'instruct')")
        assert "DataError" in said, (name, said)
        assert "Traceback" not in said, name
        assert peak < 300, (name, peak)
    assert [item.name for item in tmp_path.iterdir()] == ["inside"]


def measured(call: str) -> tuple[float, str]:
    """(peak MB, output) of a call in a process of its own."""
    code = (
        "from pathlib import Path\nfrom luthier.core.errors import DataError\nfrom luthier.data import load\n"
        "from luthier.data.settings import DataSettings\n"
        f"try:\n    {call}\nexcept DataError as error:\n    print('DataError', str(error)[:500])\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(int(status.split('VmHWM:')[1].split()[0]) / 1024)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    *said, peak = done.stdout.strip().split("\n")
    return float(peak), "\n".join(said)


def test_deep_nesting_and_huge_numbers_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    for bad in ("[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, '{"a": ' + "9" * 6000 + "}"):
        path.write_text(bad)
        assert refused(path).problems
        document = tmp_path / "rows.json"
        document.write_text("[" + bad + "]")
        assert refused(document).problems


# --- the founding documents' traps ---------------------------------------------------------------------------


def test_trap_D1_instruction_json_as_list_object_lines_table_and_parquet(tmp_path):
    rows = [{"instruction": f"q{n}", "input": "", "output": f"a{n}"} for n in range(12)]
    header = "instruction,input,output\n"
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps({"version": 1, "data": rows}))
    write(tmp_path / "c.jsonl", rows)
    (tmp_path / "d.csv").write_text(header + "".join(f"q{n},,a{n}\n" for n in range(12)))
    (tmp_path / "e.tsv").write_text((header + "".join(f"q{n},,a{n}\n" for n in range(12))).replace(",", "\t"))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    with gzip.open(tmp_path / "g.jsonl.gz", "wb") as handle:
        handle.write((tmp_path / "c.jsonl").read_bytes())
    with pa.output_stream(str(tmp_path / "h.json.zst"), compression="zstd") as handle:
        handle.write((tmp_path / "a.json").read_bytes())
    for path in sorted(tmp_path.iterdir()):
        found = loaded(path)
        assert [row.reference for row in found.examples] == [f"a{n}" for n in range(12)], path
        assert [source["format"] for source in found.report.sources] == ["instruction"]
    assert "did you mean" in str(refused(tmp_path / "a.jsn"))


def test_trap_D2_null_never_becomes_the_text_None_and_every_repair_is_told(tmp_path):
    rows = [*GOOD, {"instruction": 7, "input": None, "output": "seven"}]
    path = write(tmp_path / "rows.json", rows, "json")
    found = loaded(path)
    last = found.examples[40]
    assert last.turns[0].text == "7"
    assert last.turns[0].context == ""
    assert "None" not in str([turn.text for row in found.examples for turn in row.turns])
    told = {(item["field"], item["reason"]) for item in found.report.repaired}
    assert told == {("instruction", "the number 7 taken as text"), ("input", "null taken as no text")}
    assert {item["row"] for item in found.report.repaired} == {last.id}
    assert all(item["where"].startswith(str(path)) for item in found.report.repaired)


def test_trap_D3_text_and_label_rows_become_labelled_examples(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": f"t{n}", "label": n % 2} for n in range(40)])
    found = loaded(path, "classify").examples
    assert {row.label for row in found} == {"0", "1"}
    assert [turn.role for turn in found[0].turns] == ["user"]
    asked = loaded(path, "instruct").examples
    assert asked[1].reference == "1"


def test_trap_D4_question_answer(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"question": "q", "answer": "a", "context": "c"}])
    (row,) = loaded(path).examples
    assert (row.turns[0].text, row.turns[0].context, row.reference) == ("q", "c", "a")


def test_trap_D5_prompt_response(tmp_path):
    (row,) = loaded(write(tmp_path / "rows.jsonl", [{"prompt": "p", "response": "r"}])).examples
    assert (row.turns[0].text, row.reference) == ("p", "r")


def test_trap_D6_a_saved_dataset_loads_offline_with_its_splits_and_class_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    made = {
        name: datasets.Dataset.from_dict(
            {"text": [f"{name} text number {n}" for n in range(30)], "label": [n % 2 for n in range(30)]}, features
        )
        for name in ("train", "test")
    }
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    settings = DataSettings(train=str(tmp_path / "saved"))
    found = load.load(settings, "classify")
    assert {row.label for row in found.examples} == {"bad", "good"}
    sides = split.split(found, settings.split, "classify")
    assert sides.report["rows"] == {"train": 27, "validation": 3, "test": 30}


def test_trap_D14_the_split_is_seeded_keeps_groups_and_does_not_follow_the_file(tmp_path):
    rows = [{"instruction": f"Question {n} about topic {n * 7}?", "output": f"Answer {n}."} for n in range(100)]
    first = loaded(write(tmp_path / "a.jsonl", rows))
    second = loaded(write(tmp_path / "b.jsonl", rows[::-1]))
    settings = SplitSettings(validation=0.1, test=0.1, seed=7)
    one, other = (split.split(found, settings, "instruct") for found in (first, second))
    for side in ("train", "validation", "test"):
        assert {row.reference for row in getattr(one, side)} == {row.reference for row in getattr(other, side)}
    changed = split.split(first, SplitSettings(seed=8), "instruct")
    assert {row.id for row in changed.test} != {row.id for row in one.test}
    assert len(set(one.ids()["train"]) | set(one.ids()["validation"]) | set(one.ids()["test"])) == 100


def test_trap_D15_validation_is_carved_from_train_and_a_given_test_is_left_alone(tmp_path):
    words = np.random.default_rng(0).permutation(4000).astype(str).tolist()
    rows = [{"text": " ".join(words[n * 10 : n * 10 + 10]), "label": "ab"[n % 2]} for n in range(120)]
    write(tmp_path / "train.jsonl", rows[:100])
    write(tmp_path / "test.jsonl", rows[100:])
    for settings in (
        DataSettings(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl")),
        DataSettings(train=str(tmp_path)),
        DataSettings(train=f"{tmp_path}/*.jsonl"),
    ):
        sides = split.split(load.load(settings, "classify"), settings.split, "classify")
        assert sides.report["rows"] == {"train": 90, "validation": 10, "test": 20}
        assert {row.source.file for row in sides.test} == {str(tmp_path / "test.jsonl")}
        assert {row.source.file for row in sides.validation} == {str(tmp_path / "train.jsonl")}


def test_trap_D18_what_is_no_text_is_refused_and_not_trained_as_empty(tmp_path):
    path = write(tmp_path / "rows.jsonl", [*GOOD, {"instruction": "a", "output": {"text": "b"}}])
    assert "output" in str(refused(path))
    found = loaded(path, on_error="skip")
    assert len(found.examples) == 40
    assert all(row.reference for row in found.examples)


def test_values_that_only_parquet_can_hold_are_refused_or_kept(tmp_path):
    import datetime
    import decimal

    odd = [float("nan"), float("inf"), b"bytes", datetime.date(2024, 1, 2), decimal.Decimal("1.5"), {"a": 1}]
    for number, value in enumerate(odd):
        path = tmp_path / f"{number}.parquet"
        for column in ("text", "label", "id"):
            row = {"text": "a", "label": "b", "id": "c"} | {column: value}
            parquet.write_table(pa.Table.from_pylist([row]), path)
            if column == "id":
                assert len(loaded(path, "classify", split=SplitSettings(stratify="id")).examples) == 1
            else:
                assert column in str(refused(path, "classify"))


def test_fault_A5_rows_without_trained_tokens_are_fatal_above_the_threshold(tmp_path):
    from luthier.data import inspect_rows

    marks = inspect_rows.Marks(frozenset({2}), 1, 1)
    masked = [Row(f"r{n}", np.array([1, 5, 6, 2]), np.full(4, IGNORE)) for n in range(10)]
    facts = inspect_rows.summary(inspect_rows.count(masked, marks), marks, 512)
    assert facts["without_trained"] == 10
    assert facts["trained_tokens"] == 0


def test_fault_A9_one_changed_byte_is_refused_before_a_resume_and_both_hashes_are_shown(tmp_path):
    from luthier.core import atomic
    from luthier.core.errors import RecipeError
    from luthier.core.rundir import RunDir
    from luthier.pipeline import place

    def sources() -> list[dict]:
        return loaded(path).report.sources

    path = write(tmp_path / "rows.jsonl", GOOD)
    run = RunDir(tmp_path / "run")
    before = sources()
    atomic.write_json(run.manifest, {"sources": before})
    place.same_data(run, {item["path"]: item["sha256"] for item in sources()})
    for at in (18, path.read_bytes().index(b"number 3?"), path.read_bytes().rindex(b"It is")):
        data = bytearray(path.read_bytes())
        data[at] = ord("7")
        path.write_bytes(data)
        after = {item["path"]: item["sha256"] for item in sources()}
        with pytest.raises(RecipeError) as caught:
            place.same_data(run, after)
        assert before[0]["sha256"][:12] in str(caught.value)
        assert after[str(path)][:12] in str(caught.value)
        assert "--accept-data-change" in str(caught.value)
    place.same_data(run, after, accept=True)
    assert run.lineage.is_file(), "what was accepted is on record"
