"""docs/serving.md: its curl line and its Python are sent to a server as they stand (but for the port)."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import httpx
from serving_world import get, running

from luthier.adapted import load

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text("utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def block(kind, number=0):
    return [text for found, text in FENCE.findall(PAGE) if found == kind][number]


def test_the_page_s_curl_and_python(base, adapters):
    expected = load(adapters.folders["lora-a"]).generate("Where does Ada Moser live?", max_new_tokens=20)
    with running(base, {"tutor": adapters.folders["lora-a"]}) as server:
        words = shlex.split(block("sh").replace(":8000/", f":{server.port}/"))
        assert words[0] == "curl"
        header = dict([words[words.index("-H") + 1].split(": ")])
        answer = httpx.post(words[1], content=words[words.index("-d") + 1], headers=header, timeout=300)
        assert answer.json()["choices"][0]["message"]["content"] == expected
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(block("python").replace(":8000/", f":{server.port}/"), "serving.md", "exec"), {})
        assert f"tutor {expected}" in said.getvalue()


def test_every_route_is_on_the_page(base):
    with running(base, {}) as server:
        paths = get(f"{server.url}/openapi.json").json()["paths"]
    assert [path for path in paths if path.replace("{name}", "NAME") not in PAGE] == []
