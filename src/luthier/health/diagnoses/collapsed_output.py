"""The model says the same whatever it is asked: one class, one answer, or a loop."""

from __future__ import annotations

from luthier.health.diagnoses import DIAGNOSES, Finding, rank, unmeasured
from luthier.health.facts import Facts
from luthier.health.thresholds import CLASS_EXCESS, LOOPING, ONE_ANSWER, ONE_CLASS


@DIAGNOSES.register("collapsed_output")
@rank(100)
def collapsed_output(facts: Facts) -> Finding:
    """Always against the references: data with one class or one answer may be answered so."""
    if facts.top_class is not None and facts.top_true_class is not None:
        said = f"{facts.top_class:.0%} of the rows are called one class"
        said += f"; the largest true class has {facts.top_true_class:.0%}"
        if facts.top_class > ONE_CLASS and facts.top_true_class < ONE_CLASS - CLASS_EXCESS:
            advice = "lower the learning rate, balance the classes, or train longer"
            return Finding("collapsed_output", "fail", facts.top_class, ONE_CLASS, said, advice)
        return Finding("collapsed_output", "ok", facts.top_class, ONE_CLASS, said)
    if facts.same_answers is None:
        return unmeasured("collapsed_output", "no answers were generated")
    advice = "lower the learning rate or restore an earlier checkpoint"
    if facts.same_answers > ONE_ANSWER and (facts.same_references or 0.0) < ONE_ANSWER / 2:
        said = f"{facts.same_answers:.0%} of the answers are the same text"
        return Finding("collapsed_output", "fail", facts.same_answers, ONE_ANSWER, said, advice)
    looping = facts.distinct2 is not None and facts.distinct2 < LOOPING
    if looping and (facts.reference_distinct2 is None or facts.reference_distinct2 > 2 * LOOPING):
        said = f"only {facts.distinct2:.0%} of the word pairs in an answer are different"
        return Finding("collapsed_output", "fail", facts.distinct2, LOOPING, said, advice)
    said = f"{facts.same_answers:.0%} of the answers are the most frequent one"
    return Finding("collapsed_output", "ok", facts.same_answers, ONE_ANSWER, said)
