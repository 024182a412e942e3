"""The page that compares methods: fresh, and right in what it judges."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def maker():
    path = ROOT / "docs" / "make_comparison_page.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(**points):
    return [
        {"set": "s", "method": method, "seed": seed, "accuracy": (value + shift) / 100, "loss": 0.5, "share": 0.01,
         "train_rows": 10, "test_rows": 5, "cpu_seconds": 7.0}
        for method, value in points.items() for seed, shift in enumerate((-1, 0, 1))
    ]  # fmt: skip


def test_the_page_is_fresh(maker):
    assert maker.PAGE.read_text("utf-8") == maker.page(), "python docs/make_comparison_page.py"


def test_the_judge_can_say_yes_and_no(maker):
    good = cells(probe=70, lora=80, bottleneck=79, full=81, prefix=77)
    assert maker.judge(good) == dict.fromkeys(maker.GOALS, True)
    bad = cells(probe=80, lora=80, bottleneck=77.9, full=81, prefix=76.9)
    assert maker.judge(bad) == dict.fromkeys(maker.GOALS, False)
    assert maker.judge(cells(lora=80)) == {}


def test_rows_of_the_table(maker):
    head = {"rows": 10, "epochs": 1, "batch": 2}
    text = maker.encoders({**head, "cells": cells(probe=70, lora=80)})
    assert "| lora | 80.0 ± 1.0 | 0.500 ± 0.000 | 1.000 | 7 | 3 |" in text
    assert "- probe < lora: holds" in text
