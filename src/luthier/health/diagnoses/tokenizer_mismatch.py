"""Tokenizer, template or stop tokens are not those of the training."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts


@DIAGNOSES.register("tokenizer_mismatch")
@rank(30)
def tokenizer_mismatch(facts: Facts) -> Finding:
    """Compares what the adapter's card says with the model at hand."""
    wanted, here = facts.expected, facts.found
    if not wanted:
        return unmeasured("tokenizer_mismatch", "the adapter has no luthier.json")
    pairs = {
        "tokenizer": (
            (wanted.get("fingerprint") or {}).get("tokenizer"),
            (here.get("fingerprint") or {}).get("tokenizer"),
        ),
        "template": (wanted.get("template"), here.get("template")),
        "stop tokens": (wanted.get("stop_ids"), here.get("stop_ids")),
    }
    known = {name: pair for name, pair in pairs.items() if pair[0] not in (None, "", [], {})}
    other = [name for name, (before, now) in known.items() if before != now]
    if not other:
        return Finding("tokenizer_mismatch", "ok", 0.0, 0.0, f"{', '.join(known) or 'nothing'} as in the training")
    said = "; ".join(f"{name}: {_short(known[name][0])} became {_short(known[name][1])}" for name in other)
    advice = "use the tokenizer and template that were saved with the adapter"
    return Finding("tokenizer_mismatch", "fail", float(len(other)), 0.0, said, advice)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
