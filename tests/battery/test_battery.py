"""Every registered method × every tiny architecture × every property. A cell that is not run says why."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import cells as battery
import models as tiny
import pytest
import torch
from cells import Cell
from properties import PROPERTIES, falls

from luthier.core.errors import LuthierError, ModelError
from luthier.methods import METHODS
from luthier.pipeline import prepare
from luthier.recipe import Recipe
from luthier.tasks import TASKS

RESULTS: dict[Cell, dict[str, str]] = {}
MATRIX = Path(__file__).parents[2] / "docs" / "methods" / "matrix.md"

_MEMBERS = battery.cells(METHODS.names())
_VARIANTS = battery.cells(list(battery.VARIANTS))


def _quick(cell: Cell) -> bool:
    plain = not cell.head or cell.kind == "bert"
    if cell.name in battery.VARIANTS:
        return plain and cell.kind == "llama"
    return plain


def _present(cells: list[Cell]) -> list[object]:
    kept = [cell for cell in cells if (cell.name, cell.kind) not in battery.ABSENT]
    return [pytest.param(c, id=str(c), marks=() if _quick(c) else pytest.mark.slow) for c in kept]


@pytest.mark.parametrize("cell", _present(_MEMBERS + _VARIANTS))
def test_cell(cell: Cell) -> None:
    """All properties of one method on one architecture."""
    found = {name: check(cell) for name, check in PROPERTIES.items()}
    RESULTS[cell] = found
    wrong = {name: result for name, result in found.items() if result.startswith("no")}
    assert not wrong, f"{cell}: {wrong}"


@pytest.mark.parametrize("name", sorted([*battery.SETTINGS, "lora-tokens", "lora-embeddings", "stack-unipelt"]))
def test_half_precision_base(name: str) -> None:
    """On a bfloat16 base the trained weights are float32 and all of them learn, packed and padded."""
    if (name, "qwen3") in battery.ABSENT:
        pytest.skip(battery.ABSENT[name, "qwen3"])
    cell = Cell(name, "qwen3", False)
    for layout in ("padded", "flat"):
        base = cell.base()
        base.model.to(torch.bfloat16)
        attached = METHODS.parse(cell.spec).attach(base, 0)
        battery.shake(attached)
        battery.outputs(base, attached, layout=layout).float().square().mean().backward()
        assert all(
            weight.grad is not None and weight.dtype == torch.float32 for weight in attached.parameters().values()
        )


@pytest.mark.parametrize("name", sorted({*METHODS.names()} - {"stack"}))
def test_composes_in_a_stack(name: str, tmp_path: Path) -> None:
    """With a partner of another kind: all weights of both learn, off() is the base, loaded is what was saved."""
    kind = "gpt2" if (name, "llama") in battery.ABSENT else "llama"
    own = Cell(name, kind, False).spec
    partner = {"name": "bottleneck", "reduction": 4} if name != "bottleneck" else {"name": "lora", "r": 2}
    base = Cell(name, kind, False).base()
    with torch.no_grad():
        plain = battery.outputs(base, None)
    attached = METHODS.parse({"name": "stack", "methods": (own, partner)}).attach(base, 0)
    battery.shake(attached)
    battery.loss(base, attached).backward()
    assert {part.split(".")[0] for part in attached.parameters()} == {"0", "1"}
    assert all(bool(weight.grad.abs().sum() > 0) for weight in attached.parameters().values())
    attached.save(tmp_path)
    other = Cell(name, kind, False).base()
    again = METHODS.get("stack").reload(tmp_path, other)
    with torch.no_grad():
        assert torch.equal(battery.outputs(other, again), battery.outputs(base, attached))
        with attached.off():
            assert torch.equal(battery.outputs(base, attached), plain)


def _learning() -> list[object]:
    """(cell, steps): near zero on a decoder and an encoder, the right way in fewer steps on all others."""
    whole = [(c, 150) for c in _MEMBERS if c.kind in ("llama", "bert")]
    short = [(c, 30) for c in _MEMBERS if c.kind not in ("llama", "bert") and not c.head]
    kept = [(c, steps) for c, steps in whole + short if (c.name, c.kind) not in battery.ABSENT]
    return [pytest.param(cell, steps, id=f"{cell}-{steps}") for cell, steps in kept]


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "steps"), _learning())
def test_loss_falls(cell: Cell, steps: int) -> None:
    """Twenty rows are learnt."""
    assert falls(cell, steps) == "yes"


@pytest.mark.parametrize(("name", "kind"), sorted(battery.ABSENT), ids="-".join)
def test_absent_cells_refuse_up_front(name: str, kind: str) -> None:
    """Where a cell is declared absent, the method refuses in words, before anything is trained."""
    cell = Cell(name, kind, kind == "bert")
    with pytest.raises(LuthierError) as caught:
        METHODS.parse(cell.spec).attach(cell.base(), 0)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize(("kind", "task"), sorted(battery.ABSENT_TASKS), ids="-".join)
def test_absent_tasks_refuse_before_loading(kind: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no method has a task, the model is refused for it by its config."""
    monkeypatch.setattr("luthier.models.load.load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    recipe = Recipe.parse(f"model: {{path: '{tiny.folder(kind)}'}}\ntask: {task}\ndata: {{train: x.jsonl}}\n")
    with pytest.raises(ModelError) as caught:
        prepare.load_model(recipe, TASKS.parse(task), tiny.LABELS if task == "classify" else (), "single")
    assert caught.value.where == "model.path"
    assert caught.value.remedy


def test_no_member_is_forgotten() -> None:
    """Every member stands in the battery, and every exception names something that exists."""
    covered = {cell.name for cell in _MEMBERS}
    assert covered == set(METHODS.names())
    assert {name for name, _ in battery.ABSENT} <= covered | set(battery.VARIANTS)
    assert set(battery.SETTINGS) <= covered
    assert {kind for _, kind in battery.ABSENT} <= set(tiny.KINDS)
    cells = {(cell.kind, cell.task) for cell in _MEMBERS} | set(battery.ABSENT_TASKS)
    assert cells >= {(kind, task) for kind in tiny.KINDS for task in ("classify", "language_model")}


@pytest.fixture(scope="module", autouse=True)
def _matrix() -> Iterator[None]:
    """LUTHIER_MATRIX=1: write the table of the docs; cells that this run left out keep the row they had."""
    yield
    if os.environ.get("LUTHIER_MATRIX"):
        MATRIX.parent.mkdir(parents=True, exist_ok=True)
        MATRIX.write_text(_table(), "utf-8")
        MATRIX.with_name("members.md").write_text(_members(), "utf-8")


def _table() -> str:
    names = list(PROPERTIES)
    lines = [
        "# What holds for which method, on which architecture",
        "",
        "Written by the battery (`LUTHIER_MATRIX=1 pytest tests/battery`): tiny models of each architecture, made",
        "from configs, float32 on a CPU. ✓ tested and true; a number refers to the notes.",
        "",
        f"Architectures: {', '.join(tiny.KINDS)}. Every column was run on every row's own architecture and task; a",
        "member's row that is missing is in the list of refused cells; of further forms (dora, gated …) some are left",
        "out. Beside the columns, for every member: 150 steps on 20",
        "rows bring the loss near zero on llama and bert (methods with virtual tokens, ia3, bitfit: below 70 %), and",
        "30 steps below 60 % (95 %) on qwen3, opt and gpt2, below 95 % (99.5 %) on t5, as language models. On a",
        "bfloat16 base (qwen3) weights stay float32 and all of them learn. In a stack, with a bottleneck or a LoRA:",
        "llama (bitfit: gpt2).",
        "4-bit and 8-bit bases (llama): `tests/unit/methods/test_quantised.py`, which needs bitsandbytes.",
        "",
    ]
    notes: dict[str, int] = {}
    for cell, found in _known().items():
        RESULTS.setdefault(cell, found)
    lines += ["| method | model | task | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 3)]
    for cell, found in sorted(RESULTS.items(), key=lambda item: str(item[0])):
        row = []
        for name in names:
            result = found[name]
            row.append("✓" if result == "yes" else str(notes.setdefault(result.lstrip("— "), len(notes) + 1)))
        lines.append(f"| {cell.name} | {cell.kind} | {cell.task} | " + " | ".join(row) + " |")
    lines += ["", "## Notes", *[f"{number}. {note}" for note, number in notes.items()]]
    lines += ["", "## Cells that are refused", "| method | model | why |", "|---|---|---|"]
    lines += [f"| {name} | {kind} | {why} |" for (name, kind), why in sorted(battery.ABSENT.items())]
    tasks = sorted(battery.ABSENT_TASKS.items())
    lines += [f"| every method, task {task} | {kind} | {why} |" for (kind, task), why in tasks]
    return "\n".join(lines) + "\n"


def _known() -> dict[Cell, dict[str, str]]:
    """The cells of the table as it stands that are still cells."""
    if not MATRIX.is_file():
        return {}
    lines = MATRIX.read_text("utf-8").splitlines()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    notes = dict(re.findall(r"^(\d+)\. (.*)$", "\n".join(lines), re.MULTILINE))
    cells = {(c.name, c.kind, c.task): c for c in _MEMBERS + _VARIANTS if (c.name, c.kind) not in battery.ABSENT}
    head, found = rows[0][3:], {}
    for name, kind, task, *marks in (row for row in rows if len(row) == len(head) + 3):
        if (name, kind, task) in cells and set(head) == set(PROPERTIES):
            told = ["yes" if mark == "✓" else f"— {notes[mark]}" for mark in marks]
            found[cells[name, kind, task]] = dict(zip(head, told, strict=True))
    return found


def _members() -> str:
    lines = [
        "# Every method and its settings",
        "",
        "Written by the battery from the members themselves. `lr: auto` takes the default rate, fitted to the model's",
        "width where the member knows how; `luthier check` shows the number.",
    ]
    for name, summary in METHODS.summaries().items():
        member = METHODS.get(name)
        schedule = ", ".join(f"{key} {value}" for key, value in member.default_schedule.items())
        lines += [
            "",
            f"## {name}",
            "",
            summary,
            "",
            f"Default rate {member.default_lr:g} ({schedule}): {member.lr_reason}.",
        ]
        fields = member.Params.model_fields
        if fields:
            lines += ["", "| setting | default | meaning |", "|---|---|---|"]
        for key, field in fields.items():
            default = "" if field.default_factory else field.default
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            lines.append(f"| `{key}` | `{default}` | {meaning} |")
    return "\n".join(lines) + "\n"
