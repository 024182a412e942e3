"""Every code block of both READMEs is executed as it stands (but for `make`, which CI itself calls)."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = ("README.md", "README.zh.md")


def blocks(page, language):
    return [text for kind, text in FENCE.findall((ROOT / page).read_text("utf-8")) if kind == language]


def commands(page):
    for text in blocks(page, "console"):
        for line in text.splitlines():
            if line.startswith("$ "):
                yield shlex.split(line[2:], comments=True)


def call(place, command):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done


def luthier(place, *arguments):
    return call(place, [sys.executable, "-m", "luthier", *arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the shipped recipes, the README's recipe, and one finished run of it."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "recipe.yaml").write_text(blocks("README.md", "yaml")[0], "utf-8")
    return folder


@pytest.mark.slow
def test_the_commands_and_the_python_of_the_english_page(place):
    for words in commands("README.md"):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            continue
        assert words[0] == "luthier"
        runs = sorted((place / "runs").glob("*")) if (place / "runs").is_dir() else []
        arguments = [str(runs[0]) if word == "RUN" else word for word in words[1:]]
        if arguments[0] in ("serve", "studio"):
            continue  # the one is asked below, the other in its own tests
        if arguments[0] == "sweep":
            arguments += ["train.epochs=null", "train.steps=2", "evaluate.generate_rows=8"]
        done = luthier(place, *arguments)
        assert done.stdout.strip()
    _ask_as_the_page_says(place, runs[0])
    (place / "page.py").write_text(blocks("README.md", "python")[0], "utf-8")
    said = call(place, [sys.executable, "page.py"]).stdout
    assert "report.html" in said
    assert (place / "my-adapter" / "adapter_model.safetensors").is_file()


def _ask_as_the_page_says(place, run):
    """`luthier serve`, and the page's own curl line against it (on a free port)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "luthier", "serve", f"tutor={run}", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert "serving base, tutor" in server.stderr.readline()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
                break
            time.sleep(0.1)
        words = shlex.split(blocks("README.md", "sh")[0].replace(":8000/", f":{port}/"))
        assert words[0] == "curl"
        asked = urllib.request.Request(
            words[1], words[words.index("-d") + 1].encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            said = json.load(answer)
        assert said["model"] == "tutor"
        assert said["choices"][0]["message"]["content"]
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0


def test_the_two_pages_show_the_same_recipe():
    def bare(text):
        return [line.split("#")[0].rstrip() for line in text.splitlines()]

    assert bare(blocks("README.md", "yaml")[0]) == bare(blocks("README.zh.md", "yaml")[0])


@pytest.mark.slow
def test_the_commands_of_the_chinese_page(place):
    shutil.rmtree(place / "merged-model", ignore_errors=True)  # the English page may have written it
    for words in commands("README.zh.md"):
        if words[:2] != ["luthier", "serve"] and words[0] == "luthier":
            runs = sorted((place / "runs").glob("*"))
            arguments = [str(runs[0]) if word == "RUN" else word for word in words[1:]]
            extra = (
                ["train.steps=4", "train.epochs=null"] if any("report.language" in word for word in arguments) else []
            )
            luthier(place, *arguments, *extra)
