"""JSON Lines and JSON documents as a stream of rows, with line, column and byte of every fault.

A document is a list of rows, or an object that holds exactly one list of rows; it is scanned element by
element, so that memory follows the largest row and not the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from luthier.core.errors import DataError
from luthier.data.read_bytes import MAX_ROW_BYTES, Fault, Raw, decode, lines, too_large, utf8_blocks

_SPACE = " \t\n\r"
_REMEDY = "mend the row, or set data.on_error: skip"


class _Repeated(ValueError):
    """A key stands twice in one object."""


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Repeated(f"the key {twice!r} stands twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constants, object_pairs_hook=_no_repeats)


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[Raw | Fault]:
    """One object a line. Blank lines are passed over; a broken line is a Fault and the next one is read."""
    keys: dict[str, bytes] = {}
    for number, offset, line in lines(path, encoding):
        if not line or line.isspace():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            yield Fault(number, _explain(line, offset), _REMEDY)
            continue
        if not isinstance(value, dict):
            kind = type(value).__name__
            yield Fault(number, f"the line is a JSON {kind}, not an object", "one {…} object a line")
            continue
        for key in value:
            name = keys.get(key) or keys.setdefault(key, b'"' + key.encode() + b'"')
            if line.count(name) > 1 and (twice := _repeated_key(line)):
                yield Fault(number, twice, "keep one of them")
                break
        else:
            yield Raw(value, number)


def _repeated_key(line: bytes) -> str | None:
    with suppress(ValueError, RecursionError):
        try:
            _DECODER.decode(line.decode("utf-8"))
        except _Repeated as error:
            return str(error)
    return None


def _explain(line: bytes, offset: int) -> str:
    """Why a line is not JSON, with column and byte offset."""
    nul = line.find(b"\0")
    if nul >= 0:
        return f"a NUL byte at byte {offset + nul}"
    try:
        text = decode(line, offset)
        _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg}, column {error.colno}, byte {offset + len(text[: error.pos].encode())}"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return str(error)
    return f"not JSON: {_orjson_reason(line)}"


def _orjson_reason(line: bytes) -> str:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if "surrogate" in str(error):
            return f"a lone surrogate (half a character), column {error.colno}"
        return str(error)
    return "unknown"


class Scanner:
    """Pulls values out of a JSON text that arrives in blocks; knows the line and byte where it stands."""

    def __init__(self, path: Path, encoding: str = "utf-8"):
        self.path = path
        self._source = utf8_blocks(path, encoding)
        self._rest = b""
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column, self._bytes = 1, 0, 0

    def _more(self) -> bool:
        """Fetch another block; forget what was consumed."""
        if self._ended:
            return False
        self._forget()
        want = max(1, len(self._text))  # doubling keeps retries of a large value linear
        parts, size = [self._rest], 0
        for block in self._source:
            parts.append(block)
            size += len(block)
            if size >= want:
                break
        else:
            self._ended = True
        data = b"".join(parts)
        cut = len(data) if self._ended else _whole(data)
        self._rest = data[cut:]
        try:
            self._text += data[:cut].decode("utf-8")
        except UnicodeDecodeError as error:
            at = self._bytes + len(self._text.encode()) + error.start
            before = self._text + data[: error.start].decode("utf-8", "replace")
            raise DataError(
                f"not UTF-8 at byte {at} (0x{data[error.start]:02x}): {error.reason}",
                where=f"{self.path}:{self._line + before.count(chr(10))}",
                remedy="save the file as UTF-8, or name its encoding: data.encoding",
            ) from None
        return True

    def peek(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    @property
    def line(self) -> int:
        """1-based line of the current place."""
        self._forget()
        return self._line

    def _forget(self) -> None:
        """Drop what was consumed, and remember the line, column and byte where the rest begins."""
        passed = self._text[: self._at]
        breaks = passed.count("\n")
        self._line += breaks
        self._column = len(passed) - passed.rfind("\n") - 1 if breaks else self._column + len(passed)
        self._bytes += len(passed.encode("utf-8"))
        self._text, self._at = self._text[self._at :], 0

    def take(self, allowed: str) -> str:
        """Consume one of the allowed characters."""
        found = self.peek()
        if not found or found not in allowed:
            wanted = " or ".join(repr(char) for char in allowed)
            raise self.error(
                f"expected {wanted}, found {found!r}" if found else f"the file ends where {wanted} must stand"
            )
        self._at += 1
        return found

    def value(self) -> Any:
        """Parse one complete value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                open_string = error.msg.startswith("Unterminated")
                if not open_string and error.pos + 16 < len(self._text):
                    raise self._syntax(error) from None
                if len(self._text) - self._at > MAX_ROW_BYTES:
                    raise too_large(self.path, self.line) from None
                if self._more():
                    continue
                raise self._syntax(error) from None
            except RecursionError:
                raise self.error("nested too deeply") from None
            except ValueError as error:
                raise self.error(str(error)) from None
            if end == len(self._text) and not self._ended and not isinstance(value, dict | list | str):
                self._more()  # a number may go on in the next block
                continue
            if end - self._at > MAX_ROW_BYTES:
                raise too_large(self.path, self.line)
            self._check_surrogates(value, end)
            self._at = end
            return value

    def _check_surrogates(self, value: Any, end: int) -> None:
        if self._text.find("\\ud", self._at, end) < 0 and self._text.find("\\uD", self._at, end) < 0:
            return
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise self.error("a lone surrogate (half a character) in the row") from None

    def _syntax(self, error: json.JSONDecodeError) -> DataError:
        before = self._text[: error.pos]
        line = self._line + before.count("\n")
        column = len(before) - before.rfind("\n") if "\n" in before else self._column + len(before) + 1
        place = self._bytes + len(before.encode("utf-8"))
        what = "the file is cut off" if not self._text[error.pos :].strip() else f"not JSON: {error.msg}"
        return DataError(
            f"{what}, column {column}, byte {place}",
            where=f"{self.path}:{line}",
            remedy="mend the file: a document that does not parse has no rows to trust",
        )

    def error(self, what: str) -> DataError:
        """An error at the current place."""
        line = self.line
        return DataError(f"{what}, byte {self._bytes}", where=f"{self.path}:{line}", remedy="mend the file")


