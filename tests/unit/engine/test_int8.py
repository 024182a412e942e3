"""int8 products: exact on integers, close on reals, forward and back; the base itself stays exact."""

import pytest
import torch

from luthier.engine import int8

pytestmark = pytest.mark.skipif(not int8.available(), reason="torch without oneDNN's int8")


@pytest.mark.parametrize("wide", [2, 3, 64, 65, 130, 384])
def test_the_largest_integers_are_exact(wide):
    """Every token reaches 255, and the worst token meets the weights of one sign alone: nothing overflows."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(24, wide, generator=source)
    weight[0], weight[1] = 1.0, torch.arange(wide) % 2 * 1.0
    rounded, scales = int8.quantized(weight)
    whole = rounded.float()
    states = torch.randint(-127, 128, (50, wide), generator=source).float()
    states[:, 0] = 127.0
    states[:24] = torch.where(whole > 0, 127.0, -127.0)
    states[24:48] = -states[:24]
    packed = int8.Int8Weight.pack(weight)
    made = int8.Int8Weight.product(states, packed) / scales
    assert torch.equal(made.round(), states @ whole.t())
    assert float((made - made.round()).abs().max()) < 0.05


@pytest.mark.parametrize(("summed", "worst"), [("none", 254), ("neighbours", 128), ("any", 128)])
def test_weights_are_as_fine_as_the_processors_sums_allow(monkeypatch, summed, worst):
    monkeypatch.setattr(int8, "summed_in_16_bits", lambda: summed)
    weight = torch.randn(96, 257, generator=torch.Generator().manual_seed(1))
    rounded, scales = int8.quantized(weight)
    pairs = rounded[:, :256].reshape(96, 128, 2).int()
    pairs = pairs[(pairs[..., 0] * pairs[..., 1]) > 0].sum(-1).abs()
    assert int(rounded.abs().max()) <= 127
    assert int(pairs.max()) <= worst
    assert float((rounded * scales[:, None] - weight).abs().max() / scales.max()) <= 0.5001
    error = float((rounded * scales[:, None] - weight).norm() / weight.norm())
    assert error < {"none": 0.0072, "neighbours": 0.0105, "any": 0.0145}[summed]


@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_input_gradient_are_close(bias):
    torch.manual_seed(0)
    weight, shift = torch.randn(96, 64), torch.randn(96) if bias else None
    states, gradient = torch.randn(2, 25, 64, requires_grad=True), torch.randn(2, 25, 96)
    made = int8.Int8Weight(weight, shift)(states)
    made.backward(gradient)
    wanted = torch.nn.functional.linear(states, weight, shift)
    assert 1e-4 < float((made - wanted).detach().norm() / wanted.detach().norm()) < 0.02
    assert float((states.grad - gradient @ weight).detach().norm() / (gradient @ weight.detach()).norm()) < 0.02


@pytest.mark.parametrize("summed", ["none", "neighbours", "any"])
def test_a_layer_of_one_input_has_no_neighbours(monkeypatch, summed):
    monkeypatch.setattr(int8, "summed_in_16_bits", lambda: summed)
    rounded, scales = int8.quantized(torch.tensor([[2.0], [-0.5], [0.0]]))
    assert torch.allclose(rounded[:, 0] * scales, torch.tensor([2.0, -0.5, 0.0]))


def test_rows_have_their_own_scale():
    """A large token does not coarsen a small one, as a scale for the whole tensor would."""
    torch.manual_seed(0)
    weight, states = torch.randn(32, 64), torch.randn(2, 64)
    states[0] *= 1e4
    made, wanted = int8.Int8Weight.product(states, int8.Int8Weight.pack(weight)), states @ weight.t()
    assert float((made[1] - wanted[1]).norm() / wanted[1].norm()) < 0.02


def test_a_forward_that_is_kept_exact_has_int8_on_the_way_back():
    torch.manual_seed(0)
    weight, shift, gradient = torch.randn(96, 64), torch.randn(96), torch.randn(2, 25, 96)
    states = torch.randn(2, 25, 64, requires_grad=True)
    packed = int8.Int8Weight(weight, shift)
    packed(states).backward(gradient)
    back, states.grad = states.grad, None
    packed.keep_forward_exact(weight)
    made = packed(states)
    made.backward(gradient)
    assert torch.equal(made, torch.nn.functional.linear(states, weight) + shift)
    assert torch.equal(states.grad, back)
    assert not torch.equal(back, gradient @ weight)
