"""fp8 products on a CPU, where torch has the same one: exact on what the format holds, close on reals, per row."""

import pytest
import torch

from luthier.engine import fp8


def test_what_the_format_holds_is_exact():
    source = torch.Generator().manual_seed(0)
    weight = torch.randint(-8, 9, (32, 48), generator=source).float()
    states = torch.randint(-8, 9, (9, 48), generator=source).float()
    weight[:, 0] = states[:, 0] = 448.0  # the top of the format: every scale is 1
    assert torch.equal(fp8.Fp8Weight.product(states, fp8.Fp8Weight.pack(weight)), states @ weight.t())


def test_it_is_the_product_of_the_rounded_sides():
    torch.manual_seed(0)
    weight, states = torch.randn(32, 64), torch.randn(9, 64)
    (one, first), (other, second) = fp8._rounded(states), fp8._rounded(weight)
    wanted = (one.double() * first) @ (other.double() * second).t()
    assert torch.allclose(
        fp8.Fp8Weight.product(states, fp8.Fp8Weight.pack(weight)).double(), wanted, rtol=1e-5, atol=1e-5
    )
    assert float(first.min()) > 0
    assert one.float().abs().amax(dim=1).tolist() == [448.0] * 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_input_gradient_are_close(bias, dtype):
    torch.manual_seed(0)
    weight, shift = torch.randn(96, 64, dtype=dtype), torch.randn(96, dtype=dtype) if bias else None
    states, gradient = torch.randn(2, 25, 64, dtype=dtype, requires_grad=True), torch.randn(2, 25, 96, dtype=dtype)
    made = fp8.Fp8Weight(weight, shift)(states)
    made.backward(gradient)
    assert made.dtype == states.grad.dtype == dtype
    exact, back = states.detach().double() @ weight.double().t(), gradient.double() @ weight.double()
    exact = exact if shift is None else exact + shift.double()
    assert 1e-3 < float((made.detach().double() - exact).norm() / exact.norm()) < 0.05
    assert 1e-3 < float((states.grad.double() - back).norm() / back.norm()) < 0.05


def test_tokens_and_channels_have_their_own_scale():
    """A large token or channel does not push a small one under the format's smallest number."""
    torch.manual_seed(0)
    weight, states = torch.randn(32, 64), torch.randn(2, 64)
    states[0] *= 1e7
    weight[0] *= 1e7
    made, wanted = fp8.Fp8Weight.product(states, fp8.Fp8Weight.pack(weight)), states @ weight.t()
    assert float((made[1, 1:] - wanted[1, 1:]).norm() / wanted[1, 1:].norm()) < 0.06
    assert torch.equal(fp8.Fp8Weight.product(torch.zeros(1, 64), fp8.Fp8Weight.pack(weight)), torch.zeros(1, 32))


def test_where_it_goes():
    assert not fp8.available(torch.device("cpu"))
    assert fp8.fits(torch.empty(32, 48))
    assert not fp8.fits(torch.empty(32, 40))
