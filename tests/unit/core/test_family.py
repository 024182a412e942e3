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
