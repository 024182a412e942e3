"""Writes docs/recipe.md from the settings classes: `python docs/make_recipe_page.py`. A test keeps it fresh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.core.settings import Settings
from luthier.recipe import Recipe, Stage

PAGE = Path(__file__).with_name("recipe.md")
HEAD = """\
# The recipe

A recipe is one YAML file that says everything which decides a run. Unknown and repeated keys are errors with a
suggestion, `1e-4` is a number, and every key can also be given on the command line: `luthier run r.yaml train.lr=1e-4`.
`luthier new r.yaml` writes a commented starter, `luthier check r.yaml` shows the recipe with every default filled in.
Editors that know JSON Schema read `recipe.schema.json`.

This page is made from the settings classes themselves.
"""


def page() -> str:
    """The whole page."""
    top, parts = [], []
    for name, info in Recipe.model_fields.items():
        inner = settings_of(info.annotation)
        if inner is not None and inner is not Stage:
            parts.append(part(name, inner))
        else:
            top.append(row(name, info))
    return (
        "\n".join([HEAD, "## At the top", "", *table(top), *(line for lines in parts for line in lines)]).rstrip()
        + "\n"
    )


def part(name: str, settings: type[Settings]) -> list[str]:
    """One `##` section with its nested settings as dotted keys."""
    doc = (settings.__doc__ or "").strip().split("\n")[0]
    return ["", f"## `{name}:`", "", doc, "", *table(rows(settings))]


def rows(settings: type[Settings], prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, help) of all fields, nested ones with a dotted key."""
    found = []
    for name, info in settings.model_fields.items():
        inner = settings_of(info.annotation)
        if (
            inner is not None
            and not info.is_required()
            and isinstance(info.get_default(call_default_factory=True), Settings)
        ):
            found += rows(inner, f"{prefix}{name}.")
        else:
            found.append(row(prefix + name, info))
    return found


def row(name: str, info: Any) -> tuple[str, str, str]:
    """One line of a table."""
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    return name, json.dumps(default, default=str), " ".join((info.description or "").split()) or choices(info)


def choices(info: Any) -> str:
    """`a | b | c` for a field that has no help but a fixed set of values."""
    values = getattr(info.annotation, "__args__", ())
    return " | ".join(map(str, values)) if values and all(isinstance(value, str) for value in values) else ""


def settings_of(annotation: Any) -> type[Settings] | None:
    """The settings class in an annotation, or None."""
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, Settings):
            return option
    return None


def table(lines: list[tuple[str, str, str]]) -> list[str]:
    """A Markdown table."""
    cells = [(f"`{name}`", f"`{default}`", text.replace("|", "\\|")) for name, default, text in lines]
    return ["| key | default | meaning |", "|---|---|---|", *(f"| {' | '.join(cell)} |" for cell in cells)]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
