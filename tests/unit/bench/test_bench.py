"""The bench: the same work in every arm, right before fast, honest ratios, arms that exist."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from luthier.bench import arms, control, crew, figures, work
from luthier.bench.worker import Worker
from luthier.core.errors import GateFailed, LuthierError, RecipeError


def test_rows_have_the_documented_lengths():
    lengths = np.array([len(row["input_ids"]) for row in work.make_rows(2000, 1000)])
    assert 74 <= np.median(lengths) <= 88
    assert 280 <= np.percentile(lengths, 90) <= 370
    assert lengths.max() == 512
    row = work.make_rows(3, 1000)[0]
    trained = sum(label != -100 for label in row["labels"])
    assert trained == len(row["labels"]) - int(len(row["labels"]) * 0.22)


def test_a_common_beginning_is_generated_untrained_and_found():
    plain, rows = work.make_rows(5, 1000), work.make_rows(5, 1000, prefix=30)
    assert work.shared(plain) == 0
    assert work.shared(rows) == 30
    assert [row["input_ids"][30:] for row in rows] == [row["input_ids"] for row in plain]
    assert all(row["labels"][:30] == [-100] * 30 for row in rows)


def test_flops_of_a_known_shape(tmp_path):
    made = work.prepare(tmp_path, "tiny", 4)
    lengths = [len(row["input_ids"]) for row in json.loads((tmp_path / "rows.json").read_text())]
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    linear = 2 * layer + 32 * 256
    adapters = 2 * (8 * (32 + 32) + 8 * (32 + 16))
    attention = sum(6 * 2 * 32 * n * n / 2 * 2 for n in lengths)
    assert made["flops"] == pytest.approx((4 * linear + 6 * adapters) * sum(lengths) + attention)
    assert made["tokens"] == sum(lengths)


def test_rows_of_the_users_file(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("question,answer\nWhat is one and one?,Two.\nAnd two?,Four\nAnd four?,Eight\n", "utf-8")
    made = work.prepare(tmp_path, "tiny", 2, data=str(file))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert made["count"] == len(rows) == 2
    assert 0 < made["supervised"] < made["tokens"]
    assert made["shared"] >= 1
    assert max(max(row["input_ids"]) for row in rows) >= 256  # tokens of the built-in base, so the shape was widened
    from luthier.models.load import load_base
    from luthier.models.settings import ModelSettings

    said = load_base(ModelSettings()).tokenizer.decode([i for i in rows[0]["labels"] if i != -100])
    assert "Two." in said


def runs(*seconds):
    return [{"cpu_s": s, "wall_s": 2 * s, "slots": 100, "peak_rss_mb": 10.0 * s} for s in seconds]


FACTS = {"tokens": 100, "flops": 2e9, "shape": "x", "count": 1, "supervised": 1, "rows_per_step": 1, "lr": 1.0}


def test_ratios_are_paired_inside_a_round():
    records = {"luthier": runs(1, 2, 4), "trl": runs(2, 4, 12), "trl_packing": runs(3, 1, 20)}
    losses = dict.fromkeys(records, 1.5)
    found = control.summary(FACTS, [10.0, 10.0, 10.0], records, losses, 2.0, load=[[1.0]] * 3, versions={"trl": {}})
    assert found["ratios"]["luthier/trl"] == {"median": 2.0, "range": [2.0, 3.0], "clear": True}
    assert found["ratios"]["luthier/trl_packing"] == {"median": 3.0, "range": [0.5, 5.0], "clear": False}
    assert found["ratios"]["luthier/trl_best"]["arm"] == "trl_packing"
    first = found["arms"][0]
    assert (first["tokens_per_cpu_s"], first["tokens_per_s"], first["mfu"]) == (50.0, 25.0, 0.1)
    assert first["peak_rss_mb"] == 40.0
    assert (first["cpu_s"], first["wall_s"]) == ([1, 2, 4], [2, 4, 8])
    assert found["load"] == [[1.0]] * 3


def test_a_ratio_is_named_only_where_the_rounds_show_it():
    same, slower = runs(1, 2), runs(2, 5)
    assert figures.told(figures.ratio(same, slower)) == "2.25 x faster (2.00–2.50)"
    assert figures.told(figures.ratio(slower, same)) == "2.22 x slower (0.40–0.50)"
    assert figures.told(figures.ratio(same, runs(0.9, 3))) == "no difference shown (0.90–1.50)"
    assert figures.told(figures.ratio(runs(1), runs(3))) == "no difference shown (3.00–3.00)"


def test_a_gpu_is_timed_by_the_wall_and_tells_its_memory():
    mine = [{**one, "wall_s": 1.0, "peak_cuda_mb": 7.0} for one in runs(1, 1)]
    other = [{**one, "wall_s": 3.0, "peak_cuda_mb": 9.0} for one in runs(1, 1)]
    records = {"luthier": mine, "luthier_top": other}
    found = figures.summary({**FACTS, "device": "cuda"}, [4.0, 4.0], records, dict.fromkeys(records, 1.0), 2.0)
    assert found["clock"] == "wall_s"
    assert found["ratios"]["luthier/luthier_top"]["median"] == 3.0
    assert [arm["peak_cuda_mb"] for arm in found["arms"]] == [7.0, 9.0]
    assert [arm["mfu"] for arm in found["arms"]] == [0.5, None]  # the top layers alone are not the whole products


def test_arms_are_chosen():
    assert control.choose([], {}) == ["luthier", "luthier_padded", "transformers"]
    assert control.choose(["documents"], {}) == ["luthier", "documents"]
    assert "trl_packing" in control.choose([], {"trl": "p"})
    refusals = {
        "fast": "no arm",
        "trl": "interpreter",
        "luthier_varlen": "is for cuda",
        "luthier_shared_prefix": "share",
    }
    for name, words in refusals.items():
        with pytest.raises(RecipeError, match=words):
            control.choose([name], {})
    assert control.choose(["luthier_shared_prefix"], {}, shared=16)[-1] == "luthier_shared_prefix"


def test_the_device_is_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert control.place("auto", "auto") == ("cpu", "float32")
    with pytest.raises(RecipeError, match="no GPU"):
        control.place("cuda", "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert control.place("auto", "auto") == ("cuda", "bfloat16")
    assert control.place("cpu", "bfloat16") == ("cpu", "bfloat16")
    with pytest.raises(RecipeError, match="dtype"):
        control.place("cpu", "int4")


def test_a_process_that_does_not_leave_is_ended(tmp_path, monkeypatch):
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "run.py").write_text("import time; time.sleep(600)", "utf-8")
    monkeypatch.setattr(crew, "HERE", tmp_path)
    arm = control.Arm("trl", tmp_path, sys.executable, 1)
    wait = arm.process.wait
    monkeypatch.setattr(arm.process, "wait", lambda seconds=None: wait(seconds and 0.1))
    arm.end()
    assert arm.process.returncode == -9


class Played:
    """An arm that takes `size` bytes of a machine while it lives, and does what is written for it."""

    machine, log, answers = 0.0, [], {}

    def __init__(self, name, *rest):
        self.name, self.process = name, SimpleNamespace(pid=0)
        Played.machine -= 4e9
        Played.log.append(f"+{name}")

    def order(self, do, **more):
        found = Played.answers.get((self.name, do), {})
        if isinstance(found, Exception):
            raise found
        ready = {"peak_rss_mb": 4e9 / (1 << 20), "cpu_s": 1.0, "wall_s": 1.0, "slots": 1, "versions": {"torch": "2"}}
        Played.log.append(f"{do} {self.name}")
        return {**ready, **found}

    def end(self):
        Played.machine += 4e9
        Played.log.append(f"-{self.name}")


def crew_of(tmp_path, memory, tells=True):
    Played.machine, Played.log, Played.answers = memory, [], {}
    free = (lambda: Played.machine) if tells else (lambda: None)
    return crew.Crew(tmp_path, {}, 1, 1e9, free, Played)


def test_arms_live_together_only_while_memory_holds_them(tmp_path):
    made = crew_of(tmp_path, 100e9)
    for name in ("luthier", "documents", "luthier"):
        made.order(name, "go")
    assert Played.log == ["+luthier", "warm luthier", "go luthier", "+documents", "warm documents", "go documents",
                          "go luthier"]  # fmt: skip
    assert made.ended_for_room == 0
    for memory, tells in ((9e9, True), (100e9, False)):  # the second arm would fit, not with what is kept spare
        made = crew_of(tmp_path, memory, tells) if not tells else crew_of(tmp_path, 8.5e9)
        made.order("luthier", "go")
        made.order("documents", "go")
        assert Played.log[3:5] == ["-luthier", "+documents"]
        made.order("luthier", "go")  # started again, and warmed up again
        assert Played.log[-4:] == ["-documents", "+luthier", "warm luthier", "go luthier"]
        assert made.ended_for_room == 2


def test_memory_is_read_where_the_system_tells_it(monkeypatch, tmp_path):
    import os
    from pathlib import Path

    told = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2000 kB\n", "/sys/fs/cgroup/memory.max": "1500000",
            "/sys/fs/cgroup/memory.current": "500000"}  # fmt: skip

    def read(path):
        if str(path) not in told:
            raise FileNotFoundError(path)
        return told[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    assert crew.free_memory() == 1_000_000.0
    told["/sys/fs/cgroup/memory.max"] = "max"
    assert crew.free_memory() == 2_048_000.0
    assert crew.resident(os.getpid()) == 0.0
    told[f"/proc/{os.getpid()}/statm"] = "9 3 1"
    assert crew.resident(os.getpid()) == 3 * os.sysconf("SC_PAGE_SIZE")
    told.clear()
    assert crew.free_memory() is None


class Judge:
    """Compares what an arm says with 1.0."""

    def order(self, do, **more):
        error = abs(more["found"]["loss"] - 1.0)
        none = {"loss_error": 0.0, "gradient_error": 0.0}
        return {"loss_error": error, "gradient_error": 0.0, "rounding": none, "tolerance": 1e-4, "ok": error <= 1e-4}


def measuring(tmp_path, **answers):
    made = crew_of(tmp_path, 100e9)
    Played.answers = {
        (name, "check"): one if isinstance(one, Exception) else ({"loss": one} if isinstance(one, float) else one)
        for name, one in answers.items()
    }
    return control.Measuring(Judge(), made, tmp_path, lambda words: None)


def test_an_arm_that_fails_its_check_is_dropped_before_anything_is_timed(tmp_path):
    names = ("luthier", "luthier_padded", "luthier_int8", "trl", "transformers", "luthier_compiled")
    lossy, gone = {"loss": 1.2}, LuthierError("no module named trl")
    refused = {"refused": "a cosine of 0.9"}
    found = measuring(
        tmp_path, luthier=1.00001, luthier_padded=1.001, luthier_int8=lossy, trl=gone, transformers=1.0,
        luthier_compiled=refused,
    )  # fmt: skip
    assert found.correct(names) == ["luthier", "luthier_int8", "transformers"]
    why = {one["name"]: one["why"] for one in found.dropped}
    assert why["luthier_padded"].startswith("loss error 0.001, allowed 0.0001")
    assert why["trl"] == "no module named trl"
    assert why["luthier_compiled"] == "refused: a cosine of 0.9"
    assert set(found.crew.alive) == {"luthier", "luthier_int8", "transformers"}
    assert not [line for line in Played.log if line.startswith("go")]
    assert found.versions["luthier"] == {"torch": "2"}
    with pytest.raises(GateFailed, match="not exact"):
        measuring(tmp_path, luthier=1.1).correct(["luthier"])


def test_an_arm_that_cannot_do_its_epoch_is_dropped_and_the_others_go_on(tmp_path):
    found = measuring(tmp_path)
    found.judge = SimpleNamespace(order=lambda do, **more: {"gemm_gflops": 5.0})
    Played.answers = {("trl", "warm"): LuthierError("took 11 tokens of 12"), ("documents", "go"): LuthierError("gone")}
    speeds, records, loads = found.rounds(["luthier", "trl", "documents", "transformers"], 2)
    assert {name: len(each) for name, each in records.items()} == {"luthier": 2, "transformers": 2}
    assert (speeds, len(loads)) == ([5.0, 5.0], 2)
    assert found.dropped == [{"name": "trl", "why": "took 11 tokens of 12"}, {"name": "documents", "why": "gone"}]
    assert set(found.crew.alive) == {"luthier", "transformers"}
    Played.answers = {("luthier", "go"): LuthierError("killed")}
    with pytest.raises(GateFailed, match="killed"):
        found.rounds(["luthier"], 1)


def test_losses_after_the_epoch_must_agree():
    losses = {"luthier": 2.0, "luthier_padded": 2.0005, "transformers": 2.03, "documents": 2.5, "luthier_int8": 2.2,
              "trl_packing": 2.3, "luthier_top": 2.4, "luthier_trunk_cache": 2.4}  # fmt: skip
    assert list(figures.disagreeing(losses, 3.0)) == ["transformers"]
    assert list(figures.disagreeing({**losses, "luthier_trunk_cache": 2.5}, 3.0)) == [
        "transformers",
        "luthier_trunk_cache",
    ]
    assert list(figures.disagreeing({**losses, "luthier_padded": float("nan")}, 3.0)) == [
        "luthier_padded",
        "transformers",
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Work and references of the tiny shape."""
    folder = tmp_path_factory.mktemp("bench")
    judge = Worker(folder, "judge")
    judge.answer("prepare", {"shape": "tiny", "rows": 24, "prefix": 20})
    rounding = judge.answer("reference", {"objectives": ["answers", "top"]})
    assert 0 < rounding["answers"]["rounding"]["gradient_error"] < 5e-6
    return folder, judge


