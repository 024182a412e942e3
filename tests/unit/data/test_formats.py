"""Every format: recognised by itself, read into the right turns; two that fit are both named."""

from __future__ import annotations

import json
import sys

import pytest

from luthier.core.errors import DataError, RecipeError
from luthier.data import load
from luthier.data.formats import FORMATS
from luthier.data.settings import DataSettings


def read(tmp_path, rows, task="instruct", name="rows.jsonl", **settings):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return load.load(DataSettings(train=str(path), **settings), task)


def said(row):
    return [(turn.role, turn.text) for turn in row.turns]


CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]
CASES = {
    "instruction": ({"instruction": "a", "input": "m", "output": "b"}, [("user", "a"), ("assistant", "b")]),
    "dolly": (
        {"instruction": "a", "context": "m", "response": "b", "category": "qa"},
        [("user", "a"), ("assistant", "b")],
    ),
    "with text": (
        {"instruction": "a", "input": "", "output": "b", "text": "a b"},
        [("user", "a"), ("assistant", "b")],
    ),
    "prompt_response": ({"prompt": "a", "response": "b"}, [("user", "a"), ("assistant", "b")]),
    "completion": ({"prompt": "a", "completion": "b"}, [("user", "a"), ("assistant", "b")]),
    "query": ({"query": "a", "response": "b"}, [("user", "a"), ("assistant", "b")]),
    "question_answer": ({"question": "a", "answer": "b"}, [("user", "a"), ("assistant", "b")]),
    "self_instruct": (
        {"id": "t1", "instruction": "a", "instances": [{"input": "", "output": "b"}]},
        [("user", "a"), ("assistant", "b")],
    ),
    "squad": (
        {"title": "T", "paragraphs": [{"context": "c", "qas": [{"question": "a", "answers": [{"text": "b"}]}]}]},
        [("user", "a"), ("assistant", "b")],
    ),
    "squad flat": (
        {"id": "1", "context": "c", "question": "a", "answers": {"text": ["b"], "answer_start": [0]}},
        [("user", "a"), ("assistant", "b")],
    ),
    "chat": ({"messages": CHAT}, [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello")]),
    "sharegpt": (
        {"id": "c1", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        [("user", "a"), ("assistant", "b")],
    ),
    "preference": ({"prompt": "a", "chosen": "b", "rejected": "c"}, [("user", "a"), ("assistant", "b")]),
    "preference of instructions": (
        {"instruction": "a", "input": "", "output": "x", "chosen": "b", "rejected": "c"},
        [("user", "a"), ("assistant", "b")],
    ),
    "preference of messages": (
        {"chosen": CHAT, "rejected": [*CHAT[:2], {"role": "assistant", "content": "Go"}]},
        [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello")],
    ),
    "text_label": ({"text": "a", "label": "b"}, [("user", "a"), ("assistant", "b")]),
    "plain_text": ({"text": "a"}, [("text", "a")]),
    "chinese": ({"指令": "甲", "输入": "", "输出": "乙"}, [("user", "甲"), ("assistant", "乙")]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_layout_is_recognised_and_read(tmp_path, case):
    row, turns = CASES[case]
    found = read(tmp_path, [row])
    assert said(found.examples[0]) == turns
    name = case.split()[0]
    if name in FORMATS.names():
        assert found.report.sources[0]["format"] == name
    assert found.examples[0].source.line == 1


def test_every_member_is_listed_with_a_line_and_parses():
    names = {"chat", "instruction", "plain_text", "preference", "prompt_response", "question_answer", "self_instruct"}
    assert names | {"squad", "text_label"} <= set(FORMATS.names())
    assert all(FORMATS.summaries().values())
    assert all(FORMATS.parse(name).name == name for name in FORMATS.names())
    with pytest.raises(RecipeError):
        FORMATS.parse("instructions")


def test_formats_import_without_torch():
    import subprocess

    code = "import sys\nfrom luthier.data.formats import FORMATS\n[FORMATS.get(n) for n in FORMATS.names()]\n"
    code += "import luthier.data.load, luthier.data.split\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_formats_that_fit_are_both_named(tmp_path):
    row = {"prompt": "a", "response": "b", "question": "c", "answer": "d"}
    with pytest.raises(DataError, match=r"prompt_response and question_answer") as caught:
        read(tmp_path, [row])
    assert "data.format" in caught.value.remedy
    assert said(read(tmp_path, [row], format="question_answer").examples[0])[0] == ("user", "c")


def test_two_columns_for_one_role_are_both_named(tmp_path):
    row = {"instruction": "a", "response": "b", "answer": "c"}
    with pytest.raises(DataError, match="'response' and 'answer' could both be the output"):
        read(tmp_path, [row])
    found = read(tmp_path, [row], columns={"output": "answer"})
    assert found.examples[0].reference == "c"


def test_columns_rename_and_misspelt_columns_get_a_suggestion(tmp_path):
    row = {"task": "a", "material": "m", "result": "b"}
    with pytest.raises(DataError, match="no format fits the columns material, result, task"):
        read(tmp_path, [row])
    found = read(tmp_path, [row], columns={"instruction": "task", "input": "material", "output": "result"})
    assert (found.examples[0].turns[0].context, found.examples[0].reference) == ("m", "b")
    with pytest.raises(DataError, match="no column 'tusk'") as caught:
        read(tmp_path, [row], columns={"instruction": "tusk"})
    assert "'task'" in caught.value.remedy
    with pytest.raises(DataError) as caught:
        read(tmp_path, [{"instructoin": "a", "output": "b"}])
    assert "did you mean 'instruction'" in caught.value.remedy


def test_white_space_input_is_no_input(tmp_path):
    found = read(tmp_path, [{"instruction": "a", "input": " \n ", "output": "b"}])
    assert found.examples[0].turns[0].context == ""


def test_self_instruct_instances_and_squad_articles_are_groups(tmp_path):
    tasks = [{"id": f"t{n}", "instruction": "a", "instances": [{"input": "", "output": "b"}] * 3} for n in range(2)]
    rows = list(read(tmp_path, tasks).examples)
    assert len(rows) == 6
    assert len({row.group for row in rows}) == 2
    assert len({row.id for row in rows}) == 6
    answers = [{"text": "x"}, {"text": "y"}, {"text": "x"}]
    qas = [{"question": "q", "answers": answers}, {"question": "r", "is_impossible": True, "answers": []}]
    found = read(tmp_path, [{"paragraphs": [{"context": "c", "qas": qas}]}] * 2)
    assert [row.extra["references"] for row in found.examples] == [["x", "y"]] * 2
    assert len({row.group for row in found.examples}) == 2
    assert found.report.counts["dropped"] == 2
    assert "no answer" in found.report.dropped[0]["reason"]


def test_content_parts_tool_calls_and_weights(tmp_path):
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "w", "arguments": '{"c": "北京"}'}}],
        },
        {"role": "tool", "content": "22"},
        {"role": "assistant", "content": "22 degrees", "weight": 0},
        {"role": "user", "content": "thanks"},
    ]
    found = read(tmp_path, [{"messages": messages, "tools": [{"name": "w"}]}])
    row = found.examples[0]
    assert said(row)[0] == ("system", "Be kind.")
    assert json.loads(row.turns[2].text) == {"name": "w", "arguments": {"c": "北京"}}
    assert row.turns[4].train is False
    assert row.turns[-1].role == "assistant"
    assert json.loads(row.extra["tools"]) == [{"name": "w"}]
    assert "after the last answer" in found.report.repaired[0]["reason"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": "a"}],
        [{"role": "king", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}],
        ["a", "b"],
        "a",
    ],
)
def test_conversations_that_teach_nothing_are_refused(tmp_path, messages):
    good = {"messages": CHAT}
    with pytest.raises(DataError) as caught:
        read(tmp_path, [good, {"messages": messages}])
    assert caught.value.problems[0].where.endswith(":2")


