"""E5–E7: the numbers of the probes against definitions and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from luthier.core.types import Row
from luthier.engine.batch import from_rows
from luthier.health.facts import LayerNumbers
from luthier.health.probes import ablation, behaviour, gradients, states, weights
from luthier.health.probes.branches import Gauge, channel_entropy
from luthier.health.run import diagnose

LORA = {"name": "lora", "r": 4}


def test_e5_entropy_is_one_for_even_channels_zero_for_one_and_free_of_scale():
    even, single = torch.ones(1, 8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)[:1]
    assert float(channel_entropy(even)) == pytest.approx(1.0)
    assert float(channel_entropy(single)) == pytest.approx(0.0)
    random = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(channel_entropy(random), channel_entropy(random * 1e-6))


def test_e5_entropy_is_a_mean_over_tokens_and_does_not_grow_with_them():
    change = torch.randn(4, 8)
    one, many = Gauge(), Gauge()
    one.add(change, torch.ones(4, 8))
    for _ in range(10):
        many.add(change, torch.ones(4, 8))
    numbers = [LayerNumbers("a"), LayerNumbers("b")]
    one.fill(numbers[0])
    many.fill(numbers[1])
    assert numbers[0].activation_entropy == pytest.approx(numbers[1].activation_entropy)
    assert 0 < numbers[0].activation_entropy < 1


def test_e5_a_dead_branch_has_no_entropy_instead_of_the_largest():
    gauge, numbers = Gauge(), LayerNumbers("a")
    gauge.add(torch.zeros(4, 8), torch.ones(4, 8))
    gauge.fill(numbers)
    assert numbers.activation_entropy is None
    assert numbers.relative_strength == 0.0
    assert numbers.activation_rate == 0.0


def test_e6_activation_rate_is_relative_to_what_the_branch_is_added_to():
    change = torch.full((10, 4), 1e-5)
    change[:, :1] = 1.0
    rates = []
    for scale in (1.0, 1e-3, 1e3):
        gauge, numbers = Gauge(), LayerNumbers("a")
        gauge.add(change * scale, torch.ones(10, 4) * scale)
        gauge.fill(numbers)
        rates.append(numbers.activation_rate)
    assert rates == [0.25, 0.25, 0.25]


def test_e6_dead_units_never_fire_on_any_row():
    gauge, numbers = Gauge(), LayerNumbers("a")
    gauge.add(torch.ones(2, 4), torch.ones(2, 4))
    gauge.add_units(torch.tensor([[1.0, 0.0, -1.0, 2.0]]))
    gauge.add_units(torch.tensor([[0.0, 0.0, -1.0, 2.0]]))
    gauge.fill(numbers)
    assert numbers.dead_units == 0.5
    assert numbers.activation_rate == pytest.approx(3 / 8)


def test_e7_norms_from_qr_equal_the_dense_update():
    a, b = torch.randn(4, 30, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    dense = torch.linalg.svdvals(b @ a)[:4]
    torch.testing.assert_close(weights.singular_values(b, a), dense)
    stable, effective = weights.ranks(dense)
    assert stable == pytest.approx(float((b @ a).square().sum() / dense[0] ** 2))
    share = dense / dense.sum()
    assert effective == pytest.approx(math.exp(-float((share * share.log()).sum())))


def test_effective_rank_of_equal_rows_is_one():
    a = torch.randn(1, 30, dtype=torch.float64).expand(8, 30)
    values = weights.singular_values(torch.randn(20, 8, dtype=torch.float64), a)
    assert weights.ranks(values)[1] == pytest.approx(1.0, abs=1e-3)
    assert weights.ranks(torch.zeros(3)) == (0.0, 0.0)


def test_intruders_are_new_large_directions():
    base = torch.diag(torch.linspace(2, 1, 30, dtype=torch.float64))
    left = torch.linalg.svd(base)[0]
    assert weights.intruders(left, base) == 0
    one = torch.ones(30, 1, dtype=torch.float64) / 30**0.5
    assert weights.intruders(left, base + 50 * one @ one.t()) >= 1


def test_lora_numbers_equal_the_definition_on_a_model(shaken, world):
    adapted = shaken(LORA)
    name, part = next(iter(adapted.attached.branches()))
    numbers = LayerNumbers(name)
    weights.measure(part, numbers)
    update = part.get_delta_weight("default").detach()
    base = part.get_base_layer().weight
    assert numbers.weight_norm_ratio == pytest.approx(float(update.norm() / base.norm()), rel=1e-4)
    assert numbers.rank == 4
    seen = states.look(adapted, world.rows(3))
    seen.branches[name].fill(numbers)
    inputs = []
    handle = part.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        for row in world.rows(3):
            adapted.hidden(from_rows([row]))
    handle.remove()
    x = torch.cat([value[0] for value in inputs])
    wanted = float((x @ update.t()).norm() / (x @ base.t()).norm())
    assert numbers.relative_strength == pytest.approx(wanted, rel=1e-4)


def test_projection_is_one_where_the_update_stands_in_the_base(shaken):
    adapted = shaken(LORA, 0.2)
    _, part = next(iter(adapted.attached.branches()))
    before = LayerNumbers("a")
    weights.measure(part, before)
    with torch.no_grad():
        part.get_base_layer().weight.add_(part.get_delta_weight("default"))
    after = LayerNumbers("a")
    weights.measure(part, after)
    assert after.projection - before.projection == pytest.approx(1.0, abs=1e-4)


def test_prefix_mass_and_strength_of_a_prefix(shaken, world):
    adapted = shaken({"name": "prefix", "length": 3})
    seen = states.look(adapted, world.rows(4))
    for gauge in seen.branches.values():
        numbers = LayerNumbers("a")
        gauge.fill(numbers)
        assert 0 < numbers.prefix_mass < 1
        assert numbers.relative_strength > 0
    assert adapted.base.model.config._attn_implementation != "eager"
    assert len(seen.branches) == 4


def test_full_tuning_is_measured_by_what_off_puts_back(shaken):
    adapted = shaken({"name": "full"}, 0.01)
    changes = weights.inplace_changes(adapted)
    numbers = LayerNumbers("model.layers.0")
    weights.measure_inplace({k: v for k, v in changes.items() if k.startswith("model.layers.0.")}, numbers)
    assert 0 < numbers.weight_norm_ratio < 1
    assert numbers.effective_rank > 10
    assert weights.inplace_changes(shaken(LORA)) == {}


def test_gradients_reach_every_branch_and_leave_no_trace(shaken, world):
    for method in (LORA, {"name": "prefix", "length": 2}, {"name": "bottleneck", "reduction": 4}, {"name": "full"}):
        adapted = shaken(method)
        found = diagnose(adapted, world.rows(6)).layers
        assert all(one.gradient_norm > 0 for one in found if one.layer is not None)
        flags = {weight.requires_grad for weight in adapted.parameters_by_name().values()}
        assert flags == {True}
        assert all(weight.grad is None for weight in adapted.parameters_by_name().values())


def test_gradients_take_no_more_memory_than_a_training_step():
    """Long rows: as many as go into a batch, one at least."""

    def taken(*lengths):
        rows = [
            Row(str(index), np.zeros(size, np.int32), np.zeros(size, np.int32)) for index, size in enumerate(lengths)
        ]
        return len(gradients._few(rows))

    assert taken(*[100] * 20) == gradients.ROWS
    assert taken(2000, 2000, 97, 5) == 2
    assert taken(9000, 5) == 1


def test_gradients_of_an_adapter_that_was_loaded_frozen(shaken, world):
    adapted = shaken(LORA)
    for weight in adapted.parameters_by_name().values():
        weight.requires_grad_(False)
    layers = [LayerNumbers(name, 0) for name, _ in adapted.attached.branches()]
    gradients.measure(adapted, world.rows(4), layers)
    assert layers[0].gradient_norm > 0
    assert not any(weight.requires_grad for weight in adapted.parameters_by_name().values())


@pytest.mark.parametrize("method", [LORA, {"name": "bottleneck", "reduction": 4}, {"name": "ia3"}])
def test_silencing_every_branch_is_the_base(shaken, world, method):
    adapted, rows = shaken(method), world.rows(4)
    parts = [part for _, part in adapted.attached.branches()]
    with ablation.silenced(parts):
        silent = ablation.losses(adapted, rows)
    with adapted.off():
        base = ablation.losses(adapted, rows)
    np.testing.assert_allclose(silent, base, atol=1e-5)
    assert not np.allclose(ablation.losses(adapted, rows), base, atol=1e-4)


def test_labels_are_counted(world):
    from luthier.health.facts import Facts

    lesson, document = world.rows(1)[0], world.general(1)[0]
    empty = Row("empty", lesson.input_ids, np.full_like(lesson.labels, -100))
    facts = Facts()
    behaviour.look_at_labels([lesson, document, empty], facts, [2])
    assert (facts.rows, facts.unsupervised_rows, facts.fully_trained_rows, facts.stop_trained_rows) == (3, 1, 1, 2)


def test_the_same_rows_and_seed_give_the_same_health(shaken, world):
    adapted, rows = shaken(LORA), world.rows(8)
    assert diagnose(adapted, rows, seed=3).as_json() == diagnose(adapted, rows, seed=3).as_json()


@pytest.mark.parametrize(
    "method",
    [
        {"name": "lora", "r": 4, "dora": True},
        {"name": "prompt", "length": 3},
        {"name": "p_tuning", "length": 3},
        {"name": "dynamic_prefix", "length": 3, "hidden": 8},
        {"name": "bottleneck", "style": "parallel", "reduction": 4},
        {"name": "stack", "preset": "unipelt", "length": 3, "reduction": 4, "r": 2},
        {"name": "last_layers", "count": 2},
    ],
    ids=lambda method: method["name"],
)
def test_every_method_has_layers_with_the_contracts_numbers(shaken, world, method):
    found = diagnose(shaken(method), world.rows(6)).as_json()
    keys = {
        "name", "activation_entropy", "activation_rate", "relative_strength", "weight_norm_ratio", "effective_rank",
        "gradient_norm",
    }  # fmt: skip
    assert all(keys <= set(layer) for layer in found["layers"])
    assert max(layer["relative_strength"] or 0 for layer in found["layers"]) > 1e-4
    assert next(one for one in found["diagnoses"] if one["name"] == "dead_adapter")["status"] == "ok"


@pytest.mark.parametrize(("length", "count"), [(100, 32), (1024, 16), (2048, 8), (8192, 4)])
def test_layers_are_ablated_on_fewer_rows_where_rows_are_long(length, count):
    rows = [Row(str(n), np.ones(length, np.int32), np.ones(length, np.int32)) for n in range(40)]
    assert len(ablation.few_of(rows)) == count
    assert ablation.few_of(rows[:3]) == rows[:3]
