"""A conversation with a tuned model; /both puts the untouched base beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """\
/tuned  /base  /both      who answers
/adapter FOLDER           another run or adapter of the same base
/task NAME                whose prefix answers (multitask_prefix)
/temperature 0.7          0: always the likeliest token
/system TEXT              a system message from now on
/reset                    forget the conversation
/save FILE                write the conversation as JSON lines, in a form that trains
/help  /quit"""


def command(
    run: Annotated[Path, typer.Argument(help="Run directory or adapter folder.")],
    base: Annotated[bool, typer.Option("--base", help="The untouched base answers.")] = False,
    both: Annotated[bool, typer.Option("--both", help="Base and tuned side by side.")] = False,
    base_model: Annotated[str | None, typer.Option("--model", help="Base model of a foreign adapter.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 200,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    task: Annotated[str | None, typer.Option(help="Which task's prefix answers (multitask_prefix).")] = None,
) -> None:
    """See the module."""
    from luthier.core import libraries

    libraries.start()
    from luthier.adapted import load
    from luthier.cli.console import err, out

    adapted = load(run, base=base_model)
    refuse_labels(adapted, run)
    who = "both" if both else "base" if base else "tuned"
    talk = Talk(adapted, who, max_new_tokens, temperature, seed, load, task=task)
    err().print("/help shows the commands, /quit ends")
    while True:
        try:
            words = input("> ").strip()
        except EOFError:
            return
        if not words:
            continue
        if words in ("/quit", "/exit"):
            return
        for line in talk.say(words):
            out().print(line)


def refuse_labels(adapted: Any, run: Path) -> None:
    """ModelError, with the command that does it, for a run that gives labels."""
    from luthier.core.errors import ModelError

    if adapted.task.has_head:
        remedy = f"`luthier serve {run}`, then POST /v1/classify"
        raise ModelError("a classification run gives labels, not text", where=str(run), remedy=remedy)


@dataclass
class Talk:
    """The state of a conversation. `turns` holds what the answering model saw."""

    adapted: Any
    who: str
    max_new_tokens: int
    temperature: float
    seed: int
    load: Callable[..., Any]
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)
    task: str | None = None

    def say(self, words: str) -> list[Any]:
        """A command or a question → lines to print."""
        from luthier.cli.console import safe
        from luthier.core.errors import LuthierError

        if words.startswith("/"):
            name, _, rest = words[1:].partition(" ")
            try:
                return [safe(line, "dim") for line in self._command(name, rest.strip())]
            except (LuthierError, OSError, ValueError) as error:
                return [safe(error, "red")]
        try:
            return self._ask(words)
        except LuthierError as error:  # this question has no answer; the conversation is what it was
            return [safe(error, "red")]

    def _command(self, name: str, rest: str) -> list[str]:
        if name in ("tuned", "base", "both"):
            self.who = name
            return [f"{name} answers"]
        if name == "adapter" and rest:
            found = self.load(Path(rest), base=str(self.adapted.base.path))
            refuse_labels(found, Path(rest))
            self.adapted, self.task = found, self.task if self.task in found.tasks else None
            return [f"now {rest}"]
        if name == "task" and rest:
            self.adapted.task_index(rest)
            self.task = rest
            return [f"{rest} answers"]
        if name == "temperature":
            self.temperature = max(0.0, float(rest))
            return [f"temperature {self.temperature}"]
        if name == "system":
            self.system, self.turns = rest, []
            return ["a new conversation with this system message"]
        if name == "reset":
            self.turns = []
            return ["forgotten"]
        if name == "save" and rest:
            return [self._save(Path(rest))]
        return HELP.split("\n")

    def _ask(self, words: str) -> list[Any]:
        from luthier.cli.console import safe

        asked = [*self.turns, ("user", words)]
        answers = {}
        if self.who in ("base", "both"):
            with self.adapted.off():
                answers["base"] = self._answer(asked)
        if self.who in ("tuned", "both"):
            answers["tuned"] = self._answer(asked)
        kept = answers.get("tuned", answers.get("base", ""))
        if kept.strip():
            self.turns = [*asked, ("assistant", kept)]
        if len(answers) == 1:
            return [safe(kept) if kept.strip() else safe("(no answer; the question is not kept)", "dim")]
        return [side_by_side({name: safe(text) for name, text in answers.items()})]

    def _answer(self, asked: list[tuple[str, str]]) -> str:
        from luthier.core.types import Turn

        system = [Turn("system", self.system)] if self.system else []
        turns = [*system, *(Turn(role, text) for role, text in asked)]
        self._refuse_full(turns)
        seed = self.seed + len(asked)
        options = {"temperature": self.temperature, "seed": seed, "task": self.task}
        return str(self.adapted.generate(turns, self.max_new_tokens, **options))

    def _refuse_full(self, turns: list[Any]) -> None:
        """ModelError where no token of an answer would fit the window."""
        from luthier.core.errors import ModelError

        window, virtual = self.adapted.base.anatomy.window, self.adapted.attached.virtual_tokens
        asked = len(self.adapted.prompt_ids(turns))
        if asked + virtual < window:
            return
        beside = f" and {virtual} virtual ones" if virtual else ""
        what = f"the window of {window} tokens is full: the conversation has {asked}{beside}"
        raise ModelError(what, remedy="/reset forgets it" if self.turns else "a shorter question")

    def _save(self, file: Path) -> str:
        import json

        from luthier.core import atomic

        if file.exists():
            return f"{file} exists already"
        system = [("system", self.system)] if self.system else []
        messages = [{"role": role, "content": text} for role, text in (*system, *self.turns)]
        atomic.write_text(file, json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        return f"wrote {file}"


def side_by_side(answers: dict[str, Any]) -> Any:
    """Answers in columns."""
    from rich.table import Table

    made = Table(box=None, expand=True, padding=(0, 2, 0, 0))
    for name in answers:
        made.add_column(name, ratio=1, overflow="fold")
    made.add_row(*answers.values())
    return made
