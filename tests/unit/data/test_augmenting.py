"""A1-A7: augmentation adds, never replaces; touches inputs only; is seeded by row; works in both languages."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from luthier.core.errors import DataError, RecipeError
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


class Answers(BaseHTTPRequestHandler):
    """A server that speaks the OpenAI protocol and rewrites by rule; `trouble` lists what goes wrong first."""

    trouble: ClassVar = []
    asked: ClassVar = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Answers.asked.append((self.path, self.headers.get("Authorization"), body))
        code = Answers.trouble.pop(0) if Answers.trouble else 200
        told = body["messages"][0]["content"]
        text = told.split("\n\n", 1)[1]
        text = text.replace("dog", "hound").replace("hound", "dog") if "Translate" in told else text
        answer = {"choices": [{"message": {"content": REWRITE(text)}}]}
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


def rewrite(text):
    return "也就是说，" + text if "天气" in text else "That is, " + text


REWRITE = rewrite


@pytest.fixture(autouse=True, scope="module")
def endpoint():
    global ENDPOINT
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ENDPOINT = f"http://127.0.0.1:{server.server_port}/v1"
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    from luthier.data import rewriting

    monkeypatch.setattr(rewriting.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Answers, "trouble", [])
    monkeypatch.setattr(Answers, "asked", [])


def spec(name):
    if name in ("paraphrase", "back_translate"):
        return {"name": name, "endpoint": ENDPOINT, "model": "any"}
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
    assert list(made.examples)[: len(before)] == before, "A5: rows are added, not replaced"
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
    assert {e.id: e.turns for e in forward} != {e.id: e.turns for e in other} or name in (
        "synonyms",
        "paraphrase",
        "back_translate",
    )


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


# ---- A4: models that rewrite
def paraphrased(rows, tmp_path=None, seed=1, **more):
    return augment(rows, [spec("paraphrase") | more], seed=seed, cache=tmp_path)


def test_a4_answers_that_damage_the_text_fall_back_to_the_original_and_are_counted(monkeypatch):
    damaged = [
        lambda text: text.replace("42", "43"),
        lambda text: text.replace("<|im_end|>", ""),
        lambda text: "Ein Hund läuft und ist nicht bei den 42 Häusern mit der <|im_end|> auf dem Hügel",
        lambda text: text[:12],
        lambda text: text * 4,
        lambda text: "",
        lambda text: text,
    ]
    for change in damaged:
        monkeypatch.setattr("test_augmenting.REWRITE", change)
        made = paraphrased(examples()[:1])
        assert len(made.examples) == 1
        assert made.report["by"]["0:paraphrase"] == {"made": 0, "could_not_change": 1}


def test_a4_busy_servers_are_asked_again_and_others_are_an_error():
    Answers.trouble[:] = [429, 503]
    made = paraphrased(examples()[:1])
    assert made.examples[1].turns[0].text == "That is, " + EN
    assert len(Answers.asked) == 3
    for trouble in ([401], [302], [500] * 4):
        Answers.trouble[:] = list(trouble)
        with pytest.raises(DataError, match="does not answer: HTTP"):
            paraphrased(examples()[:1], seed=len(trouble) + trouble[0])
    assert {path for path, _, _ in Answers.asked} == {"/v1/chat/completions"}, "a redirect is not followed"


def test_a4_a_resumed_run_gets_the_same_rows_from_the_cache_without_asking(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-this-test")
    first = list(paraphrased(examples(), tmp_path).examples)
    asked = len(Answers.asked)
    assert asked == 10
    assert Answers.asked[0][1] == "Bearer secret-of-this-test"
    with open(tmp_path / "rewritten.jsonl", "a") as handle:
        handle.write('{"key": "torn')
    assert list(paraphrased(examples()[::-1], tmp_path).examples)[::-1][-10:] == first[:10]
    assert len(Answers.asked) == asked
    assert b"secret-of-this-test" not in (tmp_path / "rewritten.jsonl").read_bytes()
    nested = augment(examples(), [{"name": "one_of", "parts": [spec("paraphrase")]}], seed=9, cache=tmp_path / "other")
    assert len(nested.examples) == 20
    assert (tmp_path / "other" / "rewritten.jsonl").is_file()


def test_a4_the_number_of_requests_is_bounded():
    made = paraphrased(examples(), limit=3)
    assert made.report["by"]["0:paraphrase"] == {"made": 3, "could_not_change": 7}


def test_translation_goes_there_and_back():
    augment(examples()[:2], [spec("back_translate")], seed=1)
    told = [body["messages"][0]["content"].split(".")[0] for _, _, body in Answers.asked]
    assert told == [f"Translate the text into {name}" for name in ("Chinese", "English", "English", "Chinese")]


@pytest.mark.parametrize("name", ["paraphrase", "back_translate"])
@pytest.mark.parametrize("given", [{}, {"model": "/absent"}, {"model": "gpt2"}, {"endpoint": "ftp://host"}])
def test_without_a_model_that_is_here_it_is_refused_before_anything_is_asked(name, given):
    with pytest.raises(RecipeError, match=r"local folder|no model folder|must begin"):
        AUGMENTERS.parse({"name": name, **given})


def test_a_local_model_rewrites_without_network(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    member = AUGMENTERS.parse({"name": "paraphrase", "model": "builtin", "max_tokens": 8, "temperature": 0})
    answer = member.rewriter.ask("Say something.", 1)
    assert isinstance(answer, str)
    assert answer == member.rewriter.ask("Say something.", 2), "greedy: the seed changes nothing"
    assert member.rewriter.requests == 2
