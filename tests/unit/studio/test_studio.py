"""The pages answer, what is in a run stays text, no path leaves the root, no torch, other sites are refused."""

import http.client
import json
import os
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import fake_run

from luthier.studio import server
from luthier.studio.app import CSP, LANGUAGES, Studio, texts_of
from luthier.studio.runs import Runs

HOST = "127.0.0.1:7860"
ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</textarea></iframe><svg onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% for x in y %}",
    "' autofocus onfocus=alert(1) x='",
    "</dd><base href=//evil>",
    "\u202egnp.exe \x1b[31mred",
]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "runs"
    fake_run.make(root / "first")
    fake_run.make(root / "second", overfit=True)
    fake_run.make(root / "sweep-x" / "001-aa", state="running")
    (root / "first" / "report").mkdir(exist_ok=True)
    (root / "first" / "report" / "report.html").write_text("<h1>the report</h1>")
    return root


@pytest.fixture
def get(root):
    studio = Studio(Runs(root), frozenset({HOST}))

    def ask(target, method="GET", **headers):
        given = {"Host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return studio.answer(method, target, given)

    return ask


class Tags(HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attributes):
        self.seen |= {tag, *(f"{tag}.{name}" for name, _ in attributes)}


def tags(body):
    parser = Tags()
    parser.feed(body.decode())
    return parser.seen


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages(get, language):
    words = texts_of(language)
    listed = get(f"/?lang={language}").body.decode()
    assert all(name in listed for name in ("first", "second", "sweep-x/001-aa"))
    assert words["studio.finished"] in listed
    page = get(f"/run/first?lang={language}")
    assert page.status == 200
    assert words["studio.samples"] in page.body.decode()
    assert "Port Elm" in page.body.decode()
    assert get("/report/first").body == b"<h1>the report</h1>"
    compared = get(f"/compare?run=first&run=second&lang={language}")
    assert compared.status == 200
    assert "report.language" not in compared.body.decode()
    assert words["studio.results"] in compared.body.decode()
    apart = get(f"/compare?run=first&run=sweep-x/001-aa&lang={language}").body.decode()
    assert words["studio.unpaired"] in apart
    assert get("/compare").status == 200
    assert get("/run/third").status == get("/nothing").status == get("/static/app.py").status == 404


def test_chinese_where_the_browser_wants_it(get):
    assert texts_of("zh")["studio.title"] in get("/", Accept_Language="zh-CN,zh;q=0.9").body.decode()
    assert set(texts_of("en")) == set(texts_of("zh"))


def test_live_events(get, root):
    found = json.loads(get("/events/first?after=0").body)
    losses = dict(map(tuple, found["train"]))
    logged = [json.loads(line) for line in (root / "first" / "events.jsonl").read_text().splitlines()]
    assert losses == {e["step"]: e["loss"] for e in logged if e["kind"] == "train"}
    assert found["offset"] == (root / "first" / "events.jsonl").stat().st_size
    with open(root / "first" / "events.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 1000, "loss": 0.5, "tokens_per_s": 9.0}\n{"kind": "train", "st')
    later = json.loads(get(f"/events/first?after={found['offset']}").body)
    assert later["train"] == [[1000, 0.5]]
    assert later["live"] == {"tokens_per_s": 9.0}
    assert later["offset"] < (root / "first" / "events.jsonl").stat().st_size
    assert get("/events/first?after=-1").status == get("/events/first?after=x").status == 400


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_contents_stay_text(get, root, attack):
    pages = ("/run/first", "/", "/compare?run=first&run=evil", "/run/second")
    plain = {page: tags(get(page.replace("evil", "second")).body) for page in pages}
    name = attack.replace("/", "|")[:80]
    evil = fake_run.make(root / name)
    metrics = {**fake_run.METRICS, "primary": attack, "split": attack, "tuned": {attack: 1.0}, "base": {attack: 2.0}}
    fake_run.write_json(evil.metrics, metrics)
    fake_run.write_json(evil.health, {"verdict": attack})
    fake_run.write_json(evil.status, {"state": attack, "step": attack, "pid": attack})
    parts = ("prompt", "reference", "base", "tuned")
    fake_run.write_lines(evil.samples, [dict.fromkeys(parts, attack), {"prompt": [attack], "tuned": {"text": attack}}])
    fake_run.write_lines(evil.events, [{"kind": "warning", "what": attack}, {"kind": "train", "step": 1, "loss": 2}])
    from urllib.parse import quote

    listed = get("/")
    assert tags(listed.body) <= plain["/"]
    page = get("/run/" + quote(name))
    assert page.status == 200
    assert tags(page.body) <= plain["/run/second"] | plain["/run/first"]
    assert attack not in page.body.decode() or "<" not in attack
    assert tags(get(f"/compare?run={quote(name)}&run=first").body) <= plain["/compare?run=first&run=evil"]
    assert get("/events/" + quote(name)).kind == "application/json"
    assert b"49" not in page.body or "7 * 7" not in attack


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff\xfe", b'{"state": NaN}', b"[" * 100_000, b'{"a":1', b"null"])
def test_damaged_files_are_no_error(get, root, damage):
    for name in ("status.json", "health.json", "evaluation/metrics.json", "evaluation/samples.jsonl", "events.jsonl"):
        (root / "second" / name).write_bytes(damage)
    (root / "second" / "recipe.resolved.yaml").write_bytes(damage)
    assert get("/").status == get("/run/second").status == get("/events/second").status == 200
    assert get("/compare?run=first&run=second").status == 200


PATHS = [
    "/run/..", "/run/../secret", "/report/%2e%2e%2fsecret", "/events/..%2f..%2fetc%2fpasswd", "/report//etc/passwd",
    "/static/../app.py", "/static/%2e%2e/app.py", "/run/first%00", "/run/first/../../secret",
    "/report/first/../second/x",
    "/run/" + "a" * 3000, "/report/link", "/run/.hidden", "/static/..%5c", "/run/%ff", "//evil/run/first",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_way_out_of_the_root(get, root, path):
    secret = root.parent / "secret"
    fake_run.make(secret)
    (root / "link").symlink_to(secret)
    found = get(path)
    assert found.status in (400, 404), found.body
    assert b"Port Elm" not in found.body
    assert b"root:" not in found.body


def test_a_link_inside_a_run_is_not_followed(get, root):
    secret = root.parent / "secret.html"
    secret.write_text("SECRET")
    report = root / "first" / "report" / "report.html"
    report.unlink()
    report.symlink_to(secret)
    assert get("/report/first").status == 404


def test_headers_and_other_sites(get):
    page = get("/").headers()
    assert page["Content-Security-Policy"] == CSP
    assert "script-src 'self'" in CSP
    assert "unsafe" not in CSP
    assert (page["X-Frame-Options"], page["X-Content-Type-Options"]) == ("DENY", "nosniff")
    report = get("/report/first").headers()["Content-Security-Policy"]
    assert report.endswith("sandbox")
    assert "script-src" not in report
    assert "Access-Control-Allow-Origin" not in page
    assert get("/", Host="evil.example:7860").status == 421
    assert get("/", Host="").status == 421
    assert get("/", Sec_Fetch_Site="cross-site").status == 403
    assert {get("/", method=method).status for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH")} == {405}


def test_over_http(root):
    made = server.make(root, 0)
    assert made.server_address[0] == "127.0.0.1"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        client = http.client.HTTPConnection("127.0.0.1", made.server_port, timeout=20)
        for path, kind in (("/", "text/html"), ("/static/studio.js", "text/javascript"), ("/events/first", "json")):
            client.request("GET", path)
            found = client.getresponse()
            assert found.status == 200
            assert kind in found.headers["Content-Type"]
            assert found.read()
        client.request("POST", "/", b"x")
        assert client.getresponse().status == 405
    finally:
        made.shutdown()
        made.server_close()


def test_no_script_builds_html_from_text():
    from importlib.resources import files

    source = files("luthier.studio").joinpath("static/studio.js").read_text()
    assert not any(word in source for word in ("innerHTML", "outerHTML", "document.write", "eval(", "insertAdjacent"))
    for page in files("luthier.studio").joinpath("pages").iterdir():
        text = page.read_text()
        assert "|safe" not in text
        assert "http" not in text.replace("http-equiv", "")


def test_starts_without_torch(root):
    code = (
        "import sys, threading, http.client\n"
        "from luthier.studio import server\n"
        "from pathlib import Path\n"
        f"made = server.make(Path({str(root)!r}), 0)\n"
        "threading.Thread(target=made.serve_forever, daemon=True).start()\n"
        "for path in ('/', '/run/first', '/compare?run=first&run=second'):\n"
        "    client = http.client.HTTPConnection('127.0.0.1', made.server_port, timeout=60)\n"
        "    client.request('GET', path)\n"
        "    assert client.getresponse().status == 200, path\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'sklearn', 'fastapi', 'uvicorn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, timeout=200)
    assert done.returncode == 0, done.stderr


def test_a_port_that_is_taken_is_told(root):
    from luthier.cli import app, console

    made = server.make(root, 0)
    try:
        console.forget()
        assert app.outcome(["studio", "--port", str(made.server_port), "--root", str(root)]) == 5
        assert app.outcome(["studio", "--root", str(root / "absent")]) == 2
    finally:
        made.server_close()
