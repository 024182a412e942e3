"""Words of any language: Latin words, numbers, and Chinese, Japanese, Korean characters one by one.

rouge-score keeps only [a-z0-9]: identical Chinese texts score 0 there. Characters are the common unit for Chinese
ROUGE (LCSTS, Hu et al. 2015) and need no dictionary.
"""

from __future__ import annotations

import re
import string
import unicodedata

_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SINGLE = _CHINESE + "\u3040-\u30ff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_SINGLE}]|[^\W_{_SINGLE}]+")
_CJK = re.compile(rf"[{_CHINESE}]")
_BETWEEN = re.compile(rf"(?<=[{_SINGLE}])\s+(?=[{_SINGLE}])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(text: str) -> list[str]:
    """Lower-cased words; every Chinese, Japanese or Korean character is a word."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


def has_chinese(text: str) -> bool:
    """Whether any Chinese character stands in the text."""
    return bool(_CJK.search(text))


def normalized(text: str) -> str:
    """SQuAD's normalisation (lower case, no punctuation, no articles, single spaces), for Chinese too: full-width
    punctuation goes as well, and so do spaces between Chinese characters."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return _BETWEEN.sub("", " ".join(_ARTICLES.sub(" ", text).split()))
