"""Text made safe to write and to show: no secrets of the environment, no control characters of a terminal."""

from __future__ import annotations

import os
import re
from pathlib import Path

_SECRET = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SHORTEST_SECRET = 6


def secrets() -> list[str]:
    """Values of environment variables whose names say that they are secret, longest first."""
    found = {value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= SHORTEST_SECRET}
    return sorted(found, key=len, reverse=True)


def redact(text: str) -> str:
    """`text` without secrets, and with the home directory as ~."""
    for secret in secrets():
        text = text.replace(secret, "[redacted]")
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def visible(text: str) -> str:
    """Control and direction characters written out as escapes, so that they do nothing in a terminal or a log."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r", "\\r"))
