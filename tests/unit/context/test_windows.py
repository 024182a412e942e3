"""Long tasks, loss by position, and the comparison of all methods on the user's text."""

import itertools
import json

import numpy as np
import pytest

from luthier.core.errors import DataError, RecipeError
from luthier.data import longtasks
from luthier.evaluate import window as room
from luthier.models.load import load_base
from luthier.models.settings import ModelSettings
from luthier.pipeline import windows

EN = " ".join(f"Sentence number {i} says little of w{i % 90}." for i in range(400))
ZH = "".join(f"这是第{i}句话，没有什么特别的。" for i in range(400))


def words(text):
    return len(text) if longtasks.language_of(text) == "zh" else len(text.split())


@pytest.mark.parametrize("kind", longtasks.KINDS)
@pytest.mark.parametrize(("text", "language", "size"), [(EN, "en", 300), (ZH, "zh", 600)])
def test_tasks_fill_the_size_and_hold_their_answer(kind, text, language, size):
    for number in range(5):
        task = longtasks.make(kind, text, size, len if language == "zh" else words, split="train", number=number)
        length = (len if language == "zh" else words)(task.prompt + task.answer)
        assert size - 30 <= length <= size
        assert task.language == language
        pieces = task.answer.strip().replace("，", ",").split(",") if kind in ("variables", "order") else [task.answer]
        assert all(piece.strip() in task.prompt for piece in pieces)
        assert 0 < task.floor <= 0.5


@pytest.mark.parametrize("kind", longtasks.KINDS)
def test_train_and_test_share_no_prompt_and_numbers_no_answer(kind):
    made = {
        split: longtasks.make_many([kind], EN, 200, words, 60, split, seed=3) for split in ("train", "test")
    }  # fmt: skip
    prompts = {split: {task.prompt for task in tasks} for split, tasks in made.items()}
    assert len(prompts["train"]) == 60
    assert not prompts["train"] & prompts["test"]
    if kind != "variables":
        answers = {split: {task.answer for task in tasks} for split, tasks in made.items()}
        assert not answers["train"] & answers["test"]


def test_depth_is_where_the_needle_is():
    for depth in (0.1, 0.5, 0.9):
        prompt = longtasks.make("passkey", EN, 400, words, split="test", depth=depth).prompt
        assert abs(prompt.index("The pass key is") / len(prompt) - depth) < 0.12


def test_same_seed_same_tasks():
    one, two = (longtasks.make_many(longtasks.KINDS, EN, 200, words, 12, "test", seed=5) for _ in range(2))
    assert one == two
    assert one != longtasks.make_many(longtasks.KINDS, EN, 200, words, 12, "test", seed=6)


def test_what_is_too_short_is_refused():
    with pytest.raises(DataError, match="no two sentences"):
        longtasks.make("passkey", "one", 100, words, split="test")
    with pytest.raises(DataError, match="alone is longer than 5 tokens"):
        longtasks.make("passkey", EN, 5, words, split="test")


def test_buckets_split_the_old_window_and_cover_the_target():
    assert room.buckets(512, 2048) == [(0, 256), (256, 512), (512, 1024), (1024, 1536), (1536, 2048)]
    edges = room.buckets(64, 4096)
    assert len(edges) <= 10
    assert edges[-1][1] == 4096
    assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))


