"""Texts that try to become markup, to colour a terminal, to turn a line round or to be run by a spreadsheet."""

import json
from pathlib import Path

PAYLOADS = json.loads(Path(__file__).with_name("payloads.json").read_text("utf-8"))
FORBIDDEN = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *map(chr, range(0xD800, 0xE000))} - {"\n", "\t"}
"""Characters that act on a terminal or turn the direction of a line."""
FORBIDDEN |= set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
