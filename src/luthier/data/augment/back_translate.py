"""The text translated to another language and back, by a language model that the recipe names."""

from __future__ import annotations

import numpy as np

from luthier.data import language, rewriting
from luthier.data.augment import AUGMENTERS

NAMES = {"zh": "Chinese", "en": "English", "de": "German", "fr": "French", "es": "Spanish", "ja": "Japanese",
         "ko": "Korean", "ru": "Russian", "pt": "Portuguese", "it": "Italian", "nl": "Dutch"}  # fmt: skip
PROMPT = "Translate the text into {language}. Keep numbers and code. Answer with the translation only.\n\n{text}"


@AUGMENTERS.register("back_translate")
class BackTranslate:
    """Sennrich et al. 2016, with one model both ways; what comes back damaged is not used, and counted."""

    class Params(rewriting.RewriterParams):
        """Which model, and by way of which language."""

        through: str = ""
        """The language between; empty: English, and Chinese for English texts."""

    def __init__(self, params: Params):
        self.params = params
        self.rewriter = rewriting.Rewriter(params, "augment.back_translate")

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """None where nothing usable came back."""
        own = NAMES.get(language.of_text(text), "English")
        there = self._ask(text, self.params.through or ("Chinese" if own == "English" else "English"), source)
        return None if not there else rewriting.accepted(text, self._ask(there, own, source))

    def _ask(self, text: str, to: str, source: np.random.Generator) -> str | None:
        found = self.rewriter.ask(PROMPT.format(language=to, text=text), rewriting.drawn(source))
        return found.strip() if found else None
