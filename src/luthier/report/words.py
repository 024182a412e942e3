"""Numbers and names in words, and the string tables of the two languages."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from luthier.core.redact import visible
from luthier.report.collect import number

LANGUAGES = ("en", "zh")


@cache
def table(language: str) -> dict[str, str]:
    """key → text; English where the language is not known."""
    name = language if language in LANGUAGES else "en"
    return dict(json.loads(files("luthier.report").joinpath(f"texts/{name}.json").read_text("utf-8")))


def say(texts: dict[str, str], key: str, **values: Any) -> str:
    """The text of `key` with its values filled in. Values are data: braces in them mean nothing."""
    return texts[key].format(**{name: show(value) for name, value in values.items()})


def show(value: Any, digits: int = 4) -> str:
    """A value for people: numbers with 4 significant digits, control characters of texts made visible."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return _real(value, digits)
    return plain(value)


def _real(value: float, digits: int) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value)) if abs(value) >= 10 else f"{value:.1f}"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"


def signed(value: Any) -> str:
    """A difference with its sign (a real minus)."""
    found = number(value)
    if found is None:
        return "–"
    return f"+{show(float(found))}" if found > 0 else show(float(found)).replace("-", "\u2212", 1)


def plain(value: Any) -> str:
    """Text of data, models and people: nothing in it acts on a terminal or turns the line round."""
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    return visible(str(value))


def percent(share: Any) -> str:
    """0.0123 → 1.23 %"""
    found = number(share)
    return "–" if found is None else f"{show(100.0 * found, 3)} %"


def duration(seconds: Any) -> str:
    """90 → 1 min 30 s"""
    found = number(seconds)
    if found is None:
        return "–"
    whole = round(found)
    if whole < 60:
        return f"{found:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: Any) -> str:
    """Bytes with a unit (1 kB = 1000 B)."""
    found = number(count)
    if found is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if found < 1000 or unit == "GB":
            return f"{found:.0f} {unit}" if unit == "B" else f"{found:.1f} {unit}"
        found /= 1000
    return "–"


def metric(texts: dict[str, str], name: str) -> str:
    """A metric's name for people."""
    return texts.get(f"metric.{name}", plain(name))
