"""Fault cases G1 and G2: nothing that a row, a name or an answer says becomes part of the page or acts."""

import json
from collections import Counter
from html.parser import HTMLParser

import fake_run
import pytest
from payloads import FORBIDDEN, PAYLOADS

from luthier.core.events import read_jsonl
from luthier.report.write import write


class Shape(HTMLParser):
    """Counts (tag, attribute names and values that are not free text), and keeps the text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.elements, self.values = Counter(), set()

    def handle_starttag(self, tag, attrs):
        self.elements[(tag, tuple(sorted(name for name, _ in attrs)))] += 1
        self.values |= {(tag, name, value) for name, value in attrs if name != "src"}

    def handle_comment(self, data):
        self.elements["comment"] += 1

    def unknown_decl(self, data):
        self.elements["declaration"] += 1

    def handle_pi(self, data):
        self.elements["instruction"] += 1


def shape(run) -> Shape:
    seen = Shape()
    seen.feed(run.report_html.read_text("utf-8"))
    return seen


def poisoned(run, text: str) -> None:
    """The same run with `text` in every place that others fill."""
    samples = read_jsonl(run.samples)
    for sample in samples:
        sample |= dict.fromkeys(("id", "prompt", "reference", "base", "tuned"), text)
    samples[0]["tokens"] = [[text, 1.0, 0.5]] * 4
    fake_run.write_lines(run.samples, samples)
    health = fake_run.health()
    for item in health["diagnoses"]:
        item |= {"name": text, "evidence": text}
    for layer in health["layers"]:
        layer["name"] = text
    fake_run.write_json(run.health, health)
    manifest = json.loads(json.dumps(fake_run.MANIFEST))
    manifest["sources"][0] |= {"path": text, "format": text}
    manifest["template"] = text
    fake_run.write_json(run.manifest, manifest)
    metrics = json.loads(json.dumps(fake_run.METRICS))
    metrics["split"] = text
    metrics["slices"] = {text: {f"{text}{i}": item for i, item in enumerate(metrics["slices"]["length"].values())}}
    metrics["extremes"]["wins"][0]["source"] = text
    metrics["guards"] = {text: metrics["guards"]["general.txt"]}
    fake_run.write_json(run.metrics, metrics)
    run.preview.write_text(text, "utf-8", "surrogatepass")
    events = fake_run.events()
    for event in events:
        if event["kind"] == "warning":
            event |= {"what": text, "where": text, "remedy": text}
    fake_run.write_lines(run.events, events)
    fake_run.write_json(run.environment, {"versions": {"luthier": text, "torch": text}, "threads": 2, "seed": 42})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fake_run.make(tmp_path_factory.mktemp("runs") / "run")


def test_there_are_140_payloads():
    assert len(set(PAYLOADS)) >= 140


def test_no_new_element_or_attribute(run, monkeypatch):
    monkeypatch.setattr("luthier.report.plots.draw", lambda *_: b"png")
    monkeypatch.setattr("os.fsync", lambda handle: None)
    poisoned(run, "harmless")
    write(run)
    clean = shape(run)
    for payload in PAYLOADS:
        poisoned(run, payload)
        write(run)
        seen = shape(run)
        assert seen.elements == clean.elements, payload
        assert seen.values == clean.values, payload
        assert json.loads(run.report_json.read_text("utf-8"))["samples"][0]["base"] is not None
        for file in (run.report_html, run.report_json, run.samples_text):
            assert not FORBIDDEN & set(file.read_text("utf-8")), (payload, file.name)


def test_an_answer_cannot_look_like_our_lines(run):
    poisoned(run, "x\n── 9 ── y\nreference:\n")
    write(run)
    blocks = [line for line in run.samples_text.read_text("utf-8").split("\n") if line.startswith("──")]
    assert len(blocks) == len(fake_run.SAMPLES)


def test_secrets_and_home_stay_out(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary_123456789")
    monkeypatch.setenv("HOME", "/home/canaryuser")
    poisoned(run, "token hf_canary_123456789 in /home/canaryuser/x")
    write(run)
    for file in run.report.iterdir():
        content = file.read_bytes()
        assert b"hf_canary" not in content
        assert b"canaryuser" not in content
