"""Bytes in, UTF-8 lines out: decompression, decoding and every bound that keeps a hostile file harmless.

Lines end at LF only (a CR before it goes with it), so that U+2028 and friends stay text. Nothing is guessed:
UTF-8 with or without BOM, or the encoding that the recipe names.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, Problem
from luthier.core.types import Source

MAX_ROW_BYTES = 32 << 20
"""A single row may not be larger: 32 MiB is far above any context window and far below any memory."""
BOMB_BYTES, BOMB_RATIO = 64 << 20, 200
"""Refuse what unpacks to more than 64 MiB and more than 200 times its size (text packs 3-10 times)."""
MAX_BLANK = 500_000
"""So many empty lines in a row are no data, and reading on would only cost time."""
BLOCK = 1 << 20
COMPRESSED = (".gz", ".zst")
_BOMS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True, slots=True)
class Raw:
    """One row as the file has it: a mapping of columns, and the 1-based line where it begins.

    `row` is its 1-based number in the file where several rows may stand on a line, else 0.
    """

    value: dict[str, Any]
    line: int
    row: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be read; the reading could go on behind it."""

    line: int
    reason: str
    remedy: str = ""
    field: str = ""
    row: int = 0


def kind_of(path: Path) -> str:
    """The suffix without compression: `rows.jsonl.gz` → `jsonl`."""
    names = path.name.lower().split(".")
    if len(names) > 1 and f".{names[-1]}" in COMPRESSED:
        names.pop()
    return names[-1] if len(names) > 1 else ""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        with gzip.open(path, "rb") as handle:
            yield handle
    elif suffix == ".zst":
        import pyarrow

        with pyarrow.input_stream(str(path), compression="zstd") as handle:
            yield handle
    else:
        with open(path, "rb") as handle:
            yield handle


def blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes after decompression. DataError for damage, for a bomb, and for what cannot be opened."""
    total, packed = 0, max(1, path.stat().st_size)
    try:
        with _opened(path) as handle:
            while block := handle.read(BLOCK):
                total += len(block)
                if path.suffix.lower() in COMPRESSED and total > BOMB_BYTES and total > BOMB_RATIO * packed:
                    raise DataError(
                        f"unpacks to more than {total >> 20} MiB from {packed >> 10} KiB: an archive bomb",
                        where=str(path),
                        remedy="unpack it by hand if this is really data",
                    )
                yield bytes(block)
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError):
            raise DataError(f"cannot be opened: {error.strerror}", where=str(path)) from None
        raise DataError(
            f"the compressed file is damaged or cut off after {total} bytes: {error}",
            where=str(path),
            remedy="fetch or pack the file again",
        ) from None


def utf8_blocks(path: Path, encoding: str = "utf-8") -> Iterator[bytes]:
    """The same as UTF-8 without BOM. Another encoding is transcoded strictly; its first bad byte is an error."""
    name = codecs.lookup(encoding).name
    stream = blocks(path)
    if name not in ("utf-8", "utf-8-sig"):
        yield from _transcoded(stream, path, encoding)
        return
    for number, block in enumerate(stream):
        head = block
        if number == 0:
            _refuse_other_unicode(block, path)
            head = block.removeprefix(codecs.BOM_UTF8)
        if head:
            yield head


def _refuse_other_unicode(block: bytes, path: Path) -> None:
    for mark, name in _BOMS:
        if block.startswith(mark):
            raise DataError(
                f"the file is {name.upper()}, not UTF-8 (byte order mark at byte 0)",
                where=str(path),
                remedy=f"save it as UTF-8, or set data.encoding: {name}",
            )


def _transcoded(stream: Iterator[bytes], path: Path, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    done, first = 0, True
    for block in stream:
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError as error:
            raise _undecodable(path, encoding, done, error) from None
        done += len(block)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        yield text.encode("utf-8", "surrogatepass")
    try:
        decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        raise _undecodable(path, encoding, done, error) from None


def _undecodable(path: Path, encoding: str, done: int, error: UnicodeDecodeError) -> DataError:
    at = max(0, done - (len(error.object) - error.end)) if done and error.start == 0 else done + error.start
    return DataError(
        f"not {encoding} near byte {at}: {error.reason}",
        where=str(path),
        remedy="name the encoding that the file really has: data.encoding",
    )


def lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, int, bytes]]:
    """(1-based line, byte offset of its start in the UTF-8 text, line without its end) for every line."""
    number, offset = 1, 0
    rest: list[bytes] = []
    size = blank = 0
    for block in utf8_blocks(path, encoding):
        parts = block.split(b"\n")
        if len(parts) > 1:
            first = b"".join([*rest, parts[0]])
            yield number, offset, first.removesuffix(b"\r")
            number, offset = number + 1, offset + len(first) + 1
            blank = _blank_run(parts, blank, path, number)
            for part in parts[1:-1]:
                yield number, offset, part.removesuffix(b"\r")
                number, offset = number + 1, offset + len(part) + 1
            rest, size = [], 0
        rest.append(parts[-1])
        size += len(parts[-1])
        if size > MAX_ROW_BYTES:
            raise too_large(path, number)
    last = b"".join(rest)
    if last:
        yield number, offset, last.removesuffix(b"\r")


def _blank_run(parts: list[bytes], before: int, path: Path, line: int) -> int:
    """How many blank lines end these parts. A block of nothing else adds to the run of the block before."""
    if any(parts):
        return 0
    if before + len(parts) > MAX_BLANK:
        raise DataError(f"more than {MAX_BLANK} empty lines in a row", where=f"{path}:{line}", remedy="is it damaged?")
    return before + len(parts)


def too_large(path: Path, line: int) -> DataError:
    """The error for a row above MAX_ROW_BYTES."""
    return DataError(
        f"a row is larger than {MAX_ROW_BYTES >> 20} MiB",
        where=f"{path}:{line}",
        remedy="split the row into documents of a sensible size; is the file one row a line?",
    )


def decode(line: bytes, offset: int) -> str:
    """UTF-8 text of a line. ValueError that names the byte offset in the file."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 at byte {offset + error.start} (0x{line[error.start]:02x}): {error.reason}"
        ) from None


def problem(path: Path | str, fault: Fault) -> Problem:
    """The fault as people read it."""
    what = f"{fault.field}: {fault.reason}" if fault.field else fault.reason
    return Problem(what, str(Source(str(path), fault.line, fault.row)), fault.remedy)
