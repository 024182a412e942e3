"""Every shipped recipe is valid, means the same after a dump, and every code block of the README runs."""

import re
from pathlib import Path

import pytest

from luthier.core import strict_yaml
from luthier.recipe import Recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))
PAGES = [path for path in (ROOT / "README.md", ROOT / "README.zh.md", *(ROOT / "docs").glob("*.md")) if path.is_file()]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid(path):
    recipe = Recipe.load(path)
    assert Recipe.parse(recipe.dump()) == recipe


def blocks(language: str) -> list:
    pages = [(page.name, enumerate(FENCE.finditer(page.read_text("utf-8")))) for page in PAGES]
    found = [(f"{name}-{place}", block) for name, listed in pages for place, block in listed]
    return [pytest.param(block[2], id=name) for name, block in found if block[1] == language]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_in_the_pages_is_a_recipe(text):
    document = strict_yaml.load(text)
    if set(document.value) <= set(Recipe.model_fields):
        Recipe.build(document)


@pytest.mark.parametrize("text", blocks("python"))
def test_python_in_the_pages_compiles(text):
    compile(text, "page", "exec")


@pytest.mark.parametrize("text", blocks("bash"))
def test_commands_in_the_pages_name_real_verbs_and_options(text):
    from luthier.cli.app import build, verbs

    for line in text.replace("\\\n", " ").splitlines():
        words = line.split("#")[0].split()
        if words[:1] != ["luthier"] or len(words) < 2 or words[1].startswith("-"):
            continue
        assert words[1] in verbs(), line
        known = {option for param in build(words[1]).params for option in (*param.opts, *param.secondary_opts)}
        used = {word.split("=")[0] for word in words[2:] if word.startswith("--") and "." not in word.split("=")[0]}
        assert used <= known | {"--help", "--debug"}, line


def test_the_recipe_page_is_fresh():
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_recipe_page", ROOT / "docs" / "make_recipe_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text("utf-8") == module.page(), "python docs/make_recipe_page.py"
