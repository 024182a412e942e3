"""int8 products: exact on integers, close on reals, forward and back; the base itself stays exact."""

import pytest
import torch

from luthier.engine import int8

pytestmark = pytest.mark.skipif(not int8.available(), reason="torch without oneDNN's int8")


def test_small_integers_are_exact():
    source = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (24, 64), generator=source).float()
    weight[:, 0] = 127.0
    states = torch.randint(-20, 21, (9, 64), generator=source).float()
    states[:, 0] = float(int8.activation_top())
    assert torch.equal(int8.product(states, int8._packed(weight)), states @ weight.t())


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


def test_rows_have_their_own_scale():
    """A large token does not coarsen a small one, as a scale for the whole tensor would."""
    torch.manual_seed(0)
    weight, states = torch.randn(32, 64), torch.randn(2, 64)
    states[0] *= 1e4
    made, wanted = int8.product(states, int8._packed(weight)), states @ weight.t()
    assert float((made[1] - wanted[1]).norm() / wanted[1].norm()) < 0.02
