"""YAML without its surprises: YAML 1.2 scalars, no repeated keys, no aliases, no tags, bounded size and depth.

PyYAML reads `1e-4` as a string, `no` as False, `12:30` as 750, keeps the last of two equal keys, and an alias
bomb passes `safe_load`. Here each of these is read as meant, or refused with its line.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from luthier.core.errors import RecipeError

MAX_BYTES, MAX_DEPTH = 1 << 20, 24
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")


@dataclass
class Document:
    """Plain values and, for every key path (`train.lr`), the 1-based line it stands on."""

    value: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    name: str = "recipe"

    def where(self, path: str) -> str:
        """`recipe.yaml:12: train.lr`, with the nearest known ancestor's line."""
        probe = path
        while probe and probe not in self.lines:
            probe = probe.rpartition(".")[0]
        return f"{self.name}:{self.lines[probe]}: {path}" if probe else f"{self.name}: {path}"


def scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema: null, true/false, integers, floats (`1e-4` too), else text."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        number = float(text.replace("_", ""))
        return number if math.isfinite(number) else text
    return text


def load(text: str, name: str = "recipe") -> Document:
    """Parse a mapping. RecipeError with file:line for anything ambiguous or hostile."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise RecipeError("the recipe is larger than 1 MB", where=name, remedy="put data into data files")
    try:
        _scan(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise RecipeError(f"not valid YAML: {what}", where=f"{name}{line}", remedy="check the indentation") from None
    document = Document({}, name=name)
    if node is None:
        return document
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError("a recipe is a mapping of keys", where=name, remedy="start with `model: {path: builtin}`")
    document.value = _build(node, "", document)
    return document


def _scan(text: str, name: str) -> None:
    """Refuse aliases, tags, several documents and deep nesting before anything is built."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark = event.start_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise RecipeError("anchors and aliases are not allowed", where=where, remedy="write the values out")
        if tag := getattr(event, "tag", None):
            raise RecipeError(f"the tag {tag} is not allowed", where=where, remedy="remove the tag")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or documents > 1:
            raise RecipeError("nested too deeply, or several documents", where=where, remedy="one flat document")


def _build(node: yaml.Node, path: str, document: Document) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, f"{path}.{index}".strip("."), document) for index, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError("a key must be plain text", where=f"{document.name}:{line}")
        key = str(key_node.value)
        inner = f"{path}.{key}".strip(".")
        if key in result:
            first = document.lines[inner]
            raise RecipeError(
                f"the key {inner!r} stands twice (first in line {first})",
                where=f"{document.name}:{line}",
                remedy="keep one of them",
            )
        document.lines[inner] = line
        result[key] = _build(value_node, inner, document)
    return result


def dump(value: Any) -> str:
    """YAML text that `load` reads back to the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = scalar(text) == text and isinstance(scalar(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


def _represent_float(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    mantissa, exponent, power = repr(number).partition("e")  # PyYAML would tag 1e-05, but not 1.0e-05
    return dumper.represent_scalar("tag:yaml.org,2002:float", f"{float(mantissa)!r}{exponent}{power}")


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)
