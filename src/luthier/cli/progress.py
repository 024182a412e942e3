"""Live progress: a listener of the run's events. A bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from luthier.cli.console import err, safe, warning

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows training with loss, tokens/s, time left and memory; everything goes to stderr."""

    def __init__(self) -> None:
        self.console = err()
        self.bar: Bar | None = None
        self.task: TaskID | None = None
        self.total: int | None = None
        self.last_line = 0.0
        self.validation: float | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def __call__(self, record: dict[str, Any]) -> None:
        """One event."""
        show = getattr(self, f"_on_{record.get('kind')}", None)
        if show is not None:
            show(record)

    def _on_start(self, record: dict[str, Any]) -> None:
        rows = record.get("rows") or {}
        parts = [f"{rows.get('train', '?')} rows to train, {rows.get('validation', '?')} to validate"]
        if record.get("trainable") is not None:
            parts.append(f"{record['trainable']:,} trained weights ({100 * record.get('share', 0):.3g} %)")
        self.console.print(safe("; ".join(parts)))

    def _on_stage(self, record: dict[str, Any]) -> None:
        self.stop()
        self.console.print(safe(f"… {record.get('name')}", "dim"))

    def _on_warning(self, record: dict[str, Any]) -> None:
        warning(str(record.get("what", "")), str(record.get("where") or ""), str(record.get("remedy") or ""))

    def _on_spike(self, record: dict[str, Any]) -> None:
        rows = ", ".join(map(str, record.get("rows", ())))
        warning(f"loss spike at step {record.get('step')}: {_number(record.get('loss'))}", rows)

    def _on_early_stop(self, record: dict[str, Any]) -> None:
        self.console.print(safe(f"early stop at step {record.get('step')}: {record.get('reason')}"))

    def _on_validate(self, record: dict[str, Any]) -> None:
        self.validation = record.get("loss")
        step = record.get("step")
        self.console.print(safe(f"step {step}: validation loss {_number(self.validation)}"))

    def _on_finished(self, record: dict[str, Any]) -> None:
        self.stop()
        best = f", best weights of step {record['best_step']}" if record.get("best_step") is not None else ""
        self.console.print(safe(f"trained {record.get('step')} steps{best}"))

    def _on_train(self, record: dict[str, Any]) -> None:
        step, text = int(record.get("step", 0)), line(record)
        if self.console.is_terminal:
            self._draw(step, record, text)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES or not self.last_line:
            self.last_line = time.monotonic()
            self.console.print(Text(f"step {step}  {text}"))

    def _draw(self, step: int, record: dict[str, Any], text: str) -> None:
        if self.bar is None:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
            self.bar = Bar(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task("", total=self.total, text="")
            self.bar.start()
        if self.task is not None:
            total = record.get("total_steps") or self._estimate(step, record)
            self.bar.update(self.task, completed=step, total=total, text=text)

    def _estimate(self, step: int, record: dict[str, Any]) -> int | None:
        """Total steps from the time left, for logs that do not name them."""
        seconds, left = record.get("seconds"), record.get("left_s")
        if self.total is None and seconds and left is not None:
            self.total = step + round(left / seconds)
        return self.total


def line(record: dict[str, Any]) -> str:
    """loss 1.234 · 5,120 tokens/s · 1:05 left · 612 MB"""
    parts = [f"loss {_number(record.get('loss'))}"]
    if record.get("tokens_per_s"):
        parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
    if record.get("left_s") is not None:
        minutes, seconds = divmod(int(record["left_s"]), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    if record.get("memory_mb"):
        parts.append(f"{record['memory_mb']:,.0f} MB")
    return " · ".join(parts)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"
