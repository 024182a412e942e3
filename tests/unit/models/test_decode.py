"""Generation: ended rows leave the batch, caches grow in place, and every row is what it would be alone."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers

from luthier.engine.batch import from_rows
from luthier.models import anatomy, decode
from luthier.models.base import Base
from luthier.models.forward import Virtual
from luthier.models.growing_cache import growing, keep_rows

GQA = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
       "num_key_value_heads": 2, "max_position_embeddings": 48}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
CONFIGS = {
    "llama": lambda t: t.LlamaConfig(**GQA),
    "gpt2": lambda t: t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=48),
    "mistral": lambda t: t.MistralConfig(sliding_window=5, **GQA),
    "dynamic": lambda t: t.LlamaConfig(**{**GQA, "max_position_embeddings": 24}, rope_parameters=DYNAMIC),
    "t5": lambda t: t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                               decoder_start_token_id=0, dropout_rate=0.0),
}  # fmt: skip
STOPS = tuple(range(0, 64, 9))


class Answers:
    """A base with fixed virtual tokens, that notes how many rows every step computes."""

    def __init__(self, kind, virtual="none"):
        torch.manual_seed(3)
        auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
        model = auto.from_config(CONFIGS[kind](transformers)).eval().requires_grad_(False)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 0.2)
        found = anatomy.of(model)
        self.base = Base(model, None, found, found.kind, None, {}, (2,), 0)
        self.rows = []
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(lambda module, args: self.rows.append(len(args[0])))
        source = torch.Generator().manual_seed(1)
        self.made = None
        if virtual == "prefix":
            shape = (3, found.num_kv_heads, found.head_dim)
            pairs = [tuple(torch.randn(shape, generator=source) for _ in range(2)) for _ in found.cached_attentions]
            self.made = Virtual(prefix=pairs, length=3)
        if virtual == "prompt":
            self.made = Virtual(prompt=torch.randn(3, 32, generator=source), length=3)

    def virtual(self, batch):
        return self.made


def prompts_of(*lengths):
    source = np.random.default_rng(5)
    return [source.integers(3, 64, length).tolist() for length in lengths]


PROMPTS = prompts_of(5, 9, 9, 3, 14, 7, 4, 9)


def alone(kind, virtual, prompts, limit):
    """Each by a model that has seen nothing else."""
    made = []
    for prompt in prompts:
        made += decode.generate(Answers(kind, virtual), [prompt], max_new_tokens=limit, stop_ids=STOPS)
    return made


@pytest.mark.parametrize("virtual", ["none", "prefix", "prompt"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "t5"])
def test_ended_rows_leave_and_all_are_what_they_are_alone(kind, virtual):
    answers = Answers(kind, virtual)
    made = decode.generate(answers, PROMPTS, max_new_tokens=20, stop_ids=STOPS)
    assert made == alone(kind, virtual, PROMPTS, 20)
    lengths = [len(one.ids) for one in made]
    assert len(set(lengths)) > 2
    assert sum(answers.rows) == sum(lengths)  # nothing is computed for a row that has ended
    batched = kind != "mistral" or virtual != "prefix"
    assert (answers.rows[0] == len(PROMPTS)) == batched  # a sliding window keeps only prefixes apart


@pytest.mark.parametrize("virtual", ["none", "prefix", "prompt"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "t5"])
def test_waiting_prompts_join_when_half_have_ended(kind, virtual, monkeypatch):
    monkeypatch.setattr(decode, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr(decode, "SHORT", 1)
    prompts = PROMPTS + prompts_of(6, 9, 12, 9)
    answers = Answers(kind, virtual)
    made = decode.generate(answers, prompts, max_new_tokens=20, stop_ids=STOPS)
    assert made == alone(kind, virtual, prompts, 20)
    assert max(answers.rows) <= 4
    assert sum(answers.rows) == sum(len(one.ids) for one in made)
    joins = any(later > sooner for sooner, later in pairwise(answers.rows))
    assert joins


def test_transformers_says_the_same():
    answers = Answers("llama")
    made = decode.generate(answers, PROMPTS, max_new_tokens=12, stop_ids=STOPS)
    for prompt, one in zip(PROMPTS, made, strict=True):
        out = answers.base.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False,
                                          eos_token_id=list(STOPS), pad_token_id=0)  # fmt: skip
        assert out[0, len(prompt) :].tolist() == one.ids


def test_a_row_is_cut_by_its_own_room_only():
    """A prompt near the end of the window does not shorten the others; one that fills it gives nothing."""
    prompts = prompts_of(44, 10, 48)
    made = decode.generate(Answers("llama"), prompts, max_new_tokens=20, stop_ids=())
    assert [len(one.ids) for one in made] == [4, 20, 0]
    assert {one.finish for one in made} == {"length"}


def test_positions_that_change_with_the_longest_row_go_alone():
    answers, prompts = Answers("dynamic"), prompts_of(5, 30, 8, 20, 6)
    made = decode.generate(answers, prompts, max_new_tokens=10, stop_ids=())
    each = [decode.generate(Answers("dynamic"), [prompt], max_new_tokens=10, stop_ids=())[0] for prompt in prompts]
    assert made == each
    assert answers.rows == [3] * 10 + [1] * 20


def test_sampled_rows_keep_their_own_seeds():
    options = {"max_new_tokens": 15, "stop_ids": STOPS, "temperature": 1.0, "seed": 7}
    whole = decode.generate(Answers("llama"), PROMPTS, **options)
    assert whole == decode.generate(Answers("llama"), PROMPTS, **options)
    assert whole[0] == decode.generate(Answers("llama"), PROMPTS[:1], **options)[0]


def test_a_growing_cache_holds_what_the_plain_one_does_and_copies_seldom():
    grown, plain, source = growing(), transformers.DynamicCache(), torch.Generator().manual_seed(0)
    places = set()
    for size in (5, *[1] * 60):
        key, value = (torch.randn(3, 2, size, 4, generator=source) for _ in range(2))
        for one, other in zip(grown.update(key, value, 0), plain.update(key, value, 0), strict=True):
            assert torch.equal(one, other)
        places.add(grown.layers[0].keys.data_ptr())
    assert len(places) == 1
    assert keep_rows(grown, [0, 2], 4) == 4
    assert torch.equal(grown.layers[0].keys, plain.layers[0].keys[[0, 2], :, 4:])
    assert keep_rows(plain, [0, 2], 4) == 0  # a plain layer gives its rows, not its columns
    assert plain.get_seq_length() == 65
    more = torch.ones(2, 2, 1, 4)
    assert torch.equal(grown.update(more, more, 0)[0], torch.cat([plain.layers[0].keys[:, :, 4:], more], dim=2))
    assert grown.get_seq_length() == 62


def test_narrowing_drops_padding_that_only_the_dropped_needed():
    answers = Answers("llama")
    rows = [decode._row(prompt, 0) for prompt in prompts_of(4, 12, 6)]
    with torch.no_grad():
        state = decode.start(answers.base, from_rows(rows), None)
        decode.narrow(state, [0, 2])
        assert (tuple(state.mask.shape), state.cache.get_seq_length()) == ((2, 6), 6)
        decode.advance(answers.base, state, torch.tensor([5, 6]))
        apart = decode.start(answers.base, from_rows(rows[2:]), None)
        decode.advance(answers.base, apart, torch.tensor([6]))
    assert torch.allclose(state.last[1:], apart.last, atol=1e-5)
