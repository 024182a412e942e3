"""FAULTS.md B and A9: a recipe is read as meant or refused in words; a changed one never continues silently."""

import json
import os
import random
import re
import time

import pytest
from toy_run import in_child, wait

from luthier.core.errors import RecipeError
from luthier.core.lock import RunLock
from luthier.core.rundir import RunDir
from luthier.pipeline import place
from luthier.recipe import Recipe, _known_paths

LETTERS = "abcdefghijklmnopqrstuvwxyz_"


def edits(word):
    """Every kind of one-letter slip, one of each."""
    source = random.Random(word)
    at = source.randrange(len(word))
    other = source.choice([letter for letter in LETTERS if letter != word[at]])
    swapped = word[:-2] + word[-1] + word[-2] if len(word) > 1 else word
    found = [word[:at] + word[at + 1 :], word[:at] + other + word[at:], word[:at] + other + word[at + 1 :], swapped]
    return [slip for slip in found if slip and slip != word]


def test_fault_B1_every_key_misspelt_is_refused_with_the_right_suggestion(figure):
    asked = right = 0
    for path in _known_paths():
        parent, _, leaf = path.rpartition(".")
        siblings = {other.rpartition(".")[2] for other in _known_paths() if other.rpartition(".")[0] == parent}
        if len(leaf) < 4:
            continue
        for slip in edits(leaf):
            if slip in siblings:
                continue
            value = {slip: 1}
            for key in reversed(parent.split(".")) if parent else ():
                value = {key: value}
            with pytest.raises(RecipeError) as caught:
                Recipe.parse(json.dumps(value))
            asked += 1
            right += bool(re.search(rf"\b{leaf}\b", str(caught.value)))
    assert asked > 200
    assert right / asked >= 0.95, f"{right}/{asked}"
    figure(asked, asked)


PIECES = ["null", "true", "-1", "0", "1", "2.5", "1e308", ".inf", ".nan", "''", "text", "[]", "[1, x]", "{}",
          "{a: {b: 1}}",
          "lora", "{name: lora}", "{name: lora, r: 0}", "{name: lora, dropout: 1.5}", "999999999999999999999",
          "[[[[1]]]]", "\"\\0\"", "cosine", "auto", "no", "12:30", "[lora, prefix]"]  # fmt: skip


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.soak)])
def test_fault_B4_random_recipes_are_read_or_refused(figure, count):
    source, paths = random.Random(0), _known_paths()
    slowest, refused = [], 0
    for _ in range(count):
        words = [f"{source.choice(paths)}={source.choice(PIECES)}" for _ in range(source.randrange(1, 6))]
        began = time.process_time()
        try:
            Recipe.parse("", *words)
        except RecipeError as error:
            refused += 1
            assert error.exit_code == 2
            assert all(problem.what for problem in error.problems), words
        slowest.append(time.process_time() - began)
    slowest.sort()
    assert slowest[int(0.95 * count)] < 0.05
    assert refused > count // 3
    figure(count, count)


def test_fault_B4_all_contradictions_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(
            "train: {epochs: 0, batch_tokens: -1, clip_norm: -1, betas: [1]}\nmodel: {dtype: float3}\nseed: -1"
        )
    assert len(caught.value.problems) >= 6
    with pytest.raises(RecipeError, match="epochs and steps"):
        Recipe.parse("train: {epochs: 1, steps: 2}")


