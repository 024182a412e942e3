"""`luthier VERB`: finds the verb's file, runs it, and turns every outcome into an exit code and plain words.

Nothing heavy is imported here: the list of verbs and their one-line help are read from the files, without
importing them.
"""

from __future__ import annotations

import ast
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, Problem, StopRequested

VERBS = {
    "new": "new",
    "check": "check",
    "run": "run",
    "resume": "resume",
    "evaluate": "evaluate",
    "health": "health",
    "verdict": "verdict",
    "rows": "rows",
    "compare": "compare",
    "report": "report",
    "context": "context",
    "export": "export",
    "generate": "generate",
    "chat": "chat",
    "serve": "serve",
    "sweep": "sweep",
    "studio": "studio",
    "list": "listing",
    "bench": "bench",
    "doctor": "doctor",
}
"""Verb → module of this package, in the order of the help. A verb without its file does not exist."""
INTERRUPTED, USAGE, RESOURCE, INTERNAL = 3, 2, 5, 70


def verbs() -> dict[str, Path]:
    """The verbs that there are, with their files."""
    here = Path(__file__).parent
    return {verb: path for verb, name in VERBS.items() if (path := here / f"{name}.py").is_file()}


def summary(path: Path) -> str:
    """First line of a verb's docstring, without importing it."""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0]


def build(verb: str) -> Any:
    """The command of one verb."""
    import typer

    module = importlib.import_module(f"luthier.cli.{VERBS[verb]}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help=module.__doc__)(module.command)
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `luthier` command."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    sys.exit(outcome(given, debug))


def outcome(given: Sequence[str], debug: bool = False) -> int:
    """Run the words and return the exit code of the contract."""
    try:
        return dispatch(given)
    except LuthierError as error:
        return _tell(error.problems, error.exit_code, error, given, debug)
    except (KeyboardInterrupt, StopRequested) as error:
        problem = Problem("interrupted", remedy="the same command continues where there is something to continue")
        return _tell([problem], INTERRUPTED, error, given, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        problem, code = unexpected(error)
        return _tell([problem], code, error, given, debug)


def dispatch(given: Sequence[str]) -> int:
    """Help, version, or a verb."""
    if not given or given[0] in ("-h", "--help", "help"):
        from luthier.cli.front import page

        page({verb: summary(path) for verb, path in verbs().items()})
        return 0
    if given[0] in ("--version", "-V"):
        from luthier import __version__
        from luthier.cli.console import out

        out().print(f"luthier {__version__}")
        return 0
    known = verbs()
    if given[0] not in known:
        raise _unknown(given[0], list(known))
    return run_verb(given[0], given[1:])


def _unknown(word: str, known: list[str]) -> LuthierError:
    import difflib

    from luthier.core.errors import RecipeError

    close = difflib.get_close_matches(word, known, 1)
    remedy = f"did you mean `luthier {close[0]}`?" if close else "`luthier --help` lists the verbs"
    return RecipeError(f"there is no verb {word!r}", remedy=remedy)


def run_verb(verb: str, words: Sequence[str]) -> int:
    """Run one verb. Wrong options are told like every other mistake, with exit code 2."""
    import typer

    usage_error: Any = typer.BadParameter.__base__  # typer has its own copy of click, this is its UsageError
    try:
        code = build(verb).main(args=list(words), prog_name=f"luthier {verb}", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except usage_error as error:
        from luthier.core.errors import RecipeError

        raise RecipeError(error.format_message(), remedy=f"`luthier {verb} --help` shows what it takes") from None
    return code if isinstance(code, int) else 0


def unexpected(error: Exception) -> tuple[Problem, int]:
    """One sentence and an exit code for what nobody raised on purpose."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Problem("out of memory", remedy="lower train.micro_tokens or data.max_length"), RESOURCE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENOMEM):
        return Problem(os.strerror(error.errno), str(error.filename or ""), "make room and start again"), RESOURCE
    if isinstance(error, PermissionError):
        return Problem("permission denied", str(error.filename or ""), "choose a place that you may use"), USAGE
    what = f"internal error: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    return Problem(what, remedy="the same command with --debug shows where; please report it"), INTERNAL


def _tell(problems: Sequence[Problem], code: int, error: BaseException, given: Sequence[str], debug: bool) -> int:
    from luthier.cli.console import failure, json_out

    failure(problems)
    if "--json" in given:
        listed = [{"what": p.what, "where": p.where, "remedy": p.remedy} for p in problems]
        json_out({"ok": False, "exit_code": code, "problems": listed})
    if debug:
        import traceback

        sys.stderr.write("".join(traceback.format_exception(error)))
    return code