def _whole(data: bytes) -> int:
    """How many bytes of `data` end at a character's end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return len(data)
        if byte >= 0xC0:
            need = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) if back >= need else len(data) - back
    return len(data)


def read_document(path: Path, encoding: str = "utf-8") -> Iterator[Raw | Fault]:
    """The rows of a JSON file. One that is really JSON Lines is read as such."""
    if _is_lines(path, encoding):
        yield from read_lines(path, encoding)
        return
    scanner = Scanner(path, encoding)
    first = scanner.peek()
    if not first:
        return
    if first == "[":
        yield from _elements(scanner)
    elif first == "{":
        yield from _members(scanner)
    else:
        raise scanner.error("a data file is a JSON list of rows, or an object that holds one list")
    if scanner.peek():
        raise scanner.error(f"something follows the end of the document: {scanner.peek()!r}")


def _is_lines(path: Path, encoding: str) -> bool:
    found = 0
    for _, _, line in lines(path, encoding):
        if line.isspace() or not line:
            continue
        if not line.lstrip().startswith(b"{"):
            return False
        try:
            whole = isinstance(orjson.loads(line), dict)
        except orjson.JSONDecodeError:
            return found > 0
        found += whole
        if found == 2:
            return True
    return False


def _elements(scanner: Scanner) -> Iterator[Raw | Fault]:
    scanner.take("[")
    if scanner.peek() == "]":
        scanner.take("]")
        return
    number = before = 0
    while True:
        scanner.peek()
        line, number = scanner.line, number + 1
        value = scanner.value()
        row = number if line in (1, before) else 0
        before = line
        if isinstance(value, dict):
            yield Raw(value, line, row)
        else:
            what = f"element {number} is a {type(value).__name__}, not an object"
            yield Fault(line, what, "rows are {…} objects", row=row)
        if scanner.take(",]") == "]":
            return
        if scanner.peek() == "]":
            raise scanner.error("a comma stands before the closing bracket")


def _members(scanner: Scanner) -> Iterator[Raw | Fault]:
    """An object that holds one list of objects: its elements. Without any such list the object is one row."""
    line = scanner.line
    scanner.take("{")
    alone: dict[str, Any] = {}
    held: str | None = None
    while scanner.peek() != "}":
        key = scanner.value() if scanner.peek() == '"' else scanner.take('"')
        scanner.take(":")
        if scanner.peek() == "[":
            if held is not None:
                raise scanner.error(f"the object holds two lists, {held!r} and {key!r}: which one has the rows?")
            held = key
            yield from _elements(scanner)
        else:
            alone[key] = scanner.value()
        if scanner.take(",}") == "}":
            break
    else:
        scanner.take("}")
    if held is None and alone:
        yield Raw(alone, line)
