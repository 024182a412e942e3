"""What `check` prints for people: trained tokens in colour and nothing else, and how long the rows are."""

import io

from rich.console import Console

from luthier.cli import check, console
from luthier.report import inspection


def printed(monkeypatch, work):
    buffer = io.StringIO()
    made = Console(file=buffer, force_terminal=True, highlight=False, markup=False, width=100)
    monkeypatch.setattr(console, "out", lambda: made)
    work()
    return buffer.getvalue()


def test_only_trained_tokens_are_coloured(monkeypatch):
    text = printed(monkeypatch, lambda: check.preview("── a\n问题⟦答案。⟧ more\n── b\nq⟦a⟧ end"))
    assert text == "── a\n问题\x1b[32m⟦答案。⟧\x1b[0m more\n── b\nq\x1b[32m⟦a⟧\x1b[0m end\n"


def test_the_histogram_adds_up_over_the_splits():
    sides = [
        {"histogram": [{"upto": 16, "rows": 1}, {"upto": 32, "rows": 5}]},
        {"histogram": [{"upto": 32, "rows": 3}, {"upto": 64, "rows": 1}]},
    ]
    found = inspection.histogram({"tokens": dict(zip(("train", "test"), sides, strict=True))}, width=8)
    assert [(upto, rows, len(bar)) for upto, rows, bar, _ in found] == [(16, 1, 1), (32, 8, 8), (64, 1, 1)]
    assert [share for *_, share in found] == ["10 %", "90 %", "100 %"]
    assert inspection.histogram({}) == []


def test_the_recognised_formats_are_shown_once_each():
    sources = [{"format": "chat"}, {"format": "chat"}, {"format": "squad"}]
    assert ("format", "chat, squad") in inspection.facts({"sources": sources, "read": 3})
    assert all(name != "format" for name, _ in inspection.facts({"sources": "damaged", "read": 3}))
