"""A metric of one's own."""

from luthier.metrics import METRICS, traits
from luthier.metrics.scored import mean


@METRICS.register("first_letter")
@traits("text")
def first_letter(predictions, references):
    """Share of answers that begin with the reference's letter."""
    return mean([p[:1] == r[:1] for p, r in zip(predictions, references, strict=True)])
