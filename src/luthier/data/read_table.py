"""CSV, TSV and Parquet as a stream of rows. Cells of text tables are text; nothing is guessed to be a number."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from luthier.core.errors import DataError
from luthier.data.read_bytes import MAX_ROW_BYTES, Fault, Raw, decode, lines

Note = Callable[[str], None]
_NAME = re.compile(r"[^\W\d][\w .\-/]{0,39}$")
_BATCH = 1024


class _Physical:
    """Feeds decoded lines to the csv module and remembers where they are."""

    def __init__(self, path: Path, encoding: str):
        self._lines = lines(path, encoding)
        self.line = 0

    def __iter__(self) -> _Physical:
        return self

    def __next__(self) -> str:
        self.line, offset, data = next(self._lines)
        nul = data.find(b"\0")
        if nul >= 0:
            raise ValueError(f"a NUL byte at byte {offset + nul}")
        return decode(data, offset) + "\n"


def read_delimited(path: Path, kind: str, known: frozenset[str], note: Note, encoding: str) -> Iterator[Raw | Fault]:
    """Rows of a CSV or TSV file as {column: text}.

    The first row is the header if it names a known column or looks like names; else columns are numbered
    "0", "1", … and a format gives them meaning. A row with too many or too few cells is a Fault.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    delimiter, quoting = _dialect(path, kind, note, encoding)
    physical = _Physical(path, encoding)
    reader = csv.reader(physical, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    first = True
    while True:
        start = physical.line + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"the quoting is broken: {error}",
                where=f"{path}:{start}",
                remedy="a quote inside a quoted cell is written twice; the cell must be closed",
            ) from None
        except ValueError as error:
            raise DataError(str(error), where=f"{path}:{physical.line}", remedy="save the file as UTF-8 text") from None
        if not cells or (len(cells) == 1 and not cells[0].strip()):
            continue
        if first:
            first = False
            if _is_header(cells, known):
                header = _unique(cells, path)
                continue
            header = [str(index) for index in range(len(cells))]
            note(f"{path}: no header; {len(cells)} columns")
        assert header is not None
        if len(cells) != len(header):
            yield Fault(
                start, f"{len(cells)} cells where {len(header)} are expected", "quote cells that hold a delimiter"
            )
            continue
        yield Raw(dict(zip(header, cells, strict=True)), start)


def _dialect(path: Path, kind: str, note: Note, encoding: str) -> tuple[str, Literal[0, 3]]:
    delimiter = "\t" if kind == "tsv" else ","
    sample: list[str] = []
    size = 0
    for _, offset, line in lines(path, encoding):
        try:
            sample.append(decode(line, offset) + "\n")
        except ValueError:
            break  # told, with its line, when the rows are read
        size += len(line)
        if size > 1 << 18:
            break
    if sample and delimiter == "," and "," not in sample[0]:
        for other in (";", "\t"):
            if other in sample[0]:
                note(f"{path}: cells are parted by {other!r}, not by a comma")
                delimiter = other
                break
    if delimiter == "\t" and any('"' in line for line in sample) and not _quoted(sample, delimiter):
        note(f"{path}: quotes are plain characters here, not csv quoting")
        return delimiter, csv.QUOTE_NONE
    return delimiter, csv.QUOTE_MINIMAL


def _quoted(sample: list[str], delimiter: str) -> bool:
    """Whether csv quoting explains the sample: it parses, and every row has the same number of cells."""
    try:
        rows = list(csv.reader(sample[:-1] or sample, delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return len({len(row) for row in rows if row}) <= 1


def _is_header(cells: list[str], known: frozenset[str]) -> bool:
    names = [cell.strip().lower() for cell in cells]
    if len(cells) > 1 and any(name in known for name in names):
        return True
    if len(cells) == 1:
        return names[0] in known
    return all(_NAME.match(name) and len(name.split()) <= 3 for name in names) and len(set(names)) == len(names)


def _unique(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"the column {name!r} stands twice", where=f"{path}:1", remedy="rename one of them")
    return names


def read_parquet(path: Path) -> Iterator[Raw | Fault]:
    """Rows of a Parquet file, a batch at a time. Row numbers stand for lines."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, thrift_string_size_limit=64 << 20, thrift_container_size_limit=1 << 20) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                if batch.nbytes > 4 * MAX_ROW_BYTES:
                    raise DataError(
                        f"{_BATCH} rows take more than {batch.nbytes >> 20} MiB",
                        where=f"{path}:{number + 1}",
                        remedy="split the rows into smaller documents",
                    )
                for value in batch.to_pylist():
                    number += 1
                    yield Raw(value, number)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"not a sound Parquet file: {str(error).splitlines()[0][:200]}",
            where=str(path),
            remedy="fetch or write the file again",
        ) from None