def other_values(value):
    """Values that a field may take instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value / 2, value * 0.5 + 0.1]
    if isinstance(value, list):
        return [[*value, 0.5], value[:-1], ["x"], [0.5, 0.6]]
    words = [
        "changed",
        "chat",
        "plain",
        "linear",
        "sgd",
        "skip",
        "float32",
        "stop",
        "classify",
        "prefix",
        "bf16",
        "cpu",
    ]
    numbers = [3, 0.25, "epoch", "never"]
    return [word for word in [*words, *numbers, True, "5MB"] if word != value]


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    return [(path, value)]


def test_fault_B6_every_result_relevant_key_is_noticed_and_shown(tmp_path, figure):
    old = Recipe.parse("data: {train: rows.json}\nmethod: {name: lora, r: 8}")
    run = RunDir(tmp_path / "run")
    place.begin(run, old, None)
    tried = refused = 0
    free = {path for path, _ in leaves(old.model_dump(mode="json"))} - {p for p, _ in leaves(old.result_relevant())}
    for path, value in leaves(old.result_relevant()):
        for other in other_values(value):
            values = old.model_dump(mode="json")
            here = values
            for key in path[:-1]:
                here = here[key]
            here[path[-1]] = other
            try:
                new = Recipe(**values)
                new._parse_members(__import__("luthier.core.strict_yaml", fromlist=["Document"]).Document({}))
            except Exception:
                continue
            if new.result_relevant() == old.result_relevant():
                continue
            tried += 1
            with pytest.raises(RecipeError) as caught:
                place.begin(run, new, None)
            refused += any(problem.where.startswith(path[0]) for problem in caught.value.problems)
            break
    assert tried >= 40
    assert not run.lineage.exists()
    assert {".".join(path).partition(".")[0] for path in free} <= {"report", "train", "data"}
    figure(refused, tried)


def test_fault_B6_an_accepted_change_is_written_to_the_lineage(tmp_path):
    run = RunDir(tmp_path / "run")
    place.begin(run, Recipe.parse("data: {train: rows.json}"), None)
    place.begin(run, Recipe.parse("data: {train: rows.json}\nseed: 7"), None, accept=True)
    (record,) = [json.loads(line) for line in run.lineage.read_text().splitlines()]
    assert record["recipe"] == {"seed": [42, 7]}
    assert place.reopen(run).seed == 7


def test_fault_A9_changed_data_is_refused_with_both_hashes_or_recorded(tmp_path):
    run = RunDir(tmp_path)
    run.manifest.parent.mkdir()
    run.manifest.write_text(json.dumps({"sources": [{"path": "rows.json", "sha256": "a" * 64}]}))
    place.same_data(run, {"rows.json": "a" * 64})
    with pytest.raises(RecipeError) as caught:
        place.same_data(run, {"rows.json": "b" * 64})
    assert "aaaaaaaaaaaa" in str(caught.value)
    assert "bbbbbbbbbbbb" in str(caught.value)
    assert "--accept-data-change" in str(caught.value)
    place.same_data(run, {"rows.json": "b" * 64}, accept=True)
    assert "rows.json" in run.lineage.read_text()


def test_fault_B7_a_folder_of_something_else_is_not_taken(tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(RecipeError, match="not empty"):
        place.choose(Recipe(), tmp_path)
    assert os.listdir(tmp_path) == ["letters.txt"]


def race(path):
    """Two processes take the lock at the same time; returns their exit codes."""
    ready, go = os.pipe(), os.pipe()
    done = os.pipe()

    def contender():
        os.close(go[1])
        os.close(done[1])
        os.write(ready[1], b"x")
        os.read(go[0], 1)  # ends when the parent closes its side
        with RunLock(path):
            os.write(ready[1], b"y")
            os.read(done[0], 1)

    pids = [in_child(contender) for _ in range(2)]
    for _ in pids:
        os.read(ready[0], 1)
    os.close(go[0])
    os.close(go[1])
    assert os.read(ready[0], 1) == b"y"
    codes = []
    loser = os.wait()
    codes.append(os.waitstatus_to_exitcode(loser[1]))
    os.close(done[0])
    os.close(done[1])
    codes += [wait(pid) for pid in pids if pid != loser[0]]
    for end in ready:
        os.close(end)
    return codes


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_fault_B7_exactly_one_of_two_wins_each_race(tmp_path, figure, count):
    figure(sum(race(tmp_path / "lock") == [2, 0] for _ in range(count)), count)


def test_fault_B7_a_lock_of_a_dead_process_is_taken_over(tmp_path):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"pid": 1, "boot": "another", "since": 0}))
    with RunLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(RecipeError, match=str(os.getpid())), RunLock(path):
            pass


def test_fault_D10_clock_and_time_zone_change_nothing(tmp_path, undisturbed, monkeypatch):
    from toy_run import outcome, train

    def work():
        real, calls = time.time, []
        os.environ["TZ"] = "Pacific/Kiritimati"
        time.tzset()

        def jumping():
            calls.append(1)
            return real() + (-1) ** len(calls) * 1e8

        time.time = jumping
        train(tmp_path)

    assert wait(in_child(work)) == 0
    assert outcome(tmp_path) == undisturbed()


def test_fault_B6_what_a_refusal_advises_exists(tmp_path):
    """The option that the message names is one of the verbs that can meet the refusal."""
    from luthier.cli.app import build

    for verb in ("run", "resume"):
        options = {name for parameter in build(verb).params for name in parameter.opts}
        assert {"--accept-changes", "--accept-data-change"} <= options
    run = RunDir(tmp_path / "run")
    place.begin(run, Recipe.parse("data: {train: rows.json}"), None)
    with pytest.raises(RecipeError, match="--accept-changes"):
        place.begin(run, Recipe.parse("data: {train: rows.json}\nseed: 7"), None)
