"""Splits: disjoint by group, seeded, of the size that was asked, or an error that says what is needed."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.core.types import Example, Source, Turn
from luthier.data import load, split, twins
from luthier.data.settings import SplitSettings


def text_of(number: int) -> str:
    """Texts with no words in common."""
    return " ".join(f"w{number}x{place}" for place in range(8))


def example(number: int, text: str | None = None, **more) -> Example:
    return Example(f"r{number}", (Turn("user", text or text_of(number)),), Source("f.jsonl", number + 1), **more)


def divided(rows, task="instruct", **options):
    return split.split(load.examples_of(rows), SplitSettings(**options), task)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=12, max_size=60),
    share=st.sampled_from([0.1, 0.2, 3]),
    seed=st.integers(0, 1000),
)
def test_groups_never_straddle_and_every_row_is_used_once(sizes, share, seed):
    rows, number = [], 0
    for group, size in enumerate(sizes):
        for _ in range(size):
            rows.append(example(number, group=f"g{group}"))
            number += 1
    if number < 11:
        return
    sides = divided(rows, validation=share, test=share, seed=seed)
    ids = sides.ids()
    assert sorted(chain.from_iterable(ids.values())) == sorted(row.id for row in rows)
    home = {}
    for side in split.SIDES:
        for row in getattr(sides, side):
            assert home.setdefault(row.group, side) == side
    wanted = share if share >= 1 else int(number * share + 1e-9)
    for side in ("validation", "test"):
        assert 0 < len(getattr(sides, side)) <= max(wanted, max(sizes))


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(40)), st.integers(0, 99))
def test_the_order_of_the_file_changes_nothing(order, seed):
    rows = [example(n) for n in range(40)]
    one = divided(rows, seed=seed).ids()
    other = divided([rows[n] for n in order], seed=seed).ids()
    assert {side: set(ids) for side, ids in one.items()} == {side: set(ids) for side, ids in other.items()}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("aaaabbc"), min_size=30, max_size=120))
def test_classes_are_shared_out_and_each_stays_in_train(labels):
    rows = [example(n, label=label) for n, label in enumerate(labels)]
    sides = divided(rows, "classify", validation=0.2, test=0.2)
    whole = Counter(labels)
    for side in ("validation", "test"):
        got = Counter(row.label for row in getattr(sides, side))
        for name, count in whole.items():
            assert abs(got[name] - 0.2 * count) <= 1.5
    assert {row.label for row in sides.train} == set(labels)
    assert sides.report["balance"]["train"] == dict(Counter(row.label for row in sides.train).most_common())


def test_planted_twins_never_straddle():
    rows = [example(n) for n in range(100)]
    for n in range(40):
        words = text_of(n).split()
        twin = [text_of(n).upper(), text_of(n) + " ", " ".join([*words[:3], "other", *words[4:]])][n % 3]
        rows.append(example(1000 + n, twin))
    for seed in range(5):
        sides = divided(rows, seed=seed)
        home = {row.id: side for side in split.SIDES for row in getattr(sides, side)}
        assert all(home[f"r{n}"] == home[f"r{1000 + n}"] for n in range(40))
        assert sides.report["overlap"] == {}
        assert sides.report["largest_group"] == 2


def test_group_none_divides_rows_one_by_one():
    rows = [example(n, "the same text in every single row here") for n in range(20)]
    with pytest.raises(DataError, match="independent groups"):
        divided(rows)
    sides = divided(rows, group="none")
    assert sides.report["rows"] == {"train": 16, "validation": 2, "test": 2}
    assert sides.report["overlap"]["test in train"]["exact"] == 2


@pytest.mark.parametrize(
    ("count", "options", "need"),
    [
        (5, {}, "at least 10 rows"),
        (9, {"validation": 0.1, "test": 0}, "at least 10 rows"),
        (30, {"validation": 0.01, "test": 0}, "at least 100 rows"),
        (10, {"validation": 5, "test": 5}, "at least 11 rows"),
    ],
)
def test_too_few_rows_say_how_many_are_needed(count, options, need):
    with pytest.raises(DataError, match=need) as caught:
        divided([example(n) for n in range(count)], **options)
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].remedy


def test_nothing_asked_leaves_all_to_train():
    assert divided([example(0)], validation=0, test=0).report["rows"] == {"train": 1, "validation": 0, "test": 0}


def test_max_rows_takes_rows_of_the_shuffle_before_dividing():
    loaded = load.examples_of([example(n) for n in range(100)])
    loaded.max_rows = 20
    sides = split.split(loaded, SplitSettings(), "instruct")
    assert sides.report["rows"] == {"train": 16, "validation": 2, "test": 2}
    assert sides.report["unused"] == 80
    assert [row.source.line for row in sides.train] != list(range(1, 17))


def test_by_time_the_newest_rows_are_the_test():
    days = [f"2024-01-{day:02}" for day in range(1, 31)]
    rows = [example(n, extra={"when": days[(n * 7) % 30]}) for n in range(30)]
    sides = divided(rows, by_time="when")
    assert sorted(row.extra["when"] for row in sides.test) == days[27:]
    assert sorted(row.extra["when"] for row in sides.validation) == days[24:27]
    with pytest.raises(DataError) as caught:
        divided([*rows, example(31, extra={"when": "soon"})], by_time="when")
    assert caught.value.problems[0].where == "f.jsonl:32"


def test_a_column_that_says_the_split_is_obeyed():
    tags = ["train"] * 20 + ["test"] * 5 + ["validation"] * 3
    sides = divided([example(n, split=tag) for n, tag in enumerate(tags)])
    assert sides.report["rows"] == {"train": 20, "validation": 3, "test": 5}
    only = divided([example(n, split=tag) for n, tag in enumerate(tags[:25])])
    assert only.report["rows"] == {"train": 18, "validation": 2, "test": 5}


def test_a_class_that_is_not_trained_is_refused():
    rows = [example(n, label="ab"[n % 2], split="train") for n in range(20)]
    rows += [example(30 + n, label="c", split="test") for n in range(3)]
    with pytest.raises(DataError, match="'c'") as caught:
        divided(rows, "classify")
    assert caught.value.problems[0].where in ("f.jsonl:31", "f.jsonl:32", "f.jsonl:33")


def test_weights_repeat_and_thin_training_rows_only():
    loaded = load.examples_of([example(n) for n in range(100)])
    loaded.weights = {"f.jsonl": 2.5}
    sides = split.split(loaded, SplitSettings(), "instruct")
    assert len(sides.test) == 10
    assert 160 + 20 <= len(sides.train) <= 160 + 60
    ids = sides.ids()["train"]
    shown = [row.id for row in sides.train]
    assert len(set(shown)) == len(shown)
    assert shown == ids
    loaded.weights = {"f.jsonl": 0.5}
    assert 20 <= len(split.split(loaded, SplitSettings(), "instruct").train) <= 60


def test_clusters_are_listed_largest_first():
    rows = [example(0), example(1, text_of(0)), example(2), *[example(n, text_of(9)) for n in range(3, 6)]]
    found = twins.find([rows])
    assert [sorted(part.tolist()) for part in twins.members(found.clusters)] == [[3, 4, 5], [0, 1]]
