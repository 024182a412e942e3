"""A row's loss depends on the rows it is batched with."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import PADDING


@DIAGNOSES.register("padding_variance")
@rank(40)
def padding_variance(facts: Facts) -> Finding:
    """Largest difference of a token's loss alone and in a padded batch, in nats (float32)."""
    value = facts.padding_difference
    if value is None:
        return unmeasured("padding_variance", "fewer than two rows")
    said = f"largest difference of a token's loss alone and in a batch: {value:.2g}"
    if value <= PADDING:
        return Finding("padding_variance", "ok", value, PADDING, said)
    advice = "padding reaches the model: check attention mask, position ids and padding side"
    return Finding("padding_variance", "fail", value, PADDING, said, advice)
