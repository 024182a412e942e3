"""The public names and the names of all family members: a change here is a change that users see.

After a wanted change: `LUTHIER_SNAPSHOT=write pytest tests/house/test_snapshots.py`
"""

import json
import os
from pathlib import Path

import pytest

import luthier
from luthier.cli.listing import FAMILIES, family
from luthier.recipe import Recipe

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def same_as_file(path: Path, value) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("LUTHIER_SNAPSHOT") == "write":
        path.write_text(text, "utf-8")
    assert path.is_file(), f"{path.name} is missing; see the top of this file"
    assert path.read_text("utf-8") == text, f"{path.name} is not fresh; see the top of this file"


def test_public_names():
    same_as_file(HERE / "public_names.json", sorted(luthier.__all__))
    for name in luthier.__all__:
        assert getattr(luthier, name) is not None


def test_family_members():
    same_as_file(HERE / "family_members.json", {name: family(name).names() for name in FAMILIES})


@pytest.mark.parametrize("name", FAMILIES)
def test_every_member_has_a_summary(name):
    for member, text in family(name).summaries().items():
        assert text, f"{name} {member} has no docstring"


def test_recipe_schema_is_fresh():
    same_as_file(ROOT / "recipe.schema.json", Recipe.schema())
