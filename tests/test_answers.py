"""Numbers that stand in the text of notebooks 01 and 03, in answers to exercises: no cell there computes them."""

import math

import nbformat
import pytest
import torch

from ainn_lib import toy
from ainn_lib.invertible import Coupling
from ainn_lib.reproduce import ROOT
from ainn_lib.widgets import round_trip_errors

SOURCE = toy.Banana()
FRESH = SOURCE.sample(20_000, seed=10**6)


def says(notebook, *sentences):
    """The text still says so; or else the test below it tests nothing."""
    nb = nbformat.read(next((ROOT / "notebooks").glob(f"{notebook}_*.ipynb")), as_version=4)
    text = " ".join(" ".join(cell.source for cell in nb.cells if cell.cell_type == "markdown").split())
    missing = [s for s in sentences if s not in text]
    assert not missing, missing


def at_bits(flow, bits):
    step = 2 ** ((SOURCE.entropy + flow(SOURCE.sample(20_000, seed=1))[1].mean().item() / math.log(2) - bits) / 2)
    return toy.measure(flow, SOURCE, step).above


def test_float32_against_depth_and_clamp():
    says("01", "twelve layers at clamp 1", "still return two or three digits; fifteen return nothing",
         "1.5 still holds two digits at 8 layers, 2 does not")
    assert 1e-3 <= round_trip_errors(1.0)[11] < 1e-2 and round_trip_errors(1.0)[14] > 1
    assert round_trip_errors(1.5)[7] < 1e-2 and round_trip_errors(2.0)[7] > 1


@torch.no_grad()
def test_storing_and_computing_in_float32():
    says("01", "Storing costs about 1e-6.", "it is about 5e-6")
    torch.manual_seed(0)
    layers = [Coupling(12, 16, 3, shared=True).double() for _ in range(8)]
    for conv in (m for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Conv2d)):
        torch.nn.init.xavier_normal_(conv.weight)
    start = torch.randn(2, 1, 12, 16, 16, dtype=torch.float64)

    def error(dtype, stored):
        v = tuple(start.to(dtype))
        for layer in layers:
            v = layer.to(dtype)(*v)
        v = tuple(t.to(stored).to(dtype) for t in v)
        for layer in reversed(layers):
            v = layer.inverse(*v)
        return (torch.stack(v) - start).square().mean().sqrt().item()

    assert error(torch.float64, torch.float32) == pytest.approx(1e-6, rel=0.7)  # of one draw of the weights
    assert error(torch.float32, torch.float32) == pytest.approx(5e-6, rel=0.7)


@torch.no_grad()
def test_what_the_identity_costs():
    says("03", "It costs 1.14 bits a vector, 3.4 dB.")

    def entropy(values, width=0.05):
        p = torch.unique(torch.round(values / width), return_counts=True)[1] / len(values)
        return -(p * p.log2()).sum().item() + math.log2(width)

    excess = sum(entropy(column) for column in SOURCE.sample(200_000, seed=2).T) - SOURCE.entropy
    assert excess == pytest.approx(1.14, abs=0.01) and 3.01 * excess == pytest.approx(3.4, abs=0.05)


@pytest.mark.slow
def test_a_flow_for_a_low_rate():
    says("03", "Around 3 bits we measured 2.2 dB above the bound for the flow trained at $\\lambda = 10$, and 0.8 dB for",
         "(at 10 bits 1.5 dB against 0.3 dB;", "from 3.5 to 4.2, with mean 3.8; the training's own loss is 3.8.")
    low, high = (toy.train(SOURCE, lam=lam) for lam in (10.0, 100.0))
    with torch.no_grad():
        for flow, at_three, at_ten in ((low, 2.2, 1.5), (high, 0.8, 0.3)):
            assert at_bits(flow, 3) == pytest.approx(at_three, abs=0.2)
            assert at_bits(flow, 10) == pytest.approx(at_ten, abs=0.2)

        def cost(y_hat):
            return (low.bits(y_hat, 1.0).mean() + 10 * (low.inverse(y_hat) - FRESH).square().mean()).item()

        y, _ = low(FRESH)
        shifts = torch.cartesian_prod(torch.arange(4), torch.arange(4)) / 4
        costs = [cost(torch.round(y - shift) + shift) for shift in shifts]
        trained = cost(y + torch.rand(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype) - 0.5)
        assert (min(costs), max(costs), sum(costs) / 16, trained) == pytest.approx((3.5, 4.2, 3.8, 3.8), abs=0.1)
        assert costs[0] == max(costs)  # the grid that `measure` uses


def test_a_perfect_likelihood_flow():
    """Of the flow that undoes the bend; and the trained one did not just do that."""
    says("03", "= 1.5$ dB", "= 3.27$ dB", "Our trained one keeps far more at *its* best stretch")
    assert 10 * math.log10(math.sqrt(1 + 4 * SOURCE.bend**2 * SOURCE.sigma_a**2)) == pytest.approx(1.5, abs=0.05)
    assert 10 * math.log10((1 + 1 / 16) / (1 / 2)) == pytest.approx(3.27, abs=0.005)
    flow = toy.train(SOURCE)
    with torch.no_grad():
        jacobian = flow.jacobian(flow(FRESH)[0])
        columns, area = jacobian.square().sum(1).mean(0), jacobian.det().abs().mean()
        left = 10 * torch.log10(columns.prod().sqrt() / area).item()  # columns[0] / k^2 + columns[1] k^2 is least at equal terms
        bits = -(flow.prior.log_prob(flow(FRESH)[0]).sum(1) + flow(FRESH)[1]).mean().item() / math.log(2)
    assert left > 3 and abs(bits + SOURCE.log2_density(FRESH).mean().item()) < 0.03
