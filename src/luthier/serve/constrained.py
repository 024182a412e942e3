"""Answers that must be JSON: which tokens may come next, by llguidance, for `response_format`.

A `Grammar` belongs to one vocabulary and one schema; each answer walks through a `Walk` of its own. The mask is
applied to the logits before the choice, so greedy stays greedy and sampling draws from what is left, renormalised.
An answer that is cut at `max_tokens` is a beginning of JSON, as with OpenAI.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from luthier.serve.schema import ApiError, ResponseFormat

if TYPE_CHECKING:
    from luthier.serve.adapters import Served

MOST_SCHEMA = 64 << 10
"""Characters of a schema; a grammar is compiled from it before anything is answered."""
FEWEST_BLANKS = r"[ \n\t]{0,32}"
"""White space between tokens of JSON. Unbounded, a model that likes line ends would write nothing else."""


class Walk:
    """Where one answer stands in its grammar. Owned by the model thread."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    @property
    def done(self) -> bool:
        """Nothing may follow."""
        return bool(self._matcher.is_stopped())

    def masked(self, logits: Tensor) -> Tensor:
        """[vocabulary] logits, minus infinity where the token would leave the grammar. RuntimeError where all would."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        if self._matcher.is_error() or not allowed.any():
            raise RuntimeError(_first_line(self._matcher.get_error()) or "no token continues this JSON")
        kept = np.zeros(len(logits), bool)  # an output layer may be wider than the vocabulary
        kept[: len(allowed)] = allowed
        return logits.masked_fill(torch.from_numpy(~kept).to(logits.device), -torch.inf)

    def take(self, token: int) -> None:
        """Step on. RuntimeError for a token outside of the grammar."""
        if not self._matcher.consume_token(token):
            raise RuntimeError(_first_line(self._matcher.get_error()))


class Grammar:
    """What an answer must be; `walk` begins one."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def walk(self) -> Walk:
        """A new walk from the beginning."""
        return Walk(self._matcher.deep_copy())


def grammar(served: Served, wanted: ResponseFormat | None) -> Grammar | None:
    """The grammar of `response_format`; None for text. ApiError 400 for a schema that cannot be held."""
    if wanted is None or wanted.type == "text":
        return None
    schema: Any = {"type": "object"} if wanted.json_schema is None else wanted.json_schema.schema_
    try:
        written = json.dumps(schema)
        if len(written) > MOST_SCHEMA:
            raise ValueError(f"the schema is longer than {MOST_SCHEMA} characters")
        made = Grammar(_matcher(served, written))
        made.walk().masked(torch.zeros(_width(served)))  # what cannot begin is refused before anything waits for it
    except ImportError:
        needed = "response_format needs llguidance (pip install 'luthier[serve]')"
        raise ApiError(400, needed, "not_installed", "response_format") from None
    except (ValueError, RecursionError, RuntimeError) as error:
        reason = _first_line(str(error)) or type(error).__name__
        raise ApiError(400, f"response_format: {reason}", "invalid_response_format", "response_format") from None
    return made


def _matcher(served: Served, schema: str) -> Any:
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(initial_lexer_fuel=200_000, max_grammar_size=50_000, step_max_items=20_000)
    options: Any = {"whitespace_flexible": True, "whitespace_pattern": FEWEST_BLANKS}
    written = LLMatcher.grammar_from_json_schema(schema, overrides=options)
    words = _vocabulary(served.base.tokenizer, _width(served), tuple(sorted(served.base.stop_ids)))
    made = LLMatcher(words, written, limits=limits, log_level=0)
    if made.is_error():
        raise ValueError(made.get_error())
    return made


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Any, width: int, stop_ids: tuple[int, ...]) -> Any:
    """llguidance's view of a tokenizer; it takes up to a second to make."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=width, eos_token=list(stop_ids))


def _width(served: Served) -> int:
    words: Any = served.base.model.get_input_embeddings()
    return int(words.weight.shape[0])


def _first_line(text: str) -> str:
    """llguidance's errors carry a dump of its state."""
    return text.strip().partition("\n")[0][:300]
