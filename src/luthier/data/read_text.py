"""Plain text: whole documents, documents parted by an end-of-text mark, and texts with labels beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from luthier.core.errors import DataError
from luthier.data.read_bytes import MAX_ROW_BYTES, Fault, Raw, decode, lines, too_large

MARK = "<|endoftext|>"
"""Parts documents (GPT-2's and TinyStories' way); it is not text itself."""
_TEXT_NAME = re.compile(r"(^|[._-])(texts?|sentences?|inputs?|input0)(?=$|[._-])", re.IGNORECASE)


def read_documents(path: Path, encoding: str = "utf-8") -> Iterator[Raw | Fault]:
    """Each document as {"text": …} with the line where it begins; white space around it is not text."""
    kept: list[str] = []
    begin, size = 1, 0
    for number, offset, data in lines(path, encoding):
        if b"\0" in data:
            raise DataError(
                f"a NUL byte at byte {offset + data.index(0)}",
                where=f"{path}:{number}",
                remedy="this is not UTF-8 text; if it is UTF-16, set data.encoding: utf-16",
            )
        try:
            line = decode(data, offset)
        except ValueError as error:
            raise DataError(str(error), where=f"{path}:{number}", remedy="name the encoding: data.encoding") from None
        if MARK not in line:
            begin = begin if kept else number
            if kept or line.strip():
                kept.append(line)
            size += len(data)
            if size > MAX_ROW_BYTES:
                raise too_large(path, begin)
            continue
        before, *later = line.split(MARK)
        for piece in later:
            if text := "\n".join([*kept, before]).strip():
                yield Raw({"text": text}, begin if kept else number)
            kept, begin, size, before = [], number, 0, piece
        kept = [before] if before.strip() else []
    if text := "\n".join(kept).strip():
        yield Raw({"text": text}, begin)


def label_file(path: Path) -> Path | None:
    """The file with the labels of a text file: `train_text.txt` → `train_labels.txt`, `texts.txt` → `labels.txt`."""
    stem, suffix = path.stem, path.suffix
    names = [path.with_suffix(ending) for ending in (".label", ".labels") if suffix != ending]
    if _TEXT_NAME.search(stem):
        for word in ("labels", "label"):
            names.append(path.with_name(_TEXT_NAME.sub(rf"\g<1>{word}", stem) + suffix))
    if suffix in (".text", ".texts", ".input0"):
        names += [path.with_suffix(".label"), path.with_suffix(".labels")]
    return next((name for name in names if name.is_file() and name != path), None)


def read_parallel(texts: Path, labels: Path, encoding: str = "utf-8") -> Iterator[Raw | Fault]:
    """Line n of one file with line n of the other. A different number of lines is an error."""
    left, right = lines(texts, encoding), lines(labels, encoding)
    number = 0
    while True:
        text, label = next(left, None), next(right, None)
        if text is None or label is None:
            break
        number += 1
        try:
            row = {"text": decode(text[2], text[1]), "label": decode(label[2], label[1]).strip()}
        except ValueError as error:
            yield Fault(number, str(error), "name the encoding: data.encoding")
            continue
        if row["text"].strip() or row["label"]:
            yield Raw(row, number)
    longer, rest = (texts, left) if text is not None else (labels, right)
    left_over = text or label
    if (left_over and left_over[2].strip()) or any(line[2].strip() for line in rest):
        raise DataError(
            f"{texts.name} and {labels.name} do not go together: {longer.name} has lines after line {number}",
            where=f"{longer}:{number + 1}",
            remedy="line n of the one belongs to line n of the other",
        )
