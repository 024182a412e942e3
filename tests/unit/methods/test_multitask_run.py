"""Three tasks in one run: rows keep their task from the recipe to the answers; each prefix alone says the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import luthier as lu
from luthier.core.errors import DataError, ModelError
from luthier.core.events import read_jsonl
from luthier.evaluate import guards
from luthier.evaluate.losses import row_losses
from luthier.methods import METHODS
from luthier.models import decode
from luthier.pipeline import later, prepare
from luthier.tasks import TASKS as TASK_FAMILY

TASKS = ("towns", "biographies", "cards")
"""On purpose in another order than the alphabet's."""
FILES = {"biographies": "biography", "cards": "card", "towns": "short_en"}


def recipe(folder: Path, method: str, named: bool = True) -> lu.Recipe:
    """48 rows of each of three built-in sets."""
    from luthier.data import builtin

    sources = []
    for task, name in FILES.items():
        rows = [json.loads(line) for line in builtin.path(name).read_text("utf-8").splitlines()[:48]]
        kept = [{key: row[key] for key in ("instruction", "input", "output")} for row in rows]
        (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, kept)), "utf-8")
        sources.append(f"{{path: {folder / task}.jsonl" + (f", task: {task}}}" if named else "}"))
    return lu.Recipe.parse(f"""
data: {{train: [{", ".join(sources)}], max_length: 96, split: {{group: none}}}}
method: {method}
train: {{steps: 12, batch_size: 12, threads: 1, save_every: never, evaluate_every: never}}
evaluate: {{samples: {{count: 6, max_new_tokens: 12, temperature: 0}}, generate_rows: 6, bootstrap: 100}}
""")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("multitask")
    made = recipe(folder, f"{{name: multitask_prefix, length: 4, tasks: [{', '.join(TASKS)}]}}")
    run = lu.run(made, run_dir=folder / "run")
    assert run.metrics["tuned"]["loss"] < run.metrics["base"]["loss"]
    return folder


def test_each_answer_is_that_of_its_prefix_alone(done: Path, tmp_path: Path) -> None:
    """One mixed batch through the library; each prefix in PEFT's format on a fresh base, one prompt at a time."""
    library = lu.load(done / "run")
    assert library.tasks == TASKS
    said = {"towns": "Where does Ida Rauch live?", "biographies": "Write a short biography.", "cards": "Who is Paula?"}
    prompts = [library.prompt_ids(said[task]) for task in TASKS]
    limits = {"max_new_tokens": 12, "stop_ids": library.base.stop_ids}
    mixed = decode.generate(library, prompts, tasks=[0, 1, 2], **limits)
    answers = []
    for task, prompt, found in zip(TASKS, prompts, mixed, strict=True):
        METHODS.get("multitask_prefix").single(library.attached, task, tmp_path / task)
        alone = lu.load(tmp_path / task, base=str(library.base.path))
        assert decode.generate(alone, [prompt], **limits)[0].ids == found.ids
        answers.append(library.generate(said[task], max_new_tokens=12, task=task))
        assert answers[-1] == decode.text_of(library.base.tokenizer, prompt, found.ids)
    with torch.no_grad():  # a few steps hardly change what is said: make the prefixes differ
        library.attached.own["tables"][1:] *= 3
    others = [library.generate(said["towns"], max_new_tokens=12, task=task) for task in TASKS]
    assert len(set(others)) > 1


def test_samples_of_the_run_come_from_their_own_prefix(done: Path) -> None:
    """Rows of every split carry their own task; what the run wrote down is what that task's prefix says."""
    _, _, library, data = later.reload(done / "run")
    for name, rows in data.rows.items():
        wanted = {one.id: TASKS.index(str(one.task)) for one in data.examples[name]}
        assert {row.id: row.task for row in rows} == wanted
    rows = {row.id: row for row in data.rows["test"]}
    examples = {one.id: one for one in data.examples["test"]}
    samples = list(read_jsonl(done / "run" / "evaluation" / "samples.jsonl"))
    assert len({rows[sample["id"]].task for sample in samples}) > 1
    for sample in samples:
        ids = library.template.prompt_ids(examples[sample["id"]].prompt, library.base.tokenizer)
        limits = {"max_new_tokens": 12, "stop_ids": library.base.stop_ids}
        made = decode.generate(library, [ids], tasks=[rows[sample["id"]].task], **limits)[0]
        assert decode.text_of(library.base.tokenizer, ids, made.ids) == sample["tuned"]


def test_only_a_named_task_answers(done: Path) -> None:
    """Never silently the first prefix."""
    library = lu.load(done / "run")
    with pytest.raises(ModelError, match="which task"):
        library.generate("Where?")
    with pytest.raises(ModelError, match="no task 'town'"):
        library.generate("Where?", task="town")


@pytest.mark.parametrize(
    ("method", "named", "what"),
    [
        ("{name: multitask_prefix, tasks: [towns, cards]}", True, "no prefix for 'biographies'"),
        ("{name: multitask_prefix, tasks: [towns, cards, biographies]}", False, "belongs to no task"),
    ],
)
def test_rows_without_a_prefix_are_refused(tmp_path: Path, method: str, named: bool, what: str) -> None:
    """Before anything is trained, with the file and the line."""
    with pytest.raises(DataError, match=what) as caught:
        lu.run(recipe(tmp_path, method, named), run_dir=tmp_path / "run")
    assert ".jsonl:" in str(caught.value)


def test_given_files_and_guards_take_their_own_prefix(done: Path, tmp_path: Path) -> None:
    """`data.test` names the task of each file; another file needs --task; a guard is measured under every prefix."""
    _, made, library, _ = later.reload(done / "run")
    file = tmp_path / "held.jsonl"
    file.write_text((done / "cards.jsonl").read_text("utf-8"), "utf-8")
    values = made.model_dump(mode="json")
    values["data"]["test"] = [
        {"path": str(file), "task": "cards"},
        {"path": str(done / "towns.jsonl"), "task": "towns"},
    ]
    given = lu.Recipe(**values)
    task = TASK_FAMILY.parse(given.task)
    loaded, splits = prepare.read(given, task)
    rows = prepare.encode(given, loaded, splits, task, library.base, (), "single", None).rows["test"]
    assert {row.task for row in rows} == {TASKS.index("cards"), TASKS.index("towns")}
    with pytest.raises(DataError, match="belongs to no task"):
        later.evaluate(done / "run", str(file))
    loss = {kind: later.evaluate(done / "run", str(file), kind=kind)["tuned"]["loss"] for kind in ("cards", "towns")}
    assert loss["cards"] < loss["towns"]
    general = tmp_path / "general.txt"
    general.write_text("Where does Ida Rauch live? She lives in a small town.", "utf-8")
    found = guards.measure(library, [str(general)], batch_tokens=512, resamples=100, seed=0)
    assert list(found) == [f"general.txt:{name}" for name in TASKS]
    assert len({one["base"] for one in found.values()}) == 1
    assert len({one["tuned"] for one in found.values()}) == 3
    row = guards.rows_of(general, library)[0]
    alone = row_losses(library, [replace(row, task=2)]).loss
    assert found["general.txt:cards"]["tuned"] == pytest.approx(alone)
