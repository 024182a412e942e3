"""Every fault has a proof, and every proof that is named exists."""

import re

import matrix
import pytest

ROOT = matrix.TESTS.parent


def exists(place):
    file, name = place.split("::")
    return (matrix.TESTS / file).is_file() and name in matrix.tests_of(matrix.TESTS / file)


def test_every_fault_has_a_test_that_exists():
    found = matrix.proofs()
    assert not [fault for fault in matrix.FAULTS if fault not in found and fault not in matrix.OPEN]
    assert not [place for places in found.values() for place in places if not exists(place)]


def test_every_line_of_the_threat_model_names_tests_that_exist():
    document = ROOT / "docs" / "threat_model.md"
    if not document.is_file():
        pytest.skip("an installed package has no docs")
    rows = [line for line in document.read_text("utf-8").split("\n") if re.match(r"\| [A-H]\d", line)]
    assert len(rows) >= len(matrix.FAULTS)
    for row in rows:
        named = re.findall(r"`((?:faults|unit|story|house|golden|battery)/[\w/.]+::\w+)`", row)
        assert named or "no test" in row, row
        assert not [place for place in named if not exists(place)], row
    assert {line.split("|")[1].strip() for line in rows} >= set(matrix.FAULTS)
