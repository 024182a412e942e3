"""FAMILY of row layouts. A format says whether it fits a file's columns, and turns a raw row into Examples.

A member has `covers` (formats that also fit such rows, but say less of them), `aliases` (column names that
it knows), `fits(keys, row)` and `examples(fields, task)`.
"""

from luthier.core.family import Family

FORMATS = Family("formats", __name__)
