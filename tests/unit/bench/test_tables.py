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


def pair_of(peer, ratio, low, high, rate):
    arms = [
        {
            "name": name,
            "tokens_per_cpu_s": value,
            "mfu": 0.5,
            "peak_rss_mb": 10.0,
            "loss": 1.0,
            "computed_positions": 14,
        }
        for name, value in (("luthier", rate), (peer, rate / ratio))
    ]
    ratios = {f"luthier/{peer}": {"median": ratio, "range": [low, high], "clear": True}}
    return {"shape": "llama25m", "peer": peer, "arms": arms, "ratios": ratios, "work": {"tokens": 7}}


def test_pairs_become_a_table_with_the_goals_beside_them():
    module = module_of(ROOT / "benchmarks" / "bench_engine.py")
    pairs = [
        pair_of("trl_packing", 2.0, 1.9, 2.1, 100.0),
        pair_of("trl_packing", 3.0, 0.9, 3.2, 200.0),
        pair_of("trl_sorted", 4.0, 3.9, 4.1, 120.0),
    ]
    found = module.table(pairs, "llama25m")
    assert found["ratios"]["luthier/trl_packing"] == {"median": 2.5, "range": [0.9, 3.2], "clear": False}
    assert found["ratios"]["luthier/trl_best"]["arm"] == "trl_packing"
    assert found["goals"]["luthier/trl_best"] == {"goal": 2.0, "measured": 2.5}
    assert found["goals"]["luthier/documents"]["measured"] is None
    assert found["arms"]["luthier"]["tokens_per_cpu_s"] == 120.0
    assert module.table(pairs, "opt125m") == {}
    left = module.missing(pairs, ["llama25m"], ["trl_packing", "trl_sorted", "documents"], 2)
    assert left == [("llama25m", "documents"), ("llama25m", "trl_sorted")]
    assert found["arms"]["trl_sorted"]["positions_per_token"] == 2.0
    assert found["arms"]["trl_sorted"]["tokens_per_cpu_s"] == pytest.approx(30.0)
