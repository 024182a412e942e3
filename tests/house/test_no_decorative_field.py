"""No decorative field: what a recipe can say, something reads; and for every field a test is named that flips it.

`observers.json` maps every leaf of the recipe to the test in which another value changes a tensor, a count, a
schedule, a hash or a text. An empty entry is an open debt: the test below lists them.
"""

import ast
import json
from pathlib import Path

from luthier.core.settings import Settings
from luthier.recipe import Recipe

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OBSERVERS = HERE / "observers.json"
NOT_READ_YET: set[str] = set()
"""Debt: fields that nothing reads. Only ever make this smaller."""


def is_source(settings) -> bool:
    """Stages and data sources are values of a list, not sections."""
    return settings.__name__ in ("Stage", "SourceSettings")


def leaves(settings=Recipe, prefix=""):
    for name, info in settings.model_fields.items():
        options = (info.annotation, *getattr(info.annotation, "__args__", ()))
        inner = [item for item in options if isinstance(item, type) and issubclass(item, Settings)]
        if inner and not is_source(inner[0]):
            yield from leaves(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name


LEAVES = list(leaves())


def words_of_the_code() -> set[str]:
    """Every attribute and every string that code outside of settings classes uses."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        if path.name == "settings.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_everything_is_read_somewhere():
    used = words_of_the_code()
    assert {path for path in LEAVES if path.rpartition(".")[2] not in used} <= NOT_READ_YET


def test_the_table_names_every_field():
    assert list(json.loads(OBSERVERS.read_text("utf-8"))) == LEAVES


def test_named_observers_exist():
    for path, observer in json.loads(OBSERVERS.read_text("utf-8")).items():
        if observer:
            file, _, name = observer.partition("::")
            assert (ROOT / file).is_file(), f"{path}: {file}"
            assert f"def {name}(" in (ROOT / file).read_text("utf-8"), f"{path}: {observer}"


def test_no_field_is_without_an_observer():
    missing = [path for path, observer in json.loads(OBSERVERS.read_text("utf-8")).items() if not observer]
    assert not missing
