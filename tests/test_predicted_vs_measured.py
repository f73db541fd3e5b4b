"""Predictions against brute force, for tied and untied networks, and for trained weights."""

import numpy as np
import pytest
import torch
from conftest import shaken
from test_theory import SMALL, X, dense, inverse_of, latents, mse, norm_of, randn, up

from ainn_lib import AINN, load_pretrained
from ainn_lib.measure import datasets
from ainn_lib.theory.error_budget import error_budget
from ainn_lib.theory.jacobian import Jacobian, column_norms, per_channel, predicted_distortion
from ainn_lib.theory.lipschitz import lipschitz_bound
from ainn_lib.theory.predicted_vs_measured import (
    check_noise,
    core,
    correlated_distortion,
    step_sizes,
    whole_decoder,
)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def network(request):
    """An untrained network in which everything does something."""
    torch.manual_seed(0)
    model = shaken(AINN.from_preset("tiny", tied=request.param, **SMALL), 0.05)
    with torch.no_grad():
        for level in [] if request.param else model.synthesis_levels:
            for parameter in level.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.double().requires_grad_(False).eval()


def both(v):
    """A toy decoder of two branches."""
    return up(v[:, :3]) + up(v[:, 3:]).flip(2)


def test_uniform_noise_against_the_jacobian():
    y = randn(1, 6, 3, 2)
    step = 1e-3 * torch.tensor([0.5, 0.1, 0.9, 0.2, 0.6, 0.4], dtype=torch.float64)
    J = dense(both, y) * step.repeat_interleave(6)
    exact = J.square().sum().item() / 12 / J.shape[0]
    generator = torch.Generator().manual_seed(0)
    measured = []
    for _ in range(300):
        noise = torch.rand(y.shape, generator=generator, dtype=y.dtype) - 0.5
        n = step[:, None, None] * noise
        measured.append(check_noise(both, y, n, step, probes=2).measured)
    predicted = check_noise(both, y, n, step, probes=400).independent
    assert predicted == pytest.approx(exact, rel=0.1)  # two standard errors
    assert np.mean(measured) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("rho", [1.0, 0.6, -0.8])
def test_correlated_branches_against_the_covariance(rho):
    y, mix = randn(1, 4, 2, 2), randn(5, 4, 1, 1, seed=8)
    deviation = torch.tensor([0.3, 0.1, 0.2, 0.4], dtype=torch.float64)

    def g(v):
        return torch.tanh(torch.nn.functional.conv2d(v, mix))

    covariance = torch.diag(deviation**2)
    for low, high in ((0, 2), (1, 3)):
        shared = rho * deviation[low] * deviation[high]
        covariance[low, high] = covariance[high, low] = shared
    J = dense(g, y)
    of_all_pixels = torch.kron(covariance, torch.eye(4, dtype=torch.float64))
    exact = ((J @ of_all_pixels * J).sum() / J.shape[0]).item()
    found = correlated_distortion(Jacobian(g, y), deviation**2, rho, probes=1500)
    assert found == pytest.approx(exact, rel=0.06)


def rounding(y, step):
    """The error that rounding to multiples of the step makes."""
    width = per_channel(step, y)
    return torch.round(y / width) * width - y


def test_rounding_of_two_equal_branches():
    branch = randn(1, 2, 8, 8)
    y = torch.cat([branch, branch], dim=1)
    n = rounding(y, 0.1)
    check = check_noise(lambda v: (v[:, :2] + v[:, 2:]) / 2, y, n, 0.1, probes=50)
    assert check.correlation == pytest.approx(1)
    assert check.variance == pytest.approx(1, abs=0.25)
    assert check.measured == pytest.approx(n.square().mean().item())
    assert check.correlated == pytest.approx(check.measured, rel=0.05)
    assert check.independent == pytest.approx(0.01 / 12 / 2)


def test_rounding_to_steps_far_above_the_values():
    y = 0.2 * randn(1, 2, 8, 8).clamp(-1, 1)
    check = check_noise(lambda v: 1 * v, y, rounding(y, 1.0), 1.0)
    assert check.variance < 12 * 0.2**2
    assert check.measured == pytest.approx(check.variance / 12)


def total(check):
    missed = check.variance + check.dependence + check.cross + check.remainder
    return check.predicted + missed


def test_the_parts_of_the_decoders_distortion(network):
    check = whole_decoder(network, X, 4.0, probes=20)
    _, start, y_hat = latents(network, X)
    n, h = y_hat - start, 1e-6
    r0 = network.g_s(start) - X

    def slope(at):
        """J n by central differences."""
        return (network.g_s(at + h * n) - network.g_s(at - h * n)) / (2 * h)

    pushed = slope(start)
    assert check.measured == pytest.approx(mse(network.g_s(y_hat), X))
    assert check.zero == pytest.approx(mse(network.g_s(start), X))
    assert check.cross == pytest.approx(2 * (r0 * pushed).mean().item(), rel=1e-4)
    alone = pushed.square().mean().item()
    assert check.linear + check.variance + check.dependence == pytest.approx(alone, rel=1e-4)
    assert total(check) == pytest.approx(check.measured)
    assert check.off == pytest.approx(check.predicted / check.measured - 1)
    middle = slope(start + n / 2)
    assert check.midpoint == pytest.approx(mse(r0, -middle), rel=1e-4)

    _, inverse_gain, _ = network.gains(4.0)
    uniform = predicted_distortion(network.g_s, start, inverse_gain, probes=20, seed=1)
    real = (12 * n.square().mean((0, 2, 3))).sqrt()  # steps of this variance
    with_variance = predicted_distortion(network.g_s, start, real, probes=20, seed=1)
    for other, value in ((uniform, check.linear), (with_variance, check.linear + check.variance)):
        assert abs(other.linear - value) < 5 * 1.5 * other.standard_error
    assert check.rounding == pytest.approx((12 * (n / inverse_gain).square().mean()).item())


