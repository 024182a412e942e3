"""Columns by their buffers are the columns that pyarrow makes, and pandas stays out."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from luthier.data import arrow


@pytest.mark.parametrize("values", [[], ["a", "", "häß", "犬🐕"], ["a", None, "b", None, *map(str, range(20))], [None]])
def test_texts(values):
    made = arrow.texts(values)
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.string()))
    assert (made.null_count, made.to_pylist()) == (values.count(None), values)
    assert made.take(arrow.numbers(np.arange(len(values))[::-1])).to_pylist() == values[::-1]


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_numbers(kind):
    values = np.array([3, 1, 2, 9], kind)[::2]
    assert arrow.numbers(values).equals(pa.array([3, 2], pa.int64()))


def test_loading_rows_leaves_pandas_alone():
    code = """
import sys
from luthier.data import load
from luthier.data.settings import DataSettings
rows = load.load(DataSettings(train="builtin", max_rows=20), "instruct")
assert len(rows.examples) if hasattr(rows, "examples") else rows
sys.exit("pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