EXACT = [name for name, kind in arms.KINDS.items() if not (kind.peer or kind.device or kind.lossy)]


@pytest.mark.parametrize("name", [name for name in EXACT if name != "luthier_compiled"])
def test_every_exact_arm_is_held_against_float64(made, name):
    folder, judge = made
    arm, kind = Worker(folder, name), arms.KINDS[name]
    if name == "luthier_trunk_cache":  # the tiny shape has two layers: the top one is the upper
        assert arm.answer("warm", {})["slots"] > 0
        assert arm.made[""].adapted.base.trunk.used > 0
    found = arm.answer("check", {"save": str(folder / "gradients.safetensors")})
    check = judge.answer("compare", {"found": found, "objective": kind.objective})
    assert check["ok"]
    assert check["gradient_error"] < 5e-6
    assert found["versions"]["torch"]
    went = arm.answer("go", {"save": str(folder / name)})
    tokens = sum(len(row.input_ids) for row in arm.made[""].rows)
    assert went["slots"] == tokens if name in ("luthier", "luthier_plain_loss") else went["slots"] > 0
    if name == "luthier_shared_prefix":
        assert went["slots"] == tokens - 20 * (16 - 1) - 20 * (8 - 1)
    after = judge.answer("judge", {"adapter": str(folder / name), "objective": kind.objective})["loss"]
    assert after < judge.answer("judge", {"adapter": str(folder / "start"), "objective": "answers"})["loss"]