def test_a_network_of_one_rate():
    torch.manual_seed(0)
    fixed = shaken(AINN.from_preset("tiny", variable_rate=False, **SMALL))
    fixed = fixed.double().requires_grad_(False).eval()
    assert torch.equal(step_sizes(fixed), torch.ones(1536, dtype=torch.float64))
    check = whole_decoder(fixed, X)
    assert total(check) == pytest.approx(check.measured)


def test_every_channel_of_u_has_the_step_of_the_channel_that_averages_it(trained):
    inverse_gain = trained.gains(4.0)[1].flatten()
    steps = step_sizes(trained, 4.0)
    assert steps.shape == (1536,) and len(inverse_gain.unique()) > 100
    for channel in (0, 5, 191, 192, 1535):
        u = torch.zeros(1, 1536, 1, 1, dtype=torch.float64)
        u[:, channel] = 1
        y = trained.g_a.squeeze(*u.chunk(2, dim=1))
        assert steps[channel] == inverse_gain[y.flatten().argmax()]


def test_the_core_shares_nothing_with_the_network(network):
    before = network.g_a(X)
    bare = core(network)
    u = bare.g_a(X)
    assert u.shape == (1, 1536, 2, 2)
    bare.levels[0].conv1x1.weight.zero_()
    assert torch.equal(network.g_a(X), before)
    assert "cfrm" in network.g_s.names and "pdm4" in network.g_s.names


def test_the_core_of_a_network_with_a_middle_scale_inverts():
    extended = AINN.from_preset("tiny", ms_cfrm=True, **SMALL).double().requires_grad_(False)
    bare = core(extended)
    assert mse(bare.g_s(bare.g_a(X)), X) < 1e-24


def test_invertible_or_not(network):
    """An untied core loses something, and its inverse levels have rows that are not 0."""
    bare = core(network)
    lost = mse(bare.g_s(bare.g_a(X)), X)
    budget = error_budget(network, X, 4.0)
    rows = [row for row in budget.rows if row.name.startswith("inverse")]
    assert sum(row.share for row in budget.rows) == pytest.approx(budget.distortion, rel=1e-9)
    assert len(rows) == 4
    if network.config.tied:
        assert lost < 1e-24 and all(row.linear < 1e-12 * budget.distortion for row in rows)
    else:
        assert lost > 1e-6 and all(row.linear > 1e-9 * budget.distortion for row in rows)


def test_the_bound_of_the_synthesis_it_has(network):
    for level in network.synthesis_levels[:2]:
        inverse, shape = inverse_of(level, level.conv1x1.weight.shape[0], 1, 1)
        v = randn(*shape).clamp(-2, 2)
        assert norm_of(dense(inverse, v)) <= lipschitz_bound(level, 2.0).value


# -- trained weights: the tolerances are fixed -----------------------------------------------------


@pytest.fixture(scope="module", params=["tiny", "student"])
def trained(request):
    return load_pretrained(request.param).double().requires_grad_(False)


@pytest.fixture(scope="module")
def crop():
    picture = np.array(datasets.photo("coffee").crop((250, 150, 298, 198)))
    return torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255


def test_noise_and_rounding_on_the_trained_core(trained, crop):
    bare, step = core(trained), step_sizes(trained, 4.0)
    u = bare.g_a(crop)
    uniform = torch.rand(u.shape, generator=torch.Generator().manual_seed(0), dtype=u.dtype) - 0.5
    for delta in (1 / 64, 1 / 8):
        check = check_noise(bare.g_s, u, per_channel(delta * step, u) * uniform, delta * step)
        assert abs(check.independent / check.measured - 1) < 0.03
        check = check_noise(bare.g_s, u, rounding(u, delta * step), delta * step)
        assert abs(check.correlated / check.measured - 1) < 0.03


def test_column_norms_add_up_to_the_prediction(trained, crop):
    bare, step = core(trained), step_sizes(trained, 4.0)
    u = bare.g_a(crop)
    contributions = step**2 / 12 * column_norms(bare.g_s, u, probes=8) / crop.numel()
    predicted = predicted_distortion(bare.g_s, u, step, probes=8).linear
    assert contributions.sum().item() == pytest.approx(predicted)


@pytest.mark.parametrize("quality", [4.0, 8.0])
def test_what_the_simple_theory_misses_is_explained(trained, crop, quality):
    """The model of the noise, and J that changes along the error, explain all of it."""
    check = whole_decoder(trained, crop, quality)
    assert check.midpoint == pytest.approx(check.measured, rel=0.1)
    assert check.rounding < 1.05  # never more than uniform, but for the sampling
    budget = error_budget(trained, crop, quality)
    remainders = {row.name: row.remainder for row in budget.rows}
    missing = sum(remainders.values())
    assert budget.linear_total + missing == pytest.approx(budget.distortion, rel=1e-9)
    if abs(budget.linear_total / budget.distortion - 1) > 0.1:
        # then J changes along the three long errors, which are made before the inverse levels
        long = sum(remainders[name] for name in ("rounding", "gains", "CFRM"))
        assert long == pytest.approx(missing, rel=0.2)
