"""`luthier chat` as it is typed: real adapters, lines on stdin, answers on stdout."""

import io
import json
import sys
from pathlib import Path

import pytest

from luthier.adapted import load
from luthier.cli.chat import Talk
from luthier.core.types import Turn

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
from serving_world import CLASSES, made

KINDS = {
    "first": {"name": "lora", "r": 4},
    "second": {"name": "lora", "r": 8, "targets": "all-linear"},
    "library": {"name": "multitask_prefix", "length": 4, "tasks": ("places", "jobs")},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("talk")
    found = {name: made(root, name, method, number=at) for at, (name, method) in enumerate(KINDS.items())}
    return {**found, "clubs": made(root, "clubs", {"name": "lora", "r": 4}, "classify", CLASSES, 9)}


@pytest.fixture
def chat(luthier, monkeypatch):
    """Type lines → (exit code, lines shown, stderr)."""

    def typed(*lines, options=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        code, shown, told = luthier("chat", *options, "--max-new-tokens", 8)
        return code, shown, told

    return typed


def said(folder, *texts):
    """What the adapter answers after these turns (question, answer, question …)."""
    roles = ("user", "assistant")
    turns = [Turn(roles[at % 2], text) for at, text in enumerate(texts)]
    return load(folder).generate(turns, 8)


def messages(file):
    return [(one["role"], one["content"]) for one in json.loads(file.read_text("utf-8"))["messages"]]


def test_a_conversation_goes_over_to_another_adapter_is_saved_and_forgotten(folders, chat, tmp_path):
    kept, after = tmp_path / "kept.jsonl", tmp_path / "after.jsonl"
    lines = ("Where does Ada live?", f"/adapter {folders['second']}", "And Karl?", f"/save {kept}", "/reset",
             "And Karl?", f"/save {after}", f"/save {after}", "/what", "/quit")  # fmt: skip
    code, shown, _ = chat(*lines, options=[folders["first"]])
    one = said(folders["first"], "Where does Ada live?")
    two = said(folders["second"], "Where does Ada live?", one, "And Karl?")
    three = said(folders["second"], "And Karl?")
    assert len({one, two, three}) == 3
    assert code == 0
    talked = [("user", "Where does Ada live?"), ("assistant", one), ("user", "And Karl?"), ("assistant", two)]
    assert messages(kept) == talked
    assert messages(after) == [("user", "And Karl?"), ("assistant", three)]
    for text in (f"now {folders['second']}", "forgotten", f"{after} exists already", "/quit"):
        assert text in shown


def test_a_full_window_is_told_and_reset_helps(folders, chat, tmp_path):
    """Not an empty answer for ever; what found no room is not kept."""
    window = load(folders["first"]).base.anatomy.window
    long, file = "Ada Moser " * (window // 4), tmp_path / "kept.jsonl"
    lines = ("Hello", long, long, long, f"/save {file}", "/reset", "Hello", "/quit")
    code, shown, _ = chat(*lines, options=[folders["first"]])
    assert code == 0
    assert f"the window of {window} tokens is full" in shown
    assert "/reset forgets it" in shown
    assert shown.count(said(folders["first"], "Hello")) == 2
    assert all(text.strip() for _, text in messages(file))
    assert [role for role, _ in messages(file)] == ["user", "assistant"] * (len(messages(file)) // 2)
    assert "a shorter question" in chat(long * 4, options=[folders["first"]])[1]


def test_an_error_within_an_answer_does_not_end_the_chat(folders, chat):
    lines = ("Hello", "/task nowhere", "/task jobs", "Hello", "/adapter nowhere", f"/adapter {folders['first']}",
             "Hello", "/temperature hot", "/quit")  # fmt: skip
    code, shown, _ = chat(*lines, options=[folders["library"]])
    assert code == 0
    assert shown.count("one of: places, jobs") == 2
    assert load(folders["library"]).generate("Hello", 8, task="jobs") in shown
    assert "no adapter at nowhere" in shown
    assert "could not convert" in shown


def test_a_classification_run_is_told_what_serves_it(folders, chat):
    code, _, told = chat("Hello", options=[folders["clubs"]])
    assert code != 0
    assert f"luthier serve {folders['clubs']}" in told
    assert "/v1/classify" in told
    code, shown, _ = chat(f"/adapter {folders['clubs']}", "Hello", "/quit", options=[folders["first"]])
    assert (code, "luthier serve" in shown, said(folders["first"], "Hello") in shown) == (0, True, True)


def test_base_and_tuned_side_by_side_and_a_system_message(folders, chat):
    lines = ("/both", "Hello", "/base", "Hello", "/system Be short.", "/tuned", "Hello", "/quit")
    code, shown, _ = chat(*lines, options=[folders["first"]])
    adapted = load(folders["first"])
    tuned = adapted.generate("Hello", 8)
    with adapted.off():
        plain = adapted.generate("Hello", 8)
    assert code == 0
    assert tuned.split()[0] in shown
    assert plain.split()[0] in shown
    assert adapted.generate([Turn("system", "Be short."), Turn("user", "Hello")], 8) in shown


def test_an_empty_answer_is_no_turn(folders, monkeypatch):
    adapted = load(folders["first"])
    talk = Talk(adapted, "tuned", 8, 0.0, 0, load)
    talk.say("Hello")
    before = list(talk.turns)
    monkeypatch.setattr(adapted, "generate", lambda *given, **options: " ")
    assert "no answer" in str(talk.say("And?")[0])
    assert talk.turns == before
    assert len(before) == 2
