import math

import pytest
import torch

from ainn_lib import AINN, AINNError
from ainn_lib.network.entropy_model import lagrangian
from ainn_lib.training.linear_start import (
    best_step,
    block_vectors,
    principal_components,
    start_as_linear_codec,
)

GENERATOR = torch.Generator().manual_seed(3)


def texture(height: int, width: int) -> torch.Tensor:
    """Correlated noise, uint8 (3, H, W): its principal components are not flat."""
    noise = torch.randn(1, 3, height, width, generator=GENERATOR)
    scales = [torch.nn.functional.avg_pool2d(noise, k, 1, k // 2) * k for k in (1, 5, 9, 15)]
    return (sum(scales)[0] * 12 + 120).clamp(0, 255).to(torch.uint8)


IMAGES = [texture(336, 528), texture(272, 160)]


@pytest.fixture(scope="module")
def rows():
    return principal_components(IMAGES)


def test_principal_components_are_an_ordered_basis(rows):
    eye = torch.eye(768, dtype=torch.float64)
    torch.testing.assert_close(rows @ rows.T, eye, atol=1e-10, rtol=0)
    blocks = torch.cat([block_vectors(image.double() / 255 - 0.5) for image in IMAGES], 1)
    energy = (rows @ blocks).square().mean(1)
    assert (energy.diff() < 1e-12).all()
    torch.testing.assert_close(energy.sum(), blocks.square().sum(0).mean())


def test_the_principal_components_of_grey_photos_are_a_basis_too():
    """Directions of pure colour occur in none of them, and their sum may be exactly 0."""
    grey = [image[:1].expand(3, -1, -1) for image in IMAGES]
    flat = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    rows = principal_components([*grey, flat])
    eye = torch.eye(768, dtype=torch.float64)
    torch.testing.assert_close(rows @ rows.T, eye, atol=1e-10, rtol=0)


@pytest.mark.parametrize("pdm, M", [
    ("unet", 192), ("unet", 48), ("residual", 384), ("dense", 48), ("none", 192)])
def test_the_start_is_exactly_the_truncated_klt(rows, M, pdm):
    torch.manual_seed(0)
    model = AINN.from_preset("tiny", M=M, pdm=pdm, ms_cfrm=(pdm == "dense"),
                             cfrm=(pdm != "residual"), fdsm=(pdm != "none"))
    start_as_linear_codec(model, IMAGES)
    x = IMAGES[0][:, :192, :304].float()[None] / 255
    blocks = block_vectors(x[0].double() - 0.5)
    kept = rows[:M].T @ (rows[:M] @ blocks)
    with torch.no_grad():
        y = model.eval().g_a(x)
        x_hat = model.g_s(y)
    expected_y = (rows[:M] @ blocks) / (768 / M) ** 0.5
    torch.testing.assert_close(y[0].flatten(1).double(), expected_y, atol=1e-5, rtol=0)
    torch.testing.assert_close(block_vectors(x_hat[0].double() - 0.5), kept, atol=1e-5, rtol=0)


def test_gains_and_biases_start_at_the_measured_statistics():
    model = start_as_linear_codec(AINN.from_preset("tiny"), IMAGES)
    gain, inverse_gain, bias = model.gains(4.0)
    torch.testing.assert_close(gain * inverse_gain, torch.ones_like(gain))
    lam = lagrangian(torch.tensor(4.0), model.config.lambdas).item()
    assert gain[0, 0, 0, 0].item() == pytest.approx(2 / best_step(lam), rel=1e-5)
    with torch.no_grad():
        y = [model.g_a(image[None].float() / 255).flatten(2)[0] for image in IMAGES]
    y = torch.cat(y, 1) * gain[0, 0, 0, 0]
    statistics = torch.cat([y.std(1), y.mean(1)])
    torch.testing.assert_close(bias.flatten(), statistics, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tied", (True, False))
def test_a_network_of_one_rate_starts_as_the_variable_one_at_its_quality(tied):
    every = start_as_linear_codec(AINN.from_preset("tiny"), IMAGES)
    lam = lagrangian(torch.tensor(4.0), every.config.lambdas).item()
    one = AINN.from_preset("tiny", variable_rate=False, lambdas=(lam, lam), tied=tied)
    start_as_linear_codec(one, IMAGES)
    x = IMAGES[0][None, :, :128, :128].float() / 255
    with torch.no_grad():
        gain, inverse_gain, bias = every.gains(4.0)
        y = one.g_a(x)
        assert y.std() > 1
        # float32 in sums of 768 terms
        torch.testing.assert_close(y, every.g_a(x) * gain, rtol=1e-4, atol=1e-4)
        y_hat = torch.round(y)
        x_hat = every.g_s(y_hat * inverse_gain)
        torch.testing.assert_close(one.g_s(y_hat), x_hat, rtol=0, atol=1e-5)
        start = one.entropy_parameters[-1].bias
        torch.testing.assert_close(start, bias.flatten(), rtol=1e-3, atol=1e-3)


def test_what_cannot_start_as_the_linear_codec():
    with pytest.raises(AINNError, match="pdm_skip"):
        start_as_linear_codec(AINN.from_preset("tiny", pdm_skip=True), IMAGES)
    with pytest.raises(AINNError, match="squeeze"):
        model = AINN.from_preset("tiny", squeeze=False, N=4, context_out=4)
        start_as_linear_codec(model, IMAGES)
    with pytest.raises(AINNError, match="768 blocks"):
        principal_components(IMAGES[:1])


def test_the_best_step_is_the_least_cost():
    lam = 0.02

    def cost(step: float) -> float:
        return -math.log2(step) / 256 + lam * 255**2 * step**2 / (12 * 768)

    best = best_step(lam)
    assert all(cost(best) < cost(best * factor) for factor in (0.9, 0.99, 1.01, 1.1))