def test_a_wrong_gradient_is_seen(made):
    from safetensors.torch import load_file, save_file

    folder, judge = made
    file = folder / "wrong.safetensors"
    found = Worker(folder, "luthier").answer("check", {"save": str(file)})
    right = load_file(file)
    name = sorted(right)[0]
    for wrong in ({name: right[name] * 1.0003}, {name: right[name] * float("nan")}):
        save_file({**right, **wrong}, file)
        check = judge.answer("compare", {"found": found, "objective": "answers"})
        assert not check["ok"]
        assert json.dumps(check, allow_nan=False)
    save_file({key: value for key, value in right.items() if key != name}, file)
    assert not judge.answer("compare", {"found": found, "objective": "answers"})["ok"]
    save_file({key.replace(".weight", ".default.weight"): value for key, value in right.items()}, file)  # PEFT's names
    assert judge.answer("compare", {"found": found, "objective": "answers"})["ok"]
    far = {**found, "loss": found["loss"] * 1.0002}
    assert not judge.answer("compare", {"found": far, "objective": "answers"})["ok"]


def test_eight_bits_go_through_the_products_own_refusal(made, monkeypatch):
    from luthier.models import int8

    folder, _ = made
    assert "loss" in Worker(folder, "luthier_int8").answer("check", {"save": str(folder / "g.safetensors")})
    monkeypatch.setattr(int8, "COSINE", 1.5)
    found = Worker(folder, "luthier_int8").answer("check", {"save": str(folder / "g.safetensors")})
    assert "cosine" in found["refused"]


