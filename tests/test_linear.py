import pytest
import torch

from ainn_lib import AINN, AINNError
from ainn_lib.linear import best_step, block_vectors, principal_components, start_as_linear_codec
from ainn_lib.pdm import KINDS

GENERATOR = torch.Generator().manual_seed(3)


def texture(height: int, width: int) -> torch.Tensor:
    """Correlated noise, uint8 (3, H, W): its principal components are not flat."""
    noise = torch.randn(1, 3, height, width, generator=GENERATOR)
    smooth = sum(torch.nn.functional.avg_pool2d(noise, k, 1, k // 2) * k for k in (1, 5, 9, 15))
    return (smooth[0] * 12 + 120).clamp(0, 255).to(torch.uint8)


IMAGES = [texture(336, 528), texture(272, 160)]


@pytest.fixture(scope="module")
def rows():
    return principal_components(IMAGES)


def test_principal_components_are_an_ordered_basis(rows):
    torch.testing.assert_close(rows @ rows.T, torch.eye(768, dtype=torch.float64), atol=1e-10, rtol=0)
    blocks = torch.cat([block_vectors(i[:, : i.shape[1] // 16 * 16].double() / 255 - 0.5) for i in IMAGES], 1)
    energy = (rows @ blocks).square().mean(1)
    assert (energy.diff() < 1e-12).all()
    torch.testing.assert_close(energy.sum(), blocks.square().sum(0).mean())


@pytest.mark.parametrize("M", (48, 192, 384))
@pytest.mark.parametrize("pdm", (*KINDS, "none"))
def test_the_start_is_exactly_the_truncated_klt(rows, M, pdm):
    torch.manual_seed(0)
    model = AINN.from_preset("tiny", M=M, pdm=pdm, ms_cfrm=(pdm == "dense"), cfrm=(pdm != "residual"))
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
    lam = 0.0018 * (0.0483 / 0.0018) ** (3 / 7)
    assert gain[0, 0, 0, 0].item() == pytest.approx(2 / best_step(lam), rel=1e-5)
    with torch.no_grad():
        y = torch.cat([model.g_a(i[None, :, : i.shape[1] // 16 * 16].float() / 255).flatten(2) for i in IMAGES], 2)[0] * gain[0, 0, 0, 0]
    torch.testing.assert_close(bias.flatten(), torch.cat([y.std(1), y.mean(1)]), rtol=1e-3, atol=1e-4)


def test_what_cannot_start_as_the_linear_codec():
    with pytest.raises(AINNError, match="pdm_skip"):
        start_as_linear_codec(AINN.from_preset("tiny", pdm_skip=True), IMAGES)
    with pytest.raises(AINNError, match="squeeze"):
        start_as_linear_codec(AINN.from_preset("tiny", squeeze=False, N=4, context_out=4), IMAGES)
    with pytest.raises(AINNError, match="768 blocks"):
        principal_components(IMAGES[:1])
