"""The built-in data sets: as their generator writes them, answerable from the base's world, split by people."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.data import builtin
from luthier.data.builtin import generate
from luthier.data.load import load
from luthier.data.settings import DataSettings, SplitSettings
from luthier.data.split import split
from luthier.models.builtin.world import people

NAMES = ["biography", "card", "classify", "general", "instruct", "long", "short_en", "short_zh"]


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in builtin.path(name).read_text("utf-8").splitlines()]


def test_names() -> None:
    assert builtin.names() == NAMES


def test_an_unknown_name_is_a_sentence_with_a_suggestion() -> None:
    with pytest.raises(DataError, match="short_eng") as caught:
        builtin.path("short_eng")
    assert "short_en" in str(caught.value.remedy)


def test_asking_for_names_needs_no_torch() -> None:
    code = "import sys; from luthier.data import builtin; from luthier.models.builtin import folder; "
    code += "builtin.names(); folder(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shipped_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    generate.write(tmp_path)
    for name in NAMES:
        assert filecmp.cmp(tmp_path / f"{name}.jsonl", builtin.path(name), shallow=False), name


def test_they_stay_small() -> None:
    assert sum(builtin.path(name).stat().st_size for name in NAMES) < 1_000_000


def test_every_person_is_asked_about() -> None:
    known = {person.name for person in people()}
    for name in NAMES:
        if name not in ("general", "long"):
            assert {row["group"] for row in rows(name)} == known


def test_answers_are_the_facts_of_the_world() -> None:
    by_name = {person.name: person for person in people()}
    for row in rows("card"):
        person = by_name[row["input"]]
        assert json.loads(row["output"]) == {key: person.value(key) for key in ("town", "job", "pet")}
    for row in rows("classify"):
        assert row["group"] in row["text"]
        assert row["label"] == by_name[row["group"]].value("club")
        assert row["label"] not in row["text"]


def test_no_answer_stands_in_its_question() -> None:
    for name in ("short_en", "short_zh"):
        assert not [row for row in rows(name) if row["output"] in row["instruction"]]


@pytest.mark.parametrize(("name", "task"), [("instruct", "instruct"), ("classify", "classify")])
def test_a_split_keeps_people_apart(name: str, task: str) -> None:
    settings = DataSettings(train=f"builtin:{name}", split=SplitSettings(validation=0.2, test=0.3))
    parts = split(load(settings, task), settings.split, task)
    groups = [set(part.column("group")) for part in (parts.train, parts.validation, parts.test)]
    assert all(groups)
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert len(groups[2]) > 60
