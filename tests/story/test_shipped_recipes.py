"""Every recipe of the founding scenarios runs, shortened, on the data that it names or on a small file."""

import csv
import json
from contextlib import suppress
from pathlib import Path

import pytest

import luthier as lu
from luthier.core.errors import GateFailed
from luthier.core.events import read_jsonl

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = (
    "data.max_rows=60", "train.steps=3", "train.epochs=null", "train.batch_tokens=null", "train.batch_size=6",
    "train.threads=1", "train.save_every=never", "train.evaluate_every=never", "train.early_stop=null",
    "evaluate.bootstrap=100", "evaluate.generate_rows=0", "evaluate.samples={count: 1, max_new_tokens: 4}",
)  # fmt: skip
NAMES = (
    "lora_instruct", "p_tuning", "prompt_tuning", "full_frozen", "prefix_news", "multitask_prefix", "prefix_bottleneck",
)  # fmt: skip


def news(folder: Path) -> list[str]:
    """AG News in small: no header, a class index, title and description, and a file with the names."""
    names = ("World", "Sports", "Business", "Sci/Tech")
    (folder / "classes.txt").write_text("\n".join(names), "utf-8")
    for part, count in (("train", 60), ("test", 20)):
        with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            for number in range(count):
                word = ("minister", "match", "bank", "robot")[number % 4]
                writer.writerow(
                    [number % 4 + 1, f"The {word} {part} {number}", f"Today a {word} came, number {number}."]
                )
    return [f"data.train={folder / 'train.csv'}", f"data.test={folder / 'test.csv'}"]


def instructions(folder: Path) -> list[str]:
    """A user's train.json: a list of instruction, input, output."""
    from luthier.data import builtin

    rows = [json.loads(line) for line in builtin.path("short_en").read_text("utf-8").splitlines()[:60]]
    kept = [{name: row[name] for name in ("instruction", "input", "output")} for row in rows]
    (folder / "train.json").write_text(json.dumps(kept), "utf-8")
    return [f"data.train={folder / 'train.json'}"]


@pytest.mark.parametrize("name", NAMES)
def test_recipe_runs(name: str, tmp_path: Path) -> None:
    """Trained weights move, the adapter loads again and answers."""
    shipped = lu.Recipe.load(RECIPES / f"{name}.yaml")
    own = news if name == "prefix_news" else instructions if shipped.data.train == "builtin" else lambda folder: []
    recipe = lu.Recipe.load(RECIPES / f"{name}.yaml", *SHORT, *own(tmp_path))
    with suppress(GateFailed):  # three steps may well answer everything alike
        lu.run(recipe, run_dir=tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text("utf-8"))
    assert metrics["tuned"]["loss"] != metrics["base"]["loss"]
    start = next(one for one in read_jsonl(tmp_path / "run" / "events.jsonl") if one["kind"] == "start")
    assert 0 < start["share"] < 1
    again = lu.load(tmp_path / "run")
    if recipe.task == "classify":
        assert len(again.labels) == (4 if name == "prefix_news" else 5)
        return
    answer = again.generate("Who is it?", max_new_tokens=3, task=(again.tasks or (None,))[0])
    assert isinstance(answer, str)


def test_every_scenario_is_here() -> None:
    """None of the founding documents' scenarios is lost."""
    assert {path.stem for path in RECIPES.glob("*.yaml")} >= set(NAMES)
