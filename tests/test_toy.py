import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import shaken

from ainn_lib import AINNError
from ainn_lib.toy import Banana, Flow, cells, measure, train
from ainn_lib.widgets import CLAMPS, DEEPEST, at_depth, round_trip_errors

SOURCE = Banana()


@pytest.fixture(scope="module")
def flows():
    return {"likelihood": train(SOURCE, steps=300), "rate-distortion": train(SOURCE, lam=100.0, steps=300)}


def step_for(flow, bits):
    """Δ that costs about so many bits."""
    return 2 ** ((SOURCE.entropy + flow(SOURCE.sample(5000))[1].mean().item() / math.log(2) - bits) / 2)


@pytest.mark.parametrize("source", [Banana(), Banana(2.0, 0.5, -1.0), Banana(1.0, 1.0, 0.0)])
def test_the_entropy_is_that_of_its_density(source):
    x = source.sample(100_000, seed=3)
    # the deviation of -log2 p is log2(e) = 1.44 bits, whatever the source: 0.0046 for the mean of 100,000, and five of them
    assert -source.log2_density(x).mean().item() == pytest.approx(source.entropy, abs=0.023)


def test_the_density_integrates_to_one():
    a, b = torch.meshgrid(torch.arange(-6, 6, 0.02), torch.arange(-4, 20, 0.02), indexing="ij")
    x = torch.stack([a.flatten(), b.flatten()], dim=1).double()
    assert (2 ** SOURCE.log2_density(x)).sum().item() * 0.02**2 == pytest.approx(1, abs=1e-6)


def test_the_flow_inverts_and_is_made_of_the_librarys_coupling():
    flow, x = shaken(Flow(), 0.3), SOURCE.sample(50)
    y, _ = flow(x)
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(flow.inverse(y), x, atol=1e-12, rtol=0)
    a, b = x.T[:, None, None, :, None]
    for layer in flow.couplings:
        a, b = layer(a, b)
    torch.testing.assert_close(torch.stack([a.flatten(), b.flatten()], dim=1), y)


def test_jacobian_and_log_determinant_against_autograd():
    flow, x = shaken(Flow(), 0.3), SOURCE.sample(8)
    y, log_det = flow(x)
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
        fine = -flow.bits(y, 1e-4) - 2 * math.log2(1e-4)  # a small cell's mass is density times area
        near = y.abs().amax(1) < 3
        torch.testing.assert_close(fine[near], flow.prior.log_prob(y).sum(1)[near] / math.log(2), atol=1e-6, rtol=0)


def test_the_parts_add_up_and_nothing_beats_shannon(flows):
    for flow in flows.values():
        for bits in (3, 5, 8, 11):
            point = measure(flow, SOURCE, step_for(flow, bits), count=5000)
            assert point.unequal + point.uneven + point.prior + point.remainder == pytest.approx(point.above, abs=1e-9)
            assert point.distortion > point.bound * 12 / (2 * math.pi * math.e)
            assert min(point.unequal, point.uneven) >= 0


def test_a_square_grid_on_the_plane_itself():
    """f = identity: no unequal or uneven cells, D = Δ²/12, and the rate is far too high (the prior knows no banana)."""
    point = measure(Flow().requires_grad_(False), SOURCE, 0.05)
    assert (point.unequal, point.uneven) == pytest.approx((0, 0), abs=1e-12)
    assert point.distortion == pytest.approx(0.05**2 / 12, rel=0.03)  # six deviations of the mean of 40,000 squares
    assert point.prior > 3


def test_each_flow_wins_at_its_own_loss(flows):
    x = SOURCE.sample(20_000, seed=10**6)
    nats = {name: -(flow.prior.log_prob(flow(x)[0]).sum(1) + flow(x)[1]).mean().item() for name, flow in flows.items()}
    points = {name: measure(flow, SOURCE, step_for(flow, 8)) for name, flow in flows.items()}
    assert nats["likelihood"] < nats["rate-distortion"]
    assert points["likelihood"].unequal > points["rate-distortion"].unequal + 3
    assert points["likelihood"].above > points["rate-distortion"].above + 3
    assert points["rate-distortion"].above < 1.5


def test_training_repeats_itself():
    first, second = (train(SOURCE, lam=50.0, steps=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_mistakes_are_named():
    with pytest.raises(AINNError, match="λ"):
        train(SOURCE, lam=0.0)
    with pytest.raises(AINNError, match="step"):
        measure(Flow(), SOURCE, 0.0)


def test_the_cells_over_the_whole_range(flows):
    for flow in flows.values():
        last = math.inf
        for exponent in np.linspace(-1.5, 1.5, 5):
            figure, numbers = cells(flow, SOURCE, step=float(2**exponent))
            assert numbers.rate < last
            assert f"{numbers.rate:.2f} bits" in str(numbers)
            last = numbers.rate
            plt.close(figure)


def test_the_depth_explorer():
    for clamp in CLAMPS:
        for depth in (1, 7, DEEPEST):
            figure, numbers = at_depth(clamp, depth)
            assert numbers.float32 == round_trip_errors(clamp, torch.float32)[depth - 1] > numbers.float64 > 0
            assert f"{numbers.float32:.1e}" in str(numbers)
            plt.close(figure)
    assert round_trip_errors(4.0)[0] < 1e-5 < 1 < round_trip_errors(4.0)[-1] == math.inf
    with pytest.raises(AINNError, match="clamp"):
        at_depth(0.3, 4)
    with pytest.raises(AINNError, match="depth"):
        at_depth(1.0, DEEPEST + 1)
