"""Families find, suggest, parse; a new member is one file."""

import pytest

from luthier.core.errors import RecipeError
from luthier.core.family import Family
from luthier.core.plugin import load_plugin
from luthier.core.settings import Settings

FRUIT = Family("fruit", "luthier.core")


@FRUIT.register("apple")
class Apple:
    """A round one."""

    class Params(Settings):
        """Settings."""

        size: int = 3

    def __init__(self, params):
        self.params = params


def test_a_name_and_a_mapping_both_parse():
    assert FRUIT.parse("apple").params.size == 3
    assert FRUIT.parse({"name": "apple", "size": 5}).params.size == 5


@pytest.mark.parametrize(
    ("spec", "hint"),
    [("aple", "did you mean 'apple'"), ({"name": "apple", "sice": 1}, "did you mean 'size'"), ({"size": 1}, "known")],
)
def test_typos_are_told(spec, hint):
    with pytest.raises(RecipeError) as caught:
        FRUIT.parse(spec)
    assert hint in str(caught.value)


def test_a_plugin_is_one_file(tmp_path):
    file = tmp_path / "pear.py"
    file.write_text(
        "from tests_fruit import FRUIT\n"
        "from luthier.core.settings import Settings\n"
        "@FRUIT.register('pear')\n"
        "class Pear:\n"
        "    'A long one.'\n"
        "    class Params(Settings):\n"
        "        pass\n"
        "    def __init__(self, params): self.params = params\n"
    )
    import sys
    import types

    module = types.ModuleType("tests_fruit")
    module.FRUIT = FRUIT
    sys.modules["tests_fruit"] = module
    load_plugin(file)
    assert FRUIT.summaries()["pear"] == "A long one."
    assert FRUIT.parse("pear").name == "pear"


def test_summaries_do_not_import(tmp_path):
    from luthier.context import CONTEXTS

    assert CONTEXTS.summaries()["linear"].startswith("Position interpolation")


def plugin(tmp_path, text):
    file = tmp_path / "fig.py"
    file.write_text(text)
    return file


def test_a_plugin_may_use_dataclasses_with_postponed_annotations(tmp_path):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
    load_plugin(plugin(tmp_path, text + "@dataclass\nclass Fig:\n    kind: ClassVar[str] = 'a'\n    size: int = 3\n"))


@pytest.mark.parametrize("text", ["raise SystemExit(0)", "1 / 0", "import nothing_like_this", "def ("])
def test_a_plugin_that_fails_or_exits_is_told(tmp_path, text):
    import sys

    before = set(sys.modules)
    with pytest.raises(RecipeError, match="cannot be imported"):
        load_plugin(plugin(tmp_path, text))
    assert not [name for name in set(sys.modules) - before if name.startswith("luthier_plugin")]


def test_a_plugin_cannot_take_the_name_of_a_member_of_ours(tmp_path):
    from luthier.methods import METHODS

    text = "from luthier.methods import METHODS\n@METHODS.register('lora')\nclass Evil:\n    pass\n"
    with pytest.raises(RecipeError, match="of its own"):
        load_plugin(plugin(tmp_path, text))
    assert METHODS.get("lora").__module__ == "luthier.methods.lora"


def test_an_entry_point_that_does_not_load_is_told(monkeypatch):
    from importlib.metadata import EntryPoint

    from luthier.core import family

    point = EntryPoint("plum", "nothing_like_this:Plum", "luthier.fruit")
    monkeypatch.setattr(family, "entry_points", lambda group: [point])
    with pytest.raises(RecipeError, match="nothing_like_this"):
        FRUIT.get("plum")
