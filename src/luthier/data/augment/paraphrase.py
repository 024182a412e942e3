"""The text in other words, by a language model that the recipe names (a local folder or an endpoint)."""

from __future__ import annotations

import numpy as np

from luthier.data import rewriting
from luthier.data.augment import AUGMENTERS

PROMPT = (
    "Rewrite the text in other words, in the same language. Keep its meaning, and keep numbers, names and code as they "
    "are. Answer with the rewritten text only.\n\n"
)


@AUGMENTERS.register("paraphrase")
class Paraphrase:
    """Answers that lose numbers, change the language or the length are not used, and counted."""

    class Params(rewriting.RewriterParams):
        """Which model."""

        instruction: str = PROMPT
        """What the model is told; the text follows."""

    def __init__(self, params: Params):
        self.params = params
        self.rewriter = rewriting.Rewriter(params, "augment.paraphrase")

    def change(self, text: str, source: np.random.Generator) -> str | None:
        """None where the model gave nothing that can stand for the text."""
        return rewriting.accepted(text, self.rewriter.ask(self.params.instruction + text, rewriting.drawn(source)))