LABELS = {
    "three spellings": ([1, "01", "1.0"], None),
    "text spellings": (["1", "01", "a"], None),
    "numbers and text": ([0.5, "a", "b"], None),
    "bool and number": ([True, 1, 0], None),
    "whole floats": ([0.0, 1.0, 1], {"0", "1"}),
    "numbers as text too": ([1, "1", "2"], {"1", "2"}),
    "spaces": (["a", " a", "b "], {"a", "b"}),
    "bools": ([True, False, True], {"true", "false"}),
    "values": ([0.5, 1, 2.25], {0.5, 1.0, 2.25}),
    "several": ([["a", "b"], ["a"], []], {("a", "b"), ("a",), ()}),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_never_silently_several_classes(tmp_path, case):
    labels, expected = LABELS[case]
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)]
    if expected is None:
        with pytest.raises(DataError, match="the labels mix") as caught:
            read(tmp_path, rows, "classify")
        assert caught.value.problems[1].where.startswith(str(tmp_path))
        return
    found = read(tmp_path, rows, "classify")
    assert {row.label for row in found.examples} == expected
    changed = case in ("whole floats", "spaces", "bools")
    assert bool(found.report.repaired) == changed
    assert all(item["field"] == "label" and item["where"] for item in found.report.repaired)


@pytest.mark.parametrize("label", [None, "", "  ", {"a": 1}, [None]])
def test_rows_without_a_usable_label_are_refused(tmp_path, label):
    with pytest.raises(DataError) as caught:
        read(tmp_path, [{"text": "a", "label": "x"}, {"text": "b", "label": label}], "classify")
    assert caught.value.problems[0].where.endswith(":2")


def test_classify_needs_labels(tmp_path):
    with pytest.raises(DataError, match="format instruction, which has no labels"):
        read(tmp_path, [{"instruction": "a", "output": "b"}], "classify")


def test_ag_news_without_a_header_gets_its_class_names(tmp_path):
    (tmp_path / "classes.txt").write_text("World\nSports\n")
    path = tmp_path / "train.csv"
    path.write_text('"1","A title","Its text, with ""quotes"""\n"2","Other","More"\n"2","Only a title",""\n')
    found = load.load(DataSettings(train=str(path)), "classify")
    assert [row.label for row in found.examples] == ["World", "Sports", "Sports"]
    assert [row.turns[0].text for row in found.examples][1:] == ["Other More", "Only a title"]
    assert found.examples[0].turns[0].text == 'A title Its text, with "quotes"'
    assert any("class, title, description" in note for note in found.report.notes)


def test_headerless_tables_of_two_columns(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("问题一有多少个苹果？\t18\n问题二\t3\n")
    found = load.load(DataSettings(train=str(path)), "instruct")
    assert said(found.examples[0]) == [("user", "问题一有多少个苹果？"), ("assistant", "18")]
    path.write_text("0\tvery bad film\n1\tvery good film\n0\tawful, I left\n")
    found = load.load(DataSettings(train=str(path)), "classify")
    assert [row.label for row in found.examples] == ["0", "1", "0"]


def test_an_unknown_header_is_not_trained_as_a_row(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("Review Body,Stars\ngood film,5\nbad film,1\n")
    with pytest.raises(DataError, match="no format fits"):
        load.load(DataSettings(train=str(path)), "classify")
    found = load.load(DataSettings(train=str(path), columns={"text": "Review Body", "label": "Stars"}), "classify")
    assert [row.label for row in found.examples] == ["5", "1"]
