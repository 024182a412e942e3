"""Nothing is trained on (all labels masked), or the prompt is trained on too."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import PROMPT_TRAINED, UNSUPERVISED_FAIL, UNSUPERVISED_WARN


@DIAGNOSES.register("labels_masked")
@rank(0)
def labels_masked(facts: Facts) -> Finding:
    """Counts rows without any trained token, and rows of prompt and answer whose every token is trained."""
    if not facts.rows:
        return unmeasured("labels_masked", "no rows")
    empty = facts.unsupervised_rows / facts.rows
    if empty > UNSUPERVISED_WARN:
        said = f"{facts.unsupervised_rows} of {facts.rows} rows have no trained token"
        advice = "raise data.max_length, or look at `luthier check`: the template finds no answers"
        status = "fail" if empty > UNSUPERVISED_FAIL else "warn"
        limit = UNSUPERVISED_FAIL if status == "fail" else UNSUPERVISED_WARN
        return Finding("labels_masked", status, empty, limit, said, advice)  # type: ignore[arg-type]
    prompts = facts.fully_trained_rows / facts.rows if facts.answers_expected else 0.0
    if prompts > PROMPT_TRAINED:
        said = f"in {facts.fully_trained_rows} of {facts.rows} rows the prompt is trained too"
        advice = "train the answers only: data.template decides what is trained"
        return Finding("labels_masked", "fail", prompts, PROMPT_TRAINED, said, advice)
    return Finding("labels_masked", "ok", empty, UNSUPERVISED_WARN, f"all of {facts.rows} rows train their answers")
