import pytest
import torch
from conftest import shaken
from hypothesis import given, settings
from hypothesis import strategies as st

from ainn_lib import AINN, AINNError, check_invertible
from ainn_lib.network.blocks import Coupling, InvertibleConv1x1, Level, Squeeze

BLOCKS = {
    "squeeze": (Squeeze(), (2, 3, 8, 12)),
    "conv1x1": (InvertibleConv1x1(48), (1, 48, 5, 7)),
    "coupling, separate nets": (shaken(Coupling(12, 12, 5), 0.3), (1, 12, 6, 6)),
    "coupling, shared net": (shaken(Coupling(12, 8, 3, shared=True), 0.3), (1, 12, 6, 6)),
    "coupling, clamp 3": (shaken(Coupling(12, 12, 3, clamp=3.0), 0.3), (1, 12, 6, 6)),
    "level": (shaken(Level(48, 3, 16, 3), 0.1), (1, 12, 8, 8)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_inverts_in_float64(name):
    block, shape = BLOCKS[name]
    assert check_invertible(block, shape, torch.float64) < 1e-11


@pytest.mark.parametrize("name", BLOCKS)
def test_float32_is_worse_but_close(name):
    block, shape = BLOCKS[name]
    assert check_invertible(block, shape, torch.float32) < 1e-3
    assert (
        next((p.dtype for p in block.parameters()), torch.float32) == torch.float32
    )  # the block itself is not converted


def test_the_check_sees_a_broken_inverse():
    class Broken(Coupling):
        def inverse(self, a, b):
            a, b = super().inverse(a, b)
            return a * 1.001, b

    assert check_invertible(Broken(12, 8, 3), (1, 12, 4, 4)) > 1e-4


def test_the_check_refuses_what_has_no_inverse():
    with pytest.raises(AINNError, match="no inverse"):
        check_invertible(torch.nn.Conv2d(3, 3, 1), (1, 3, 4, 4))


def test_squeeze_is_position_major():
    x = torch.randn(1, 5, 6, 8)
    s = Squeeze()(x)
    for dy in range(2):
        for dx in range(2):
            for c in range(5):
                assert torch.equal(s[0, (2 * dy + dx) * 5 + c], x[0, c, dy::2, dx::2])
    assert not torch.equal(s, torch.nn.functional.pixel_unshuffle(x, 2))


def test_squeeze_refuses_odd_sizes():
    with pytest.raises(AINNError, match="5x4"):
        Squeeze()(torch.zeros(1, 3, 5, 4))


def test_coupling_is_the_papers_formula():
    layer = shaken(Coupling(12, 12, 3, clamp=1.0), 0.3)
    a, b = torch.randn(2, 1, 12, 6, 6)
    a2 = a * torch.exp(2 * torch.sigmoid(layer.from_high.G(b)) - 1) + layer.from_high.H(b)
    b2 = b * torch.exp(2 * torch.sigmoid(layer.from_low.G(a2)) - 1) + layer.from_low.H(a2)
    torch.testing.assert_close(layer(a, b), (a2, b2))


def test_coupling_starts_as_the_identity_and_bounds_its_scale():
    layer = Coupling(12, 12, 3, clamp=0.5)
    a, b = torch.randn(2, 1, 12, 6, 6)
    torch.testing.assert_close(layer(a, b), (a, b))
    log_scale, _ = shaken(layer, 100.0).from_high(b)
    assert 0.4 < log_scale.abs().max() <= 0.5


def test_the_inverse_matrix_follows_the_weights():
    conv, x = InvertibleConv1x1(12, trainable=False), torch.randn(1, 12, 3, 3)
    conv.inverse(x)
    with torch.no_grad():
        conv.weight.mul_(2)
    torch.testing.assert_close(conv.inverse(conv(x)), x, atol=1e-5, rtol=1e-5)
    double = conv.double()
    torch.testing.assert_close(double.inverse(double(x.double())), x.double(), atol=1e-12, rtol=0)


def test_gradient_flows_through_the_inverse_matrix():
    conv = InvertibleConv1x1(4).double()
    x = torch.randn(1, 4, 2, 2, dtype=torch.float64)

    conv.inverse(x).sum().backward()
    reference = conv.weight.detach().clone().requires_grad_()
    torch.nn.functional.conv2d(x, torch.linalg.inv(reference)[:, :, None, None]).sum().backward()
    torch.testing.assert_close(conv.weight.grad, reference.grad)


@settings(max_examples=10, deadline=None)
@given(
    height=st.integers(1, 3), width=st.integers(1, 3), shared=st.booleans(), seed=st.integers(0, 99)
)
def test_the_whole_model_inverts_without_squeeze_pdm_and_fdsm(height, width, shared, seed):
    torch.manual_seed(seed)
    model = AINN.from_preset(
        "tiny",
        squeeze=False,
        pdm="none",
        fdsm=False,
        shared_nets=shared,
        N=8,
        context_out=8,
        hyper_out=8,
        parameter_widths=(8, 8),
    )
    assert check_invertible(shaken(model, 0.02, seed), (1, 3, 16 * height, 16 * width)) < 1e-9


def test_the_squeeze_makes_it_approximate():
    assert check_invertible(AINN.from_preset("tiny", pdm="none", fdsm=False), (1, 3, 32, 32)) > 0.01
