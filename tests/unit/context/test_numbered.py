"""C1, C3, C4 and B10-B16 by number: what transformers 5.23 does, and what luthier does instead.

C2 stands in test_plans, C5 and C6 in test_stages, C7 in tests/golden and unit/train, C8 in test_attention, C9 in
test_windows.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from luthier.adapted import attach, load
from luthier.context import CONTEXTS
from luthier.context.plan import window_of
from luthier.core.errors import RecipeError
from luthier.data.templates import TEMPLATES
from luthier.models.load import load_base, read_config
from luthier.models.settings import ModelSettings
from luthier.models.window import RESERVED, longer_table, position_table
from luthier.pipeline import story
from luthier.recipe import Recipe
from luthier.tasks import TASKS

TARGET = 128
YARN = {"rope_type": "yarn", "factor": 2.0}


def plan_for(folder, name="yarn", length=TARGET, **params):
    return CONTEXTS.parse({"name": name, "length": length, **params}).plan(read_config(folder))


def extended(folder, **spec):
    return load_base(ModelSettings(path=str(folder)), context=plan_for(folder, **spec))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "docs.jsonl"
    source = np.random.default_rng(0)
    rows = ({"text": " ".join(f"w{i}" for i in source.integers(0, 9, 120))} for _ in range(20))
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@pytest.mark.parametrize("how", ["tile", "random", "interpolate"])
def test_c1_twice_the_window_trained_saved_and_loaded(folders, text, tmp_path, kind, how):
    """Old rows bit-equal (tile, random) or both ends equal (interpolate); a few steps; the round trip is the model."""
    folder = folders(kind)
    old = position_table(load_base(ModelSettings(path=str(folder))).model)[2].weight.detach()
    base = extended(folder, name="learned", how=how)
    new, reserved = position_table(base.model)[2].weight.detach(), RESERVED.get(kind, 0)
    assert len(new) == TARGET + reserved
    if how == "interpolate":
        assert torch.equal(new[[0, -1]], old[[0, -1]])
        assert torch.equal(new[:reserved], old[:reserved])
    else:
        assert torch.equal(new[: len(old)], old)
    recipe = Recipe(
        model={"path": str(folder)}, task="language_model", context={"name": "learned", "length": TARGET, "how": how},
        method={"name": "lora", "r": 2, "train_norms": True, "train_embeddings": True},
        data={"train": str(text), "template": "plain", "max_length": TARGET,
              "split": {"validation": 2, "test": 2, "group": "none"}},
        train={"steps": 4, "batch_tokens": 256, "lr": 1e-2, "evaluate_every": 4, "threads": 1},
        evaluate={"samples": {"count": 0}},
    )  # fmt: skip
    with_health(recipe, tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    held = [event["loss"] for event in events if event["kind"] == "validate"]
    assert held[-1] < held[0], "it learns"
    again = load(tmp_path / "run")
    assert again.base.anatomy.window == TARGET
    trained = position_table(again.base.model)[2].weight
    assert not torch.equal(trained[reserved + 64 :], new[reserved + 64 :]), "the new rows were trained"
    ids = torch.arange(TARGET)[None] % 90 + 3
    with torch.no_grad():
        before = again.base.model(input_ids=ids).logits
        again.save(tmp_path / "copy")
        assert torch.equal(load(tmp_path / "copy").base.model(input_ids=ids).logits, before)


def with_health(recipe, where):
    """The run, whatever its health says of four steps on noise."""
    import contextlib

    from luthier.core.errors import GateFailed

    with contextlib.suppress(GateFailed):
        story.run(recipe, where)


def test_c1_beyond_the_table_nothing_is_guessed(folders):
    """Unextended, a longer row is refused with the number; transformers itself gives a bare IndexError."""
    base = load_base(ModelSettings(path=str(folders("gpt2"))))
    with pytest.raises(IndexError):
        base.model(input_ids=torch.zeros(1, 65, dtype=torch.long))


def test_c1_a_table_that_stays_frozen_is_told(folders, text, tmp_path):
    """New rows need training: a method that leaves the table alone gets a warning."""
    recipe = Recipe(
        model={"path": str(folders("gpt2"))}, task="language_model",
        context={"name": "learned", "length": TARGET}, method={"name": "lora", "r": 2},
        data={"train": str(text), "template": "plain", "max_length": TARGET,
              "split": {"validation": 2, "test": 2, "group": "none"}},
        train={"steps": 1, "batch_tokens": 256, "threads": 1}, evaluate={"samples": {"count": 0}},
    )  # fmt: skip
    with_health(recipe, tmp_path / "run")
    assert "rows of the position table are not trained" in (tmp_path / "run" / "events.jsonl").read_text()


@pytest.mark.parametrize(("old", "new"), [(64, 128), (64, 256), (16, 33)])
def test_c3_interpolated_rows_lie_where_they_should(old, new):
    """Positions p (L0 - 1) / (L1 - 1): both ends kept and no two rows equal (the seed's mapping repeats the last)."""
    table = torch.arange(old, dtype=torch.float32)[:, None] * torch.tensor([[1.0, -2.0]])
    made = longer_table(table, 0, new, "interpolate", 0)
    expected = torch.arange(new) * (old - 1) / (new - 1)
    assert torch.allclose(made[:, 0], expected, atol=1e-4)
    assert torch.allclose(made[:, 1], -2 * expected, atol=1e-4)
    assert (made[:, 0].diff() > 0).all()


def test_c3_linear_divides_every_angle(folders):
    one = load_base(ModelSettings(path=str(folders("llama")))).model.model.rotary_emb
    two = extended(folders("llama"), name="linear").model.model.rotary_emb
    assert torch.allclose(two.inv_freq * 2, one.inv_freq)
    x, places = torch.zeros(1, 64, 16), torch.arange(64)[None]
    assert torch.allclose(two(x, places * 2)[0], one(x, places)[0], atol=1e-6)


def test_b10_a_rope_dict_without_theta_is_never_written(folders):
    """transformers loses rope_theta with it; the plan holds the full dict and loads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folders("llama"))
    config.rope_scaling = {**YARN, "original_max_position_embeddings": 64}
    with pytest.raises((TypeError, KeyError)):
        AutoModelForCausalLM.from_config(config)
    rope = plan_for(folders("llama"))["config"]["rope_parameters"]
    assert rope["rope_theta"] == 10000.0
    base = extended(folders("llama"))
    assert base.model.config.rope_parameters["rope_theta"] == 10000.0
    assert base.model.config.max_position_embeddings == TARGET


def test_b11_editing_the_config_after_loading_changes_nothing(folders):
    """In transformers itself; `test_proof` holds that luthier stops such a run."""
    base = load_base(ModelSettings(path=str(folders("llama"))))
    ids = torch.arange(TARGET)[None] % 90
    with torch.no_grad():
        before = base.model(input_ids=ids).logits
        base.model.config.rope_parameters = plan_for(folders("llama"))["config"]["rope_parameters"]
        assert torch.equal(base.model(input_ids=ids).logits, before)
        built = extended(folders("llama")).model(input_ids=ids).logits
    assert (built - before).abs().max() > 1e-3


def test_b12_without_the_original_length_yarn_takes_the_new_one():
    """2048 with factor 4 is read as an extension of 2048; ours names the old window, and the ramp differs."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    small = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 2048}
    silent = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    wrong = LlamaRotaryEmbedding(LlamaConfig(**small, rope_parameters=dict(silent))).inv_freq
    config = {**small, "model_type": "llama", "max_position_embeddings": 512,
              "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}  # fmt: skip
    changed = CONTEXTS.parse({"name": "yarn", "length": 2048}).plan(config)["config"]
    assert changed["rope_parameters"]["original_max_position_embeddings"] == 512
    right = LlamaRotaryEmbedding(LlamaConfig(**{**small, **changed})).inv_freq
    assert (right / wrong - 1).abs().max() > 0.1


def test_b14_rope_by_kind_of_layer_is_refused():
    """Nested dicts: transformers reads yarn's `truncate` from the outer one, so a plan would be half ignored."""
    config = {
        "model_type": "gemma3_text", "hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 64,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    }  # fmt: skip
    with pytest.raises(RecipeError, match="another RoPE in each kind of layer"):
        window_of(config)


@pytest.mark.parametrize("method", [{"name": "prompt", "length": 4}, {"name": "prefix", "length": 4}])
def test_b15_virtual_tokens_are_read_at_every_step_of_an_answer(folders, method):
    """PEFT asks for cache_position, which generate no longer gives; ours equals greedy steps by whole forwards."""
    base = extended(folders("llama"))
    made = attach(base, method, TASKS.parse("language_model"), TEMPLATES.parse("plain"), seed=0).eval()
    with torch.no_grad():
        for weight in made.parameters_by_name().values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.5)
    from luthier.core.types import Row
    from luthier.engine.batch import from_rows
    from luthier.models import forward

    ids = list(made.prompt_ids("w1 w2 w3 w4"))
    answer = made.generate("w1 w2 w3 w4", max_new_tokens=6)
    for _ in range(6):
        row = np.array(ids)
        with torch.no_grad():
            ids.append(int(forward.logits(base, made.hidden(from_rows([Row("r", row, row)]))[-1:]).argmax()))
        if ids[-1] in base.stop_ids:
            break
    shown = base.tokenizer.decode(ids[len(made.prompt_ids("w1 w2 w3 w4")) :], skip_special_tokens=True)
    assert answer.strip() == shown.strip()


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_b16_what_transformers_does_not_resize_is_resized_here(folders, kind):
    base = load_base(ModelSettings(path=str(folders(kind))))
    with pytest.raises(NotImplementedError):
        base.model.resize_position_embeddings(TARGET)
    assert extended(folders(kind), name="learned").anatomy.window == TARGET


def test_an_extended_folder_copied_elsewhere_loads_by_its_own_name(folders, tmp_path):
    """The plan, not the path, is what an adapter is held to."""
    made = attach(
        extended(folders("llama")), {"name": "lora", "r": 2}, TASKS.parse("language_model"), TEMPLATES.parse("plain"),
        seed=0,
    )  # fmt: skip
    made.save(tmp_path / "adapter")
    shutil.copytree(folders("llama"), tmp_path / "moved")
    again = load(tmp_path / "adapter", base=str(tmp_path / "moved"))
    assert again.base.anatomy.window == TARGET


def test_checks_before_training_take_no_more_memory_than_it(folders):
    """Three rows of a long window at once would set the peak; their ends decide as well."""
    from types import SimpleNamespace

    from luthier.core.types import Row
    from luthier.pipeline import learn

    long = Row("a", np.arange(4096), np.arange(4096) + 1)
    short, parallel = Row("b", np.arange(9), np.arange(9)), Row("c", np.arange(4096), np.arange(5))
    data = SimpleNamespace(rows={"train": [long, short, parallel]})
    one, two, three = learn._first_rows(data)
    assert one.input_ids.tolist() == list(range(3072, 4096))
    assert one.labels.tolist() == list(range(3073, 4097)), "the end, where answers are"
    assert two is short
    assert three is parallel, "labels of a decoder of their own"
