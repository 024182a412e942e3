"""The pages made from measurements: fresh, and right in what they count."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def module_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_performance_page_is_fresh():
    module = module_of(ROOT / "docs" / "make_performance_page.py")
    assert module.PAGE.read_text("utf-8") == module.page(), "python docs/make_performance_page.py"


def pair_of(peer, ratio, low, high, rate, rows=32, rounds=2, positions=7):
    arms = [
        {
            "name": name,
            "tokens_per_cpu_s": value,
            "mfu": 0.5,
            "peak_rss_mb": 10.0,
            "loss": 1.0,
            "computed_positions": slots,
        }
        for name, value, slots in (("luthier", rate, 7), (peer, rate / ratio, positions))
    ]
    ratios = {f"luthier/{peer}": {"median": ratio, "range": [low, high], "clear": True}}
    work = {"tokens": 7, "count": rows}
    return {"shape": "llama25m", "peer": peer, "arms": arms, "ratios": ratios, "work": work, "rounds": rounds}


PAIRS = [
    pair_of("trl_packing", 2.0, 1.9, 2.1, 100.0),
    pair_of("trl_packing", 3.0, 0.9, 3.2, 200.0),
    pair_of("trl_sorted", 4.0, 3.9, 4.1, 120.0, positions=14),
    pair_of("luthier_int8", 0.5, 0.5, 0.5, 120.0, rounds=1),
]


def test_pairs_become_a_table_with_the_goals_beside_them():
    module = module_of(ROOT / "benchmarks" / "bench_engine.py")
    found = module.table(PAIRS, "llama25m", 32)
    packing = {"median": 2.5, "range": [0.9, 3.2], "clear": False, "epochs": 4}
    assert found["ratios"]["luthier/trl_packing"] == packing
    assert found["goals"]["luthier/documents"]["measured"] is None
    assert found["arms"]["luthier"]["tokens_per_cpu_s"] == 120.0
    assert found["arms"]["trl_sorted"]["positions_per_token"] == 2.0
    assert found["arms"]["trl_sorted"]["tokens_per_cpu_s"] == pytest.approx(30.0)
    assert found["ratios"]["luthier/luthier_int8"]["clear"] is False  # seen once
    assert module.table(PAIRS, "opt125m", 32) == {}
    assert module.measured("luthier_int8/luthier", found["ratios"], found["arms"]) == 2.0
    left = module.missing(PAIRS, ["llama25m"], ["trl_packing", "trl_sorted", "documents"], 2)
    assert left == [("llama25m", "documents"), ("llama25m", "trl_sorted")]


def test_the_best_of_trl_is_what_it_would_show_without_padding():
    module = module_of(ROOT / "benchmarks" / "bench_engine.py")
    found = module.table(PAIRS, "llama25m", 32)
    assert found["ratios"]["luthier/trl_sorted"]["without_padding"] == 2.0
    assert "without_padding" not in found["ratios"]["luthier/trl_packing"]
    assert found["ratios"]["luthier/trl_best"]["arm"] == "trl_sorted"
    assert found["goals"]["luthier/trl_best"] == {"goal": 2.0, "measured": 2.0}
    less = [*PAIRS[:2], pair_of("trl_sorted", 6.0, 5.0, 7.0, 120.0, positions=14)]
    assert module.table(less, "llama25m", 32)["goals"]["luthier/trl_best"]["measured"] == 2.5


def test_a_bench_of_several_arms_becomes_their_pairs():
    module = module_of(ROOT / "benchmarks" / "bench_engine.py")
    one, other = pair_of("trl_sorted", 4.0, 3.9, 4.1, 120.0), pair_of("luthier_int8", 0.5, 0.5, 0.5, 120.0)
    lost = {"name": "trl", "why": "off"}
    found = {**one, "arms": [*one["arms"], other["arms"][1]], "ratios": {**one["ratios"], **other["ratios"]}}
    names = ("trl_sorted", "luthier_int8", "trl")
    pairs = [module.pair_of({**found, "dropped": [lost]}, name) for name in names]
    assert [[arm["name"] for arm in pair["arms"]] for pair in pairs] == [
        ["luthier", "trl_sorted"],
        ["luthier", "luthier_int8"],
        ["luthier"],
    ]
    assert [list(pair["ratios"]) for pair in pairs] == [["luthier/trl_sorted"], ["luthier/luthier_int8"], []]
    assert [pair["dropped"] for pair in pairs] == [[], [], [lost]]


def test_pairs_of_other_rows_are_another_table():
    module = module_of(ROOT / "benchmarks" / "bench_engine.py")
    mixed = [*PAIRS, pair_of("trl_packing", 9.0, 9.0, 9.0, 100.0, rows=48)]
    made = module.tables(mixed)
    assert list(made) == ["llama25m, 32 rows", "llama25m, 48 rows"]
    assert made["llama25m, 32 rows"]["ratios"]["luthier/trl_packing"]["median"] == 2.5
    assert made["llama25m, 48 rows"]["ratios"]["luthier/trl_packing"]["median"] == 9.0
    assert (made["llama25m, 32 rows"]["pairs"], made["llama25m, 48 rows"]["pairs"]) == (4, 1)
    assert module.missing(mixed, ["llama25m"], ["trl_packing"], 3) == [("llama25m", "trl_packing")]


def test_the_page_has_every_goal_and_says_what_was_not_measured(monkeypatch):
    module = module_of(ROOT / "docs" / "make_performance_page.py")
    engine = module_of(ROOT / "benchmarks" / "bench_engine.py")
    pairs = engine.tables([*PAIRS, pair_of("trl_packing", 9.0, 9.0, 9.0, 100.0, rows=48)])
    shown = {"engine": {"tables": pairs}, "sequence": {"shapes": {"opt125m": {"share": {"luthier": 0.4}}}}}
    monkeypatch.setattr(module, "read", lambda name: shown.get(name, {}))
    text = module.goals()
    assert "| over TRL at its best, llama25m | ≥ 2.0 | 2.00 |" in text
    single = {"shape": "llama25m", "ratios": {"luthier/trl_best": {"median": 1.75}, "luthier/trl": {"median": 1.0}}}
    shown["peers"] = {"groups": [single]}
    assert "| over TRL at its best, llama25m | ≥ 2.0 | 1.75 |" in module.goals()
    assert "| over TRL at its best, opt125m | ≥ 2.0 | not measured |" in text
    assert "plain HF's, opt125m | ≤ 0.5 | 0.40 `luthier` |" in text
    assert "plain HF's, llama25m | ≤ 0.5 | not measured |" in text
    for goal in ("frozen-trunk cache", "shared instruction", "int8", "by generation", "MFU", "Unsloth", "first step"):
        assert goal in text
    assert module.told(pairs["llama25m, 32 rows"]["ratios"]["luthier/trl_packing"]).startswith("no difference shown")


def test_the_other_peers_stand_beside_luthier_in_the_same_rounds():
    module = module_of(ROOT / "docs" / "make_performance_page.py")
    group = pair_of("litgpt", 1.25, 1.2, 1.3, 500.0, positions=14)
    for arm in group["arms"]:
        arm["check"], arm["versions"] = {"objective": "rows", "gradient_error": 2e-6}, {"litgpt": "0.5"}
    found = {"groups": [{**group, "peer": "litgpt", "dropped": [{"name": "litgpt_x", "why": "off"}]}]}
    text = module.others(found)
    assert "### llama25m, 32 rows: 7 tokens, 2 epochs of every arm" in text
    assert "| `litgpt` | 400 | 500 | 2.00 | 10 | rows | 2e-06 | 1.0000 | 1.25 (1.20–1.30) |" in text
    assert "- `litgpt_x` was dropped: off." in text
    assert "| litgpt | litgpt 0.5 |" in text
    assert "Not measured yet" in module.others({})


def test_a_peer_is_measured_once_and_only_where_it_fits():
    module = module_of(ROOT / "benchmarks" / "bench_peers.py")
    groups = [pair_of("litgpt", 1.0, 1.0, 1.0, 1.0)]
    assert module.seen(groups, "llama25m", "litgpt", 32)
    assert not module.seen(groups, "llama25m", "litgpt", 48)
    assert not module.seen(groups, "opt125m", "litgpt", 32)
    assert module.usual("litgpt", "llama25m") == ["litgpt", "litgpt_sorted"]
    assert module.usual("litgpt", "opt125m") == module.usual("unsloth", "llama25m") == []
    assert "axolotl_packing" in module.usual("axolotl", "opt125m")


def test_shares_of_a_long_sequence():
    module = module_of(ROOT / "benchmarks" / "bench_sequence.py")
    plain, own = {"peak_mb": 200, "losses": [2.0, 1.0]}, {"peak_mb": 80, "losses": [2.00001, 1.0]}
    assert module.compared({"plain": plain, "luthier": own})["share"] == {"luthier": 0.4}
    assert module.compared({"plain": plain, "luthier": own})["same_loss"]
    assert not module.compared({"plain": plain, "luthier": {**own, "losses": [2.0, 1.001]}})["same_loss"]


def test_the_start_is_a_ratio_inside_a_pair():
    module = module_of(ROOT / "benchmarks" / "bench_startup.py")
    found = module.summary([{"run": 3.0, "bare": 2.0}, {"run": 2.0, "bare": 2.0}, {"run": 8.0, "bare": 4.0}])
    assert found["ratio"] == {"median": 1.5, "range": [1.0, 2.0]}
