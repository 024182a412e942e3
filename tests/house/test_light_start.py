"""`--help`, `list`, `check --quick`, `report` and the recipe start without torch, and help within half a second."""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "datasets", "sklearn")
FAMILIES = ("methods", "formats", "templates", "augmenters", "contexts", "tasks", "metrics", "diagnoses", "exporters")
HELP_SECONDS = 0.5


def loaded(code: str) -> set[str]:
    """Which heavy modules a fresh interpreter has after `code`."""
    tail = f"; import sys; sys.stderr.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split()) & set(HEAVY)


def verb(*words: str) -> set[str]:
    return loaded(f"from luthier.cli import app; code = app.outcome({list(words)!r}); assert code == 0, code")


def test_help():
    assert not verb("--help")


@pytest.mark.parametrize("family", FAMILIES)
def test_list(family):
    assert not verb("list", family)


@pytest.mark.parametrize("what", ["models", "runs"])
def test_list_others(what, tmp_path):
    assert not verb("list", what, "--root", str(tmp_path))


@pytest.mark.parametrize("name", ["check", "run", "report", "evaluate", "health", "generate", "export", "list", "new"])
def test_help_of_a_verb(name):
    assert not verb(name, "--help")


def test_check_quick():
    assert not verb("check", "recipes/demo.yaml", "--quick", "--json")


def test_recipe_and_schema():
    assert not loaded("import luthier; luthier.Recipe.load('recipes/demo.yaml'); luthier.Recipe.schema()")


def test_public_import():
    assert not loaded("import luthier; dir(luthier)")


def test_help_is_quick():
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "luthier.cli", "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ}, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    once()
    assert statistics.median(once() for _ in range(3)) <= HELP_SECONDS
