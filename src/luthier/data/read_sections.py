"""Long documents cut into sections when there are too few documents to divide between train, validation and test.

Sections end at paragraphs (or lines), and put together they are the document: nothing is lost or repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from luthier.core.types import Example
from luthier.data.columns import Builder, Examples

FEW = 20
"""Fewer documents than this are cut."""
SECTION = 8_000
"""Characters of a section, about 2,000 tokens: several windows."""


def sections(examples: Examples) -> Examples:
    """The rows, with long plain documents cut where there are too few to be divided."""
    if len(examples) >= FEW or any(examples.column("split")):
        return examples
    rows = list(examples)
    if any(len(row.turns) != 1 or row.turns[0].role != "text" for row in rows):
        return examples
    builder = Builder()
    for row in rows:
        builder.extend(_cut(row))
    return builder.finish()


def _cut(row: Example) -> Iterator[Example]:
    text = row.turns[0].text
    if len(text) < 2 * SECTION:
        yield row
        return
    pieces = list(pieces_of(text, SECTION))
    line = row.source.line
    for number, piece in enumerate(pieces):
        extra = {**row.extra, "document": row.id, "part": number, "parts": len(pieces)}
        source = replace(row.source, line=line)
        turn = replace(row.turns[0], text=piece)
        yield replace(row, id=f"{row.id}.{number}", turns=(turn,), source=source, extra=extra)
        line += piece.count("\n")


def pieces_of(text: str, size: int) -> Iterator[str]:
    """Consecutive pieces of at least `size` characters (but for the last), ending at a blank line where one is near."""
    start = 0
    while start < len(text):
        end = start + size
        if len(text) - end < size // 2:
            yield text[start:]
            return
        for mark in ("\n\n", "\n", "。", ". ", " "):
            found = text.find(mark, end, end + size // 2)
            if found >= 0:
                end = found + len(mark)
                break
        yield text[start:end]
        start = end
