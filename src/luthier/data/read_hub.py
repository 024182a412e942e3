"""Hugging Face datasets: hub names and `save_to_disk` folders. `datasets` is imported only here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from luthier.core.errors import DataError, MissingExtra
from luthier.data.read import Located, split_word
from luthier.data.read_bytes import Fault, Raw

SPLIT_COLUMN = "__split__"
"""A row of a dataset with several splits carries its split's name here."""


def rows(located: Located) -> Iterator[Raw | Fault]:
    """Every row of every split; integer class labels become their names."""
    number = 0
    for split, dataset in _open(located).items():
        names = {
            column: feature for column, feature in dataset.features.items() if type(feature).__name__ == "ClassLabel"
        }
        for value in dataset:
            number += 1
            row = dict(value)
            for column, feature in names.items():
                code = row.get(column)
                if isinstance(code, int) and 0 <= code < feature.num_classes:
                    row[column] = feature.int2str(code)
            if split:
                row[SPLIT_COLUMN] = split
            yield Raw(row, number)


def _open(located: Located) -> dict[str, Any]:
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"reading {located.path!r}", "hub") from None
    with suppress(AttributeError):
        datasets.disable_progress_bars()
    name, _, config = located.path.partition(":")
    try:
        if located.kind == "saved":
            found = datasets.load_from_disk(located.path)
        else:
            found = datasets.load_dataset(name, config or None)
    except Exception as error:  # the library raises its own, requests' and pyarrow's errors alike
        logging.getLogger(__name__).debug("datasets failed", exc_info=True)
        raise DataError(
            f"the dataset {located.path!r} cannot be loaded: {str(error).splitlines()[0][:200]}",
            where="data.train",
            remedy="is it a file path? Offline, a hub dataset must be in the cache; configs are NAME:CONFIG",
        ) from None
    if not hasattr(found, "keys"):
        return {"": found}
    return {split_word(str(split)) or "train": part for split, part in found.items() if str(split) != "unsupervised"}