def test_the_plot_shows_medians_and_ranges():
    from luthier.bench import picture

    seconds = {"luthier": [1.0, 2.0, 4.0], "trl": [10.0, 20.0]}
    found = {
        "work": {"tokens": 100, "shape": "x", "count": 3},
        "clock": "cpu_s",
        "rounds": 3,
        "arms": [{"name": name, "cpu_s": values} for name, values in reversed(seconds.items())],
    }
    assert picture.bars_of(found) == [
        {"name": "luthier", "rate": 50.0, "low": 25.0, "high": 100.0},
        {"name": "trl", "rate": 7.5, "low": 5.0, "high": 10.0},
    ]
    assert picture.draw(found).startswith(b"\x89PNG")


@pytest.mark.slow
def test_arms_do_the_same_work():
    found = control.bench(["luthier_padded", "transformers"], shape="tiny", rows=32, rounds=1)
    losses = {arm["name"]: arm["loss"] for arm in found["arms"]}
    assert set(losses) == {"luthier", "luthier_padded", "transformers"}
    assert found["dropped"] == []
    before = found["work"]["loss_before"]
    assert all(abs(loss - losses["luthier"]) < 2e-6 for loss in losses.values())
    assert before - losses["luthier"] > 1e-5
    positions = {arm["name"]: arm["computed_positions"] for arm in found["arms"]}
    assert positions["luthier"] == found["work"]["tokens"] < positions["transformers"]
    assert found["gemm_gflops"] > 0
    assert all(arm["check"]["ok"] and arm["versions"]["torch"] for arm in found["arms"])
    assert len(found["load"]) == found["rounds"] == 1
