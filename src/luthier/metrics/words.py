"""Words of any language: Latin words, numbers, and Chinese characters one by one.

rouge-score keeps only [a-z0-9]: identical Chinese texts score 0 there. Characters are the common unit for Chinese
ROUGE (as in LCSTS, Hu et al. 2015) and need no dictionary.
"""

from __future__ import annotations

import re
import string
import unicodedata

_TOKEN = re.compile(
    r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af]|[^\W\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]+"
)
_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(text: str) -> list[str]:
    """Lower-cased words; every Chinese, Japanese or Korean character is a word."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


def has_chinese(text: str) -> bool:
    """Whether any Chinese character stands in the text."""
    return bool(_CJK.search(text))


def normalized(text: str) -> str:
    """SQuAD's normalisation (lower case, no punctuation, no articles, single spaces), for Chinese too."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    text = _ARTICLES.sub(" ", text)
    return " ".join(text.split())
