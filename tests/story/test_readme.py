"""Every code block of both READMEs is executed as it stands (but for `make`, which CI itself calls)."""

import os
import re
import shlex
import shutil
import subprocess
import sys
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
        if arguments[0] == "serve":
            continue  # tests/unit/serve asks a server the page's own questions
        done = luthier(place, *arguments)
        assert done.stdout.strip()
    (place / "page.py").write_text(blocks("README.md", "python")[0], "utf-8")
    said = call(place, [sys.executable, "page.py"]).stdout
    assert "report.html" in said
    assert (place / "my-adapter" / "adapter_model.safetensors").is_file()


def test_the_two_pages_show_the_same_recipe():
    def bare(text):
        return [line.split("#")[0].rstrip() for line in text.splitlines()]

    assert bare(blocks("README.md", "yaml")[0]) == bare(blocks("README.zh.md", "yaml")[0])


@pytest.mark.slow
def test_the_commands_of_the_chinese_page(place):
    for words in commands("README.zh.md"):
        if words[0] == "luthier":
            runs = sorted((place / "runs").glob("*"))
            arguments = [str(runs[0]) if word == "RUN" else word for word in words[1:]]
            extra = ["train.steps=4", "train.epochs=null"] if any("report.language" in word for word in arguments) else []
            luthier(place, *arguments, *extra)
