"""The latent that training sees is the one that a decoder reconstructs."""

import numpy as np
import pytest
import torch
from torch import nn

from ainn_lib import codec
from ainn_lib.codec.images import to_tensor
from ainn_lib.measure import datasets as data
from ainn_lib.network import coder
from ainn_lib.network.entropy_model import CausalConv, sequential_latent


def layers(channels=3, seed=0):
    torch.manual_seed(seed)
    context = CausalConv(channels, 5)
    parameters = nn.Sequential(nn.Conv2d(9, 7, 1), nn.LeakyReLU(), nn.Conv2d(7, 2 * channels, 1))
    return context, parameters


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (5, 4)])
def test_every_position_is_rounded_around_the_mean_of_what_came_before(size):
    context, parameters = layers()
    y, hyper, bias = 4 * torch.randn(2, 3, *size), torch.randn(2, 4, *size), torch.randn(1, 6, 1, 1)
    y_hat = sequential_latent(y, hyper, bias, context, parameters)
    with (
        torch.no_grad()
    ):  # the whole map at once: with the finished latent as context every mean is the decoder's
        means = (parameters(torch.cat([hyper, context(y_hat)], dim=1)) + bias).chunk(2, dim=1)[1]
    torch.testing.assert_close(y_hat, torch.round(y - means) + means, atol=1e-5, rtol=0)


def test_it_is_what_the_file_holds(tiny):
    x = to_tensor(np.asarray(data.photo("chelsea").crop((100, 40, 292, 168))))
    with torch.no_grad():
        y = tiny.g_a(x)
        gain, inverse_gain, bias = tiny.gains(3.0)
        seen = tiny.quantize(y * gain, bias)[0] * inverse_gain
    coded = coder.encode_latent(tiny, y, 3.0).y_hat
    apart = (seen - coded).abs() > 0.1 * inverse_gain
    assert (
        apart.float().mean() < 0.01
    )  # float32 against whole numbers: a value on the edge may be rounded the other way


@pytest.mark.parametrize("quality", [1.0, 4.0, 8.0])
def test_a_file_is_no_longer_than_estimated(tiny, quality):
    image = data.photo("coffee").crop((100, 100, 356, 292))
    x = to_tensor(np.asarray(image))
    with torch.no_grad():
        likelihoods = tiny(x, quality)["likelihoods"]
    estimate = sum(-torch.log2(p).sum().item() for p in likelihoods.values()) / 8
    about = codec.info(codec.encode(image, tiny, quality))
    # rare outliers are cheaper in the file: its tables end in an escape
    assert 0.88 * estimate - 24 < about.latent_bytes < 1.01 * estimate + 24


def test_its_gradient_is_that_of_the_latent(tiny):
    y = torch.randn(1, 192, 4, 4, requires_grad=True)
    tiny.quantize(y, tiny.gains(4.0)[2])[0].sum().backward()
    torch.testing.assert_close(y.grad, torch.ones_like(y))
