"""A method, a format and a metric of one's own, each ONE file outside of the package, in one run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.data import builtin

PLUGINS = Path(__file__).parent / "plugins"
RECIPE = """
model: {{path: builtin}}
data: {{train: rows.json, format: asks_says, template: plain, max_length: 64, split: {{group: none}}}}
method: last_norm
train: {{epochs: 1, batch_tokens: 800, threads: 1}}
evaluate: {{metrics: [loss, first_letter], samples: {{count: 1, max_new_tokens: 4}}, bootstrap: 100}}
plugins: {plugins}
"""


@pytest.fixture
def place(tmp_path):
    lines = builtin.path("short_en").read_text("utf-8").splitlines()[:120]
    rows = [{"asks": row["instruction"], "says": row["output"]} for row in map(json.loads, lines)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def run(place, *arguments, path=""):
    command = [sys.executable, "-m", "luthier", *arguments]
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(place)}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=200)


def shown(place):
    card = json.loads((place / "run/adapter/luthier.json").read_text())
    metrics = json.loads((place / "run/evaluation/metrics.json").read_text())
    return card, metrics


def test_three_files_named_in_the_recipe(place):
    (place / "recipe.yaml").write_text(RECIPE.format(plugins=json.dumps([str(p) for p in PLUGINS.glob("*.py")])))
    done = run(place, "run", "recipe.yaml", "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    card, metrics = shown(place)
    assert card["method"]["name"] == "last_norm"
    assert 0 <= metrics["tuned"]["first_letter"] <= 1
    again = run(place, "evaluate", "run", "--json")
    assert again.returncode == 0, again.stderr


def test_three_entry_points_of_an_installed_package(place):
    (place / "site").mkdir()
    for plugin in PLUGINS.glob("*.py"):
        (place / "site" / f"mine_{plugin.name}").write_text(plugin.read_text())
    info = place / "site" / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    points = {"methods": "last_norm = mine_last_norm:LastNorm", "formats": "asks_says = mine_dialogue:AsksSays",
              "metrics": "first_letter = mine_first_letter:first_letter"}  # fmt: skip
    (info / "entry_points.txt").write_text("".join(f"[luthier.{key}]\n{line}\n" for key, line in points.items()))
    (place / "recipe.yaml").write_text(RECIPE.format(plugins="[]"))
    listed = run(place, "list", "methods", path=str(place / "site"))
    assert "last_norm" in listed.stdout
    done = run(place, "run", "recipe.yaml", "--run-dir", "run", path=str(place / "site"))
    assert done.returncode == 0, done.stderr
    assert shown(place)[0]["method"]["name"] == "last_norm"


def test_a_plugin_that_falls_over_is_told(place):
    (place / "bad.py").write_text("1 / 0\n")
    (place / "recipe.yaml").write_text(RECIPE.format(plugins="[bad.py]"))
    done = run(place, "check", "recipe.yaml", "--quick")
    assert done.returncode == 2
    assert "bad.py" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
