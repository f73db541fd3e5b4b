"""Answers to exercises, in the text of notebooks 01, 03 and 03a, that no cell there computes."""

import math
import re

import nbformat
import numpy as np
import pytest
import torch

from ainn_lib.network.blocks import Coupling
from ainn_lib.paths import NOTEBOOKS
from ainn_lib.theory import plane
from ainn_lib.ui.explorers import round_trip_errors

SOURCE = plane.Banana()
FRESH = SOURCE.sample(20_000, seed=10**6)


def says(number, *sentences):
    """The text still says so; or else the test below it tests nothing."""
    notebook = nbformat.read(next(NOTEBOOKS.glob(f"{number}_*.ipynb")), as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    text = " ".join(" ".join(cells).split())
    missing = [sentence for sentence in sentences if sentence not in text]
    assert not missing, missing


def above_the_bound(flow, bits):
    """dB above the high-rate bound at the step that should give so many bits."""
    area = flow(SOURCE.sample(20_000, seed=1))[1].mean().item() / math.log(2)
    step = 2 ** ((SOURCE.entropy + area - bits) / 2)
    return plane.measure(flow, SOURCE, step).above


# -- notebook 01 -----------------------------------------------------------------------------------


def test_float32_against_depth_and_clamp():
    says(
        "01",
        "twelve layers at clamp 1",
        "still return two or three digits; fifteen return nothing",
        "1.5 still holds two digits at 8 layers, 2 does not",
    )
    assert 1e-3 <= round_trip_errors(1.0)[11] < 1e-2 and round_trip_errors(1.0)[14] > 1
    assert round_trip_errors(1.5)[7] < 1e-2 and round_trip_errors(2.0)[7] > 1


@torch.no_grad()
def test_storing_and_computing_in_float32():
    says("01", "Storing costs about 1e-6.", "it is about 5e-6")
    torch.manual_seed(0)
    layers = [Coupling(12, 16, 3, shared=True).double() for _ in range(8)]
    for module in torch.nn.ModuleList(layers).modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.xavier_normal_(module.weight)
    start = torch.randn(2, 1, 12, 16, 16, dtype=torch.float64)

    def error(dtype, stored):
        maps = tuple(start.to(dtype))
        for layer in layers:
            maps = layer.to(dtype)(*maps)
        maps = tuple(v.to(stored).to(dtype) for v in maps)
        for layer in reversed(layers):
            maps = layer.inverse(*maps)
        return (torch.stack(maps) - start).square().mean().sqrt().item()

    # the tolerance is that of one draw of the weights
    assert error(torch.float64, torch.float32) == pytest.approx(1e-6, rel=0.7)
    assert error(torch.float32, torch.float32) == pytest.approx(5e-6, rel=0.7)


# -- notebook 03 -----------------------------------------------------------------------------------


@torch.no_grad()
def test_what_the_identity_costs():
    says("03", "It costs 1.14 bits a vector, 3.4 dB.")

    def entropy(values, width=0.05):
        counts = torch.unique(torch.round(values / width), return_counts=True)[1]
        p = counts / len(values)
        return -(p * p.log2()).sum().item() + math.log2(width)

    first, second = SOURCE.sample(200_000, seed=2).T
    excess = entropy(first) + entropy(second) - SOURCE.entropy
    assert excess == pytest.approx(1.14, abs=0.01) and 3.01 * excess == pytest.approx(3.4, abs=0.05)


@pytest.fixture(scope="module")
def low_rate():
    """The flow that is trained at λ = 10."""
    return plane.train(SOURCE, lam=10.0)


@pytest.mark.slow
@torch.no_grad()
def test_a_flow_for_a_low_rate(low_rate):
    says(
        "03",
        "Around 3 bits we measured 2.2 dB above the bound for the flow trained at "
        "$\\lambda = 10$, and 0.8 dB for",
        "(at 10 bits 1.5 dB against 0.3 dB;",
    )
    with torch.enable_grad():
        high_rate = plane.train(SOURCE, lam=100.0)
    for flow, at_three, at_ten in ((low_rate, 2.2, 1.5), (high_rate, 0.8, 0.3)):
        assert above_the_bound(flow, 3) == pytest.approx(at_three, abs=0.2)
        assert above_the_bound(flow, 10) == pytest.approx(at_ten, abs=0.2)


@pytest.mark.slow
@torch.no_grad()
def test_the_position_of_the_grid(low_rate):
    says("03", "from 3.5 to 4.2, with mean 3.8; the training's own loss is 3.8.")

    def cost(y_hat):
        distortion = (low_rate.inverse(y_hat) - FRESH).square().mean()
        return (low_rate.bits(y_hat, 1.0).mean() + 10 * distortion).item()

    y, _ = low_rate(FRESH)
    shifts = torch.cartesian_prod(torch.arange(4), torch.arange(4)) / 4
    costs = [cost(torch.round(y - shift) + shift) for shift in shifts]
    noise = torch.rand(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    found = min(costs), max(costs), sum(costs) / 16, cost(y + noise - 0.5)
    assert found == pytest.approx((3.5, 4.2, 3.8, 3.8), abs=0.1)
    assert costs[0] == max(costs)  # the grid that `measure` uses


def test_a_perfect_likelihood_flow():
    """Of the flow that undoes the bend; and the trained one did not just do that."""
    says("03", "= 1.5$ dB", "= 3.27$ dB", "Our trained one keeps far more at *its* best stretch")
    undone = 10 * math.log10(math.sqrt(1 + 4 * SOURCE.bend**2 * SOURCE.sigma_a**2))
    assert undone == pytest.approx(1.5, abs=0.05)
    assert 10 * math.log10((1 + 1 / 16) / (1 / 2)) == pytest.approx(3.27, abs=0.005)
    flow = plane.train(SOURCE)
    with torch.no_grad():
        y, log_det = flow(FRESH)
        jacobian = flow.jacobian(y)
        columns, area = jacobian.square().sum(1).mean(0), jacobian.det().abs().mean()
        # columns[0] / k^2 + columns[1] k^2 is least where both terms are equal
        left = 10 * torch.log10(columns.prod().sqrt() / area).item()
        bits = -(flow.prior.log_prob(y).sum(1) + log_det).mean().item() / math.log(2)
    assert left > 3 and abs(bits + SOURCE.log2_density(FRESH).mean().item()) < 0.03


# -- notebook 03a ----------------------------------------------------------------------------------


def test_the_decoder_that_the_answer_gives():
    """The answer's code, beside the notebook's own coder, brings every symbol back."""
    notebook = nbformat.read(next(NOTEBOOKS.glob("03a_*.ipynb")), as_version=4)
    (encoder,) = [cell.source for cell in notebook.cells
                  if cell.cell_type == "code" and "def ans_encode" in cell.source]
    (answer,) = [code for cell in notebook.cells if cell.cell_type == "markdown"
                 for code in re.findall(r"```python\n(.*?)```", cell.source, re.S)]
    names = {"np": np}
    exec(encoder + "\n" + answer, names)
    parts = [0, 40000, 65000, 65535, 65536]
    symbols = np.random.default_rng(0).choice(4, 300, p=[0.6, 0.3, 0.05, 0.05]).tolist()
    state = names["ans_encode"](symbols, parts)
    assert names["ans_decode"](state, len(symbols), parts) == symbols
    number, bits = names["range_encode"](symbols, parts)
    assert names["range_decode"](number, bits, len(symbols), parts) == symbols
    ideal = -sum(math.log2((parts[s + 1] - parts[s]) / 2**16) for s in symbols)
    assert ideal <= bits < ideal + 1


def test_the_bits_of_one_letter_and_of_a_wrong_deviation():
    says("03a", "$-\\log_2 0.1 = 3.32$ bits", "= 15.2$ bits", "0.46 bits a value")
    assert f"{-math.log2(0.1):.2f}" == "3.32" and f"{-100 * math.log2(0.9):.1f}" == "15.2"
    assert f"{1 - (1 - 1 / 4) / (2 * math.log(2)):.2f}" == "0.46"
