"""Secrets and personal data that look leaked into the rows. Found by shape, listed by row, never shown whole."""

from __future__ import annotations

import re

_PATTERNS = {
    "private key": r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
    "access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{35}\b",
    "api key": r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z0-9]{30,}|\bxox[abprs]-[\w-]{10,}",
    "access token": r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bglpat-[\w-]{20,}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "password": r"(?i:\b(?:password|passwd|pwd|secret)\b|密码)\s*[:=：]\s*(?=[^\s,;，。]*\d)[^\s,;，。]{6,}",
    "e-mail": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}",
    "identity number": r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d)",
    "bank account": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
    "card number": r"(?<![\d.-])(?:\d[ -]?){12,18}\d(?![\d.-])",
    "social security number": r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])",
    "phone number": r"(?<![\d.])1[3-9]\d{9}(?!\d)|\+\d{1,3}[ .-]?\(?\d{2,4}\)?(?:[ .-]?\d{2,4}){2,3}(?!\d)",
}
KINDS = tuple(_PATTERNS)
SECRETS = ("private key", "access key", "api key", "access token", "password")
_ALL = {name: re.compile(pattern) for name, pattern in _PATTERNS.items()}
_DIGITS = re.compile(r"\d{3}|\+\d")
_SIGNS: dict[str, tuple[str, ...]] = {
    "private key": ("-----BEGIN",),
    "access key": ("AKIA", "ASIA", "AIza"),
    "api key": ("sk-", "hf_", "xox"),
    "access token": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "glpat-", "eyJ"),
    "e-mail": ("@",),
}
"""Cheap sieve: a text without any of these pieces cannot hold this kind."""
_WORDS = ("passw", "pwd", "secret", "密码")
_NUMBERS = ("identity number", "bank account", "card number", "social security number", "phone number")
_HARMLESS = re.compile(r"@(?:example|test|domain|email|company)\.|@[\w-]+\.(?:example|invalid|test|local)\b", re.I)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def find(text: str) -> list[tuple[str, str]]:
    """(kind, masked) of everything in a text that looks secret or personal."""
    kinds = [kind for kind, signs in _SIGNS.items() if any(sign in text for sign in signs)]
    if _DIGITS.search(text):
        kinds += _NUMBERS
    lower = text.lower()
    if any(word in lower for word in _WORDS):
        kinds.append("password")
    return [(kind, masked(match[0])) for kind in kinds for match in _ALL[kind].finditer(text) if _real(kind, match[0])]


def masked(text: str) -> str:
    """The first two characters and the length: enough to find it, too little to use it."""
    return f"{text[:2]}… ({len(text)} characters)"


def _real(kind: str, text: str) -> bool:
    """Checksums and well-known placeholders sort out what only has the shape."""
    digits = [int(char) for char in text if char.isdigit()]
    if kind == "e-mail":
        return not _HARMLESS.search(text)
    if kind == "card number":
        return 13 <= len(digits) <= 19 and len(set(digits)) > 3 and luhn(digits)
    if kind == "identity number":
        total = sum(int(char) * weight for char, weight in zip(text[:17], _ID_WEIGHTS, strict=True))
        return "10X98765432"[total % 11] == text[-1].upper()
    if kind == "bank account":
        return _iban(text.replace(" ", ""))
    if kind == "social security number":
        return not text.startswith(("000", "666", "9"))
    return True


def luhn(digits: list[int]) -> bool:
    """The checksum of card numbers."""
    doubled = [digit * 2 if at % 2 else digit for at, digit in enumerate(reversed(digits))]
    return sum(digit - 9 if digit > 9 else digit for digit in doubled) % 10 == 0


def _iban(text: str) -> bool:
    if not 15 <= len(text) <= 34:
        return False
    moved = text[4:] + text[:4]
    return int("".join(str(int(char, 36)) for char in moved)) % 97 == 1
