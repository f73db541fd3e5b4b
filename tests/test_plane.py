import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import shaken

from ainn_lib import AINNError
from ainn_lib.theory.plane import Banana, Flow, cells, measure, train

SOURCE = Banana()


@pytest.fixture(scope="module")
def flows():
    return {
        "likelihood": train(SOURCE, steps=300),
        "rate-distortion": train(SOURCE, lam=100.0, steps=300),
    }


def step_for(flow, bits):
    """Δ that costs about so many bits."""
    log2_det = flow(SOURCE.sample(5000))[1].mean().item() / math.log(2)
    return 2 ** ((SOURCE.entropy + log2_det - bits) / 2)


@pytest.mark.parametrize("source", [Banana(), Banana(2.0, 0.5, -1.0), Banana(1.0, 1.0, 0.0)])
def test_the_entropy_is_that_of_its_density(source):
    x = source.sample(100_000, seed=3)
    # the deviation of -log2 p is log2(e) = 1.44 bits, whatever the source: 0.0046 for the mean of
    # 100,000, and five of them
    assert -source.log2_density(x).mean().item() == pytest.approx(source.entropy, abs=0.023)


def test_the_density_integrates_to_one():
    columns, rows = torch.arange(-6, 6, 0.04), torch.arange(-4, 20, 0.04)
    x = torch.cartesian_prod(columns, rows).double()
    assert (2 ** SOURCE.log2_density(x)).sum().item() * 0.04**2 == pytest.approx(1, abs=1e-6)


def test_the_flow_inverts():
    flow, x = shaken(Flow(), 0.3), SOURCE.sample(50)
    y, _ = flow(x)
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(flow.inverse(y), x, atol=1e-12, rtol=0)


def test_jacobian_and_log_determinant_against_autograd():
    flow, x = shaken(Flow(), 0.3), SOURCE.sample(8)
    y, log_det = flow(x)
    assert (log_det.abs() > 1e-3).all()
    for i in range(len(x)):
        forward = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0][0], x[i])
        torch.testing.assert_close(torch.linalg.slogdet(forward)[1], log_det[i].detach())
        torch.testing.assert_close(flow.jacobian(y)[i].detach(), torch.linalg.inv(forward))


def test_the_bits_of_all_cells_are_a_distribution():
    flow = shaken(Flow())
    with torch.no_grad():
        flow.means += torch.tensor([[0.3], [-2.0]])
        grid = 0.7 * torch.arange(-20, 21, dtype=torch.float64)
        y = torch.cartesian_prod(grid, grid)
        assert (2 ** -flow.bits(y, 0.7)).sum().item() == pytest.approx(1, abs=1e-9)
        near = y[y.abs().amax(1) < 3]
        # a small cell's mass is density times area
        fine = -flow.bits(near, 1e-4) - 2 * math.log2(1e-4)
        density = flow.prior.log_prob(near).sum(1) / math.log(2)
        torch.testing.assert_close(fine, density, atol=1e-6, rtol=0)


def test_the_parts_add_up_and_nothing_beats_shannon(flows):
    for flow in flows.values():
        for bits in (3, 5, 8, 11):
            point = measure(flow, SOURCE, step_for(flow, bits), count=5000)
            parts = point.unequal + point.uneven + point.prior + point.remainder
            assert parts == pytest.approx(point.above, abs=1e-9)
            assert point.distortion > point.bound * 12 / (2 * math.pi * math.e)
            assert min(point.unequal, point.uneven) >= 0


def test_a_square_grid_on_the_plane_itself():
    """f = identity: equal cells and D = Δ²/12, but the prior knows no banana and costs bits."""
    point = measure(Flow().requires_grad_(False), SOURCE, 0.05)
    assert (point.unequal, point.uneven) == pytest.approx((0, 0), abs=1e-12)
    # six deviations of the mean of 40,000 squares
    assert point.distortion == pytest.approx(0.05**2 / 12, rel=0.03)
    assert point.prior > 3


def test_each_flow_wins_at_its_own_loss(flows):
    x = SOURCE.sample(20_000, seed=10**6)
    nats = {}
    for name, flow in flows.items():
        y, log_det = flow(x)
        nats[name] = -(flow.prior.log_prob(y).sum(1) + log_det).mean().item()
    assert nats["likelihood"] < nats["rate-distortion"]
    likelihood, rate_distortion = (
        measure(flow, SOURCE, step_for(flow, 8)) for flow in flows.values())
    assert likelihood.unequal > rate_distortion.unequal + 3
    assert likelihood.above > rate_distortion.above + 3
    assert rate_distortion.above < 1.5


def test_training_repeats_itself():
    state = torch.random.get_rng_state()
    first, second = (train(SOURCE, lam=50.0, steps=5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_mistakes_are_named():
    with pytest.raises(AINNError, match="λ"):
        train(SOURCE, lam=0.0)
    with pytest.raises(AINNError, match="step"):
        measure(Flow(), SOURCE, 0.0)


def test_the_cells_over_the_whole_range(flows):
    for flow in flows.values():
        last = math.inf
        for exponent in np.linspace(-1.5, 1.5, 3):
            figure, numbers = cells(flow, SOURCE, step=float(2**exponent))
            assert numbers.rate < last
            assert f"{numbers.rate:.2f} bits" in str(numbers)
            last = numbers.rate
            plt.close(figure)
