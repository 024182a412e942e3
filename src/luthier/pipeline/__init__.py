"""The story of a run, stage by stage; the sole reader of the whole recipe.

    load → split → augment → adapt → train → evaluate → health → save → report

`story.py` tells it; `prepare.py` makes data and model ready, `place.py` keeps the run directory honest
(lock, same recipe, same data), `later.py` holds what is asked of a finished run.
"""

from luthier.pipeline.story import Run, check, resume, run

__all__ = ["Run", "check", "resume", "run"]
