"""Errors for people: what happened, where, how to mend. The class decides the exit code.

Exit codes are part of the contract: 1 failed gate, 2 bad recipe/data/model files, 3 interrupted and
resumable, 4 diverged, 5 out of a resource, 70 internal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; `where` is file:line, a row id or a recipe key."""

    what: str
    where: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  → {self.remedy}" if self.remedy else head


class LuthierError(Exception):
    """Base of everything that luthier raises on purpose."""

    exit_code = 70

    def __init__(self, what: str, *, where: str = "", remedy: str = "", problems: Iterable[Problem] = ()):
        self.problems = tuple(problems) or (Problem(what, where, remedy),)
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what)

    def __str__(self) -> str:
        listed = "\n".join(str(problem) for problem in self.problems)
        return listed if len(self.problems) == 1 else f"{self.what}\n{listed}"


class GateFailed(LuthierError):
    """The work finished, but a diagnosis or a gate says that the result must not be used."""

    exit_code = 1


class RecipeError(LuthierError):
    """The recipe asks for something that does not exist or contradicts itself."""

    exit_code = 2


class DataError(LuthierError):
    """The data cannot be read or must not be trained on."""

    exit_code = 2


class ModelError(LuthierError):
    """A model, tokenizer, adapter or template was refused at the gate."""

    exit_code = 2


class CannotMerge(ModelError):
    """This method has no weights that could be folded into the base."""


class MissingExtra(LuthierError):
    """An optional dependency is not installed."""

    exit_code = 2

    def __init__(self, what: str, extra: str):
        super().__init__(f"{what} needs the extra '{extra}'", remedy=f'pip install "luthier[{extra}]"')


class Interrupted(LuthierError):
    """Stopped by a signal; the same command continues."""

    exit_code = 3


class Diverged(LuthierError):
    """The training left the finite numbers; the last good checkpoint is kept."""

    exit_code = 4


class OutOfResource(LuthierError):
    """Disk, memory or a limit of the operating system is exhausted."""

    exit_code = 5


class StopRequested(BaseException):
    """A signal says: end at once. A BaseException, so that nothing swallows it; what is on disk is whole."""

    exit_code = 3
