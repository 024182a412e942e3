"""Every requirement of data, evaluation and reports that has a number has a test with that number in its name."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOMS = {
    "d": ("unit/data", "faults/test_data_faults.py"),
    "a": ("unit/data",),
    "e": ("unit/evaluate", "unit/metrics", "unit/health"),
    "r": ("unit/data", "unit/evaluate", "unit/report"),
}
LAST = {"d": 18, "a": 7, "e": 11, "r": 8}


def names(letter):
    """Numbers that stand in names of tests, as `d8` or `trap_D8`; `fault_D8` counts faults, not requirements."""
    files = [file for room in ROOMS[letter] for file in sorted((TESTS / room).rglob("*.py")) or [TESTS / room]]
    found = [name for file in files for name in re.findall(r"def (test_\w+)", file.read_text("utf-8"))]
    wanted = re.compile(rf"(?<!fault)_{letter}(\d+)(?=_)", re.IGNORECASE)
    return {int(number) for name in found for number in wanted.findall(name)}


@pytest.mark.parametrize("letter", LAST)
def test_every_number_has_a_test(letter):
    assert sorted(set(range(1, LAST[letter] + 1)) - names(letter)) == []
