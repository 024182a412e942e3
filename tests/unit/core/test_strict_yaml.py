"""FAULTS B2, B3: YAML is read as meant, or refused."""

import time

import pytest

from luthier.core import strict_yaml
from luthier.core.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("2E5", 2e5), ("1.5", 1.5), (".5", 0.5), ("-3", -3), ("1_000", 1000), ("no", "no"),
        ("yes", "yes"), ("on", "on"), ("12:30", "12:30"), ("true", True), ("null", None), ("~", None),
        ("0x10", "0x10"), ("010", "010"), ("2020-01-01", "2020-01-01"), ("'1e-4'", "1e-4"), (".inf", ".inf"),
        ("nan", "nan"), ("1e999", "1e999"),
    ],
)  # fmt: skip
def test_scalars_are_read_as_meant(text, value):
    read = strict_yaml.load(f"key: {text}").value["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", 3),
        ("a: &x 1\nb: *x\n", 1),
        ("a: !!python/object/apply:os.system [ls]\n", 1),
        ("a: 1\n b: 2\n", 2),
        ("- 1\n- 2\n", None),
        ("a: 1\n---\nb: 2\n", 2),
        ("? [1, 2]\n: 3\n", 1),
        ("a: " + "[" * 100 + "]" * 100, 1),
    ],
)
def test_ambiguous_and_hostile_documents_are_refused_with_a_line(text, line):
    with pytest.raises(RecipeError) as caught:
        strict_yaml.load(text, name="r.yaml")
    assert caught.value.exit_code == 2
    assert caught.value.where.startswith("r.yaml")
    assert line is None or f"r.yaml:{line}" in caught.value.where


def test_alias_bomb_is_refused_at_once():
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join('*' + chr(97 + i) for _ in range(9))}]\n" for i in range(9)
    )
    start = time.perf_counter()
    with pytest.raises(RecipeError):
        strict_yaml.load(bomb)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("value", ["no", "1e-4", "null", "12", "a: b", "# x", "", "中文", "it's", 1e-5, 3, True, None])
def test_dump_reads_back(value):
    assert strict_yaml.load(strict_yaml.dump({"key": [value, {"inner": value}]})).value == {
        "key": [value, {"inner": value}]
    }