def test_losses_by_position_are_the_models_own(folders):
    import torch

    base = load_base(ModelSettings(path=str(folders("llama"))))
    ids = np.arange(3, 67) % 93 + 3
    found = room.token_losses(base, ids)
    with torch.no_grad():
        logits = base.model(input_ids=torch.from_numpy(ids)[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(ids[1:]), reduction="none")
    assert np.isnan(found[0])
    assert np.allclose(found[1:], expected.numpy(), atol=1e-5)
    short = room.truncated_losses(base, ids, 32)
    assert np.allclose(short[1:32], found[1:32], atol=1e-5)
    assert np.isfinite(short[1:]).all()
    again = room.token_losses(base, ids[16:48])
    assert np.allclose(short[32:48], again[16:], atol=1e-5), "half a window of context, then what counts"


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "book.txt"
    source = np.random.default_rng(0)
    path.write_text(". ".join(" ".join(f"w{i}" for i in source.integers(0, 90, 12)) for _ in range(120)))
    return path


def test_c9_one_command_compares_all_that_fit(folders, book):
    found = windows.compare(str(folders("llama")), 192, str(book), documents=2)
    names = {one["name"] for one in found["methods"]}
    assert names == {"none", "linear", "ntk", "dynamic", "by_parts", "yarn", "llama3", "abf"}
    assert (found["window"], found["target"], found["family"]) == (64, 192, "rope")
    edges = ["0-32", "32-64", "64-128", "128-192"]
    by_name = {one["name"]: one for one in found["methods"]}
    assert all(list(one["loss_by_bucket"]) == edges for one in found["methods"])
    none, dynamic = by_name["none"]["loss_by_bucket"], by_name["dynamic"]["loss_by_bucket"]
    assert none["0-32"] == pytest.approx(found["baselines"]["truncated"]["0-32"], abs=1e-4)
    assert none["128-192"] != dynamic["128-192"]
    losses = {one["name"]: one["loss"] for one in found["methods"]}
    assert losses[found["recommended"]] <= min(losses.values()) + 0.02, "recommended by numbers, not by name"
    assert set(found["refused"]) == {"learned", "longrope", "sinusoidal"}


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_learned_tables_are_compared_too(folders, book, kind):
    found = windows.compare(str(folders(kind)), 128, str(book), documents=1)
    by_name = {one["name"]: one for one in found["methods"]}
    assert set(by_name) == {"none", "learned-tile", "learned-interpolate", "learned-random"}
    assert by_name["none"]["loss"] is None, "the table ends: nothing can be measured beyond it"
    assert by_name["none"]["loss_by_bucket"]["0-32"] == by_name["learned-tile"]["loss_by_bucket"]["0-32"]
    assert found["recommended"] != "none"


def test_without_text_only_what_fits(folders):
    found = windows.compare(str(folders("llama")), 192)
    assert found["recommended"] is None
    assert {"yarn", "linear"} <= {one["name"] for one in found["methods"]}


@pytest.mark.parametrize(
    ("to", "error", "said"),
    [(64, RecipeError, "not longer than the model's window 64"), (4096, DataError, "has 15.. tokens")],
)
def test_bad_targets_are_refused_with_the_number(folders, book, to, error, said):
    with pytest.raises(error, match=said):
        windows.compare(str(folders("llama")), to, str(book), documents=1)


def test_recommendation_follows_loss_then_passkey():
    def one(name, loss, passkey):
        return {"name": name, "loss": loss, "passkey": passkey}

    assert windows.recommend([one("none", 2.0, 0.0), one("yarn", 2.4, 0.9)])[0] == "none"
    assert windows.recommend([one("none", 2.01, 0.0), one("yarn", 2.0, 0.1), one("ntk", 2.015, 0.5)])[0] == "ntk"


def test_the_verb_prints_the_contracts_object(folders, book, capsys):
    from luthier.cli.app import outcome

    words_given = ["context", str(folders("llama")), "--to", "128", "--text", str(book), "--documents", "1", "--json"]
    assert outcome(words_given) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"window", "target", "family", "methods", "recommended"} <= set(found)
    assert {"name", "loss_by_bucket", "passkey"} <= set(found["methods"][0])


def test_tasks_are_written_for_a_recipe(folders, book, tmp_path):
    train, test = windows.write_tasks(str(folders("llama")), 128, str(book), tmp_path, count=12)
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    assert {row["kind"] for row in rows} == set(longtasks.KINDS)
    assert len(test.read_text().splitlines()) == 6


def test_a_method_that_loses_to_the_bases_own_window_is_told():
    chosen = {"loss_by_bucket": {"0-32": 2.0, "32-64": 2.0, "64-128": 3.0, "128-192": 3.2}}
    own = {"0-32": 2.0, "32-64": 2.0, "64-128": 2.5, "128-192": 2.6}
    assert windows.beside_own_window(chosen, own, 64).endswith("only has 2.550, this 3.100: untuned, it costs")
    assert windows.beside_own_window(chosen, {**own, "64-128": 4.0}, 64) == ""
    assert windows.beside_own_window(chosen, {"0-32": 2.0}, 64) == ""
