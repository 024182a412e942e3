"""Which layout is used: the flat one where it is exact, on a GPU by one kernel or by a call a length, else padding."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.adapted import AdaptedModel
from luthier.core.errors import RecipeError
from luthier.core.types import Row
from luthier.engine import attention, flex
from luthier.methods import METHODS
from luthier.models import anatomy, selfcheck
from luthier.models.base import Base
from luthier.tasks import TASKS


@pytest.fixture
def parts():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    base = Base(model, None, anatomy.of(model), "decoder", None, {}, (2,), 1)
    attached = METHODS.parse({"name": "lora", "r": 4}).attach(base, 0)
    source = np.random.default_rng(0)
    ids = [source.integers(3, 64, n).astype(np.int32) for n in (12, 20, 7)]
    yield AdaptedModel(base, attached, None, TASKS.parse("instruct"), {"name": "lora"}), [Row("", i, i) for i in ids]
    attention.use_fused(True)


def choose(parts):
    told = []
    layout = selfcheck.choose_layout(*parts, lambda kind, **facts: told.append((kind, facts)))
    assert len(told) == 1
    return layout, *told[0]


def test_exact_and_told(parts):
    layout, kind, facts = choose(parts)
    assert (layout, kind, parts[0].layout) == ("flat", "selfcheck", "padded")
    assert facts["difference"] < facts["tolerance"] == 1e-4


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_gpu_goes_on_with_a_call_a_length(parts, monkeypatch, fault):
    def kernel(query, *rest):
        if fault == "raises":
            raise RuntimeError("no kernel image")
        return torch.zeros_like(query).transpose(0, 1)

    monkeypatch.setattr(flex, "fits", lambda *args: True)
    monkeypatch.setattr(flex, "attend", kernel)
    layout, _, facts = choose(parts)
    assert layout == "padded"
    assert ("no kernel image" if fault == "raises" else "differ") in facts["what"]
    monkeypatch.setattr(selfcheck, "_on_gpu", lambda adapted: True)
    layout, _, facts = choose(parts)
    assert (layout, facts["difference"] < 1e-5) == ("flat", True)


def test_beyond_rounding_is_padding(parts, monkeypatch):
    monkeypatch.setattr(selfcheck, "allowed", lambda adapted: 0.0)
    layout, kind, facts = choose(parts)
    assert (layout, kind) == ("padded", "warning")
    assert "flat ones differ by" in facts["what"]


WIDE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GQA = {**WIDE, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
UNFIT = {
    "sinks": (lambda t: t.GptOssConfig(head_dim=8, num_local_experts=2, num_experts_per_tok=1, **GQA), "sinks"),
    "alibi": (lambda t: t.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64), "alibi"),
    "window in the mask": (
        lambda t: t.PhimoeConfig(num_local_experts=2, num_experts_per_tok=1, sliding_window=16, **GQA),
        "sliding window or chunks into the mask",
    ),
    "chunks in the mask": (
        lambda t: t.Llama4TextConfig(
            head_dim=8, num_local_experts=1, intermediate_size_mlp=48, attention_chunk_size=16,
            layer_types=["chunked_attention", "full_attention"], **GQA
        ),
        "sliding window or chunks into the mask",
    ),
}  # fmt: skip


class Words(list):
    """As much of a tokenizer as a prefix's start asks for."""

    all_special_ids = (0, 1, 2)

    def __init__(self):
        super().__init__(range(64))


def adapted_of(config, method=None):
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    base = Base(model, Words(), anatomy.of(model), "decoder", None, {}, (2,), 0)
    targets = "qkv" if "qkv" in base.anatomy.linear_names else ["q", "v"]
    attached = METHODS.parse(method or {"name": "lora", "r": 4, "targets": targets}).attach(base, 0)
    return AdaptedModel(base, attached, None, TASKS.parse("instruct"), {"name": "lora"})


def rows_of(*lengths):
    source = np.random.default_rng(0)
    ids = [source.integers(3, 64, length).astype(np.int32) for length in lengths]
    return [Row("", one, one) for one in ids]


@pytest.mark.parametrize("kind", UNFIT)
def test_what_flat_batches_cannot_do_is_padded_and_said(kind):
    """Also where the checked rows are too short to show it."""
    import transformers

    config, reason = UNFIT[kind]
    layout, told, facts = choose((adapted_of(config(transformers)), rows_of(6, 9, 5)))
    assert (layout, told) == ("padded", "warning")
    assert reason in facts["what"]


def test_a_window_that_is_passed_stays_flat_and_the_longest_row_shows_it(monkeypatch):
    """With the window lost on its way, three short rows see nothing; the longest does."""
    import transformers

    from luthier.models import segments

    config = transformers.MistralConfig(sliding_window=16, **GQA)
    parts, longest = (adapted_of(config), rows_of(6, 9, 5)), rows_of(40)[0]
    assert selfcheck.choose_layout(*parts, longest=longest) == "flat"
    own = segments.segment_attention
    monkeypatch.setattr(
        segments, "segment_attention", lambda *args, **options: own(*args, **options | {"window": None})
    )
    assert selfcheck.choose_layout(*parts) == "flat"
    assert selfcheck.choose_layout(*parts, longest=longest) == "padded"


def test_the_longest_row_is_not_cut_below_the_window():
    from types import SimpleNamespace

    from luthier.pipeline import learn

    def picked(lengths, window):
        adapted = SimpleNamespace(base=SimpleNamespace(anatomy=SimpleNamespace(local_window=window)))
        row = learn._longest_row(adapted, SimpleNamespace(rows={"train": rows_of(*lengths)}))
        return row and len(row.input_ids)

    assert picked((5, 6, 7, 20, 4), None) == 20
    assert picked((5, 6, 30, 20, 4), None) is None  # among the first three
    assert picked((5, 6, 7, 3000), None) == 1024
    assert picked((5, 6, 7, 3000), 2000) == 2256
    assert picked((3000, 6, 7), 2000) == 2256
    assert picked((5, 6, 7, 1500), 2000) == 1500


def with_prefix(method="prefix"):
    """A trained prefix that acts, and rows."""
    import transformers

    adapted = adapted_of(transformers.LlamaConfig(**GQA), {"name": method, "length": 3})
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapted.parameters_by_name().values():
            weight.copy_(torch.randn(weight.shape, generator=source))
    return adapted, rows_of(6, 9, 5)


def test_flat_rows_keep_a_trained_prefix_while_layers_are_recomputed():
    """Padded ones lose it: the gradients of the prefix are others, so that layout is refused."""
    from luthier.engine.batch import from_rows
    from luthier.pipeline import learn
    from luthier.train.settings import TrainSettings

    adapted, rows = with_prefix()
    batch = [from_rows(rows)]
    adapted.train()
    adapted.layout = "flat"
    plain = selfcheck.measure(adapted, batch)
    adapted.loss_options = {"checkpointing": True}
    assert selfcheck.difference(plain, selfcheck.measure(adapted, batch)) < 1e-6
    assert choose((adapted, rows))[:2] == ("flat", "selfcheck")
    assert adapted.loss_options == {"checkpointing": True}
    settings = TrainSettings(activation_checkpointing=True)
    adapted.layout = "flat"
    learn._refuse_lost_prefix(settings, adapted)
    adapted.layout = "padded"
    with pytest.raises(RecipeError, match="a prefix is lost"):
        learn._refuse_lost_prefix(settings, adapted)
