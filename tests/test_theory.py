"""Jacobians, predicted distortion, Lipschitz bounds and error budget against brute force."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from compressai.layers import GDN
from compressai.models import FactorizedPrior
from conftest import shaken
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from ainn_lib import AINN, AINNError
from ainn_lib.network import coder
from ainn_lib.network.blocks import Coupling, InvertibleConv1x1, Level, Squeeze
from ainn_lib.theory.error_budget import error_budget, rho
from ainn_lib.theory.jacobian import (
    Jacobian,
    column_norms,
    per_channel,
    power_iteration,
    predicted_distortion,
)
from ainn_lib.theory.lipschitz import conv_norm, lipschitz_bound

SMALL = dict(N=8, context_out=8, hyper_out=8, parameter_widths=(8, 8), hidden=(8, 8, 8, 8))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def up(y):
    """A toy decoder: more outputs than inputs, smooth."""
    hidden = torch.tanh(F.conv2d(y, randn(4, 3, 3, 3, seed=1), padding=1))
    return F.conv_transpose2d(hidden, randn(4, 2, 2, 2, seed=2), stride=2)


def down(y):
    """Fewer outputs than inputs, with kinks."""
    return F.leaky_relu(F.conv2d(F.max_pool2d(y, 2), randn(2, 3, 1, 1, seed=3)), 0.2)


def pooled(y):
    """The parts of a U-Net whose derivatives are the least usual."""
    small = F.max_pool2d(F.relu(y), 2)
    return F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=True)


def squares(y):
    return y.square() + y.flip(1)


TOYS = {
    "up": (up, randn(1, 3, 3, 2)),
    "down": (down, randn(1, 3, 4, 4)),
    "pooled": (pooled, randn(1, 2, 4, 4)),
    "GDN": (GDN(3, inverse=True).double(), randn(1, 3, 3, 3)),
    "two images": (squares, randn(2, 3, 2, 2)),
    "CompressAI's": (FactorizedPrior(4, 3).g_s.double(), randn(1, 3, 1, 1)),
}


def dense(g, y):
    return jacobian(g, y).reshape(-1, y.numel()).detach()


def norm_of(matrix):
    return torch.linalg.matrix_norm(matrix, ord=2).item()


@pytest.fixture(params=TOYS, scope="module")
def toy(request):
    g, y = TOYS[request.param]
    return g, y, dense(g, y)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    fresh = shaken(AINN.from_preset("tiny", **SMALL), 0.05)
    return fresh.double().requires_grad_(False).eval()


def mse(a, b):
    return (a - b).square().mean().item()


# -- Jacobians -------------------------------------------------------------------------------------


def test_products_equal_those_with_the_dense_jacobian(toy):
    g, y, J = toy
    lazy, v = Jacobian(g, y), randn(*y.shape, seed=5)
    w = randn(*lazy.value.shape, seed=6)
    torch.testing.assert_close(lazy.value, g(y).detach())
    torch.testing.assert_close(lazy.jvp(v).flatten(), J @ v.flatten())
    torch.testing.assert_close(lazy.vjp(w).flatten(), J.T @ w.flatten())


def test_it_works_where_gradients_are_off_and_leaves_nothing_behind(toy):
    g, y, J = toy
    with torch.no_grad():
        lazy = Jacobian(g, y)
        pushed = lazy.jvp(torch.ones_like(y))
    torch.testing.assert_close(pushed.flatten(), J.sum(1))
    assert not (pushed.requires_grad or lazy.value.requires_grad or y.requires_grad)


def test_rounding_has_derivative_0_and_straight_through_rounding_that_of_training():
    y, ones = randn(1, 4), torch.ones(1, 4, dtype=torch.float64)
    straight_through = Jacobian(lambda y: y + (torch.round(y) - y).detach(), y)
    assert straight_through.jvp(ones).tolist() == straight_through.vjp(ones).tolist() == [[1.0] * 4]
    assert Jacobian(torch.round, y).jvp(ones).tolist() == [[0.0] * 4]


def test_the_whole_decoder(model):
    generator = torch.Generator().manual_seed(1)
    y = model.g_a(torch.rand(1, 3, 16, 16, generator=generator, dtype=torch.float64))
    lazy, v, w = Jacobian(model.g_s, y), randn(*y.shape), randn(1, 3, 16, 16)
    difference = (model.g_s(y + 1e-6 * v) - model.g_s(y - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(lazy.jvp(v), difference, rtol=1e-5, atol=1e-6)
    adjoint = (v * lazy.vjp(w)).sum().item()
    assert (lazy.jvp(v) * w).sum().item() == pytest.approx(adjoint, rel=1e-11)


def test_column_norms(toy):
    g, y, J = toy
    norms = column_norms(g, y, probes=800)
    exact = J.square().sum(0).reshape(y.shape).transpose(0, 1).flatten(1).sum(1)
    assert norms.shape == (y.shape[1],)
    # the deviation of one probe's share is at most √2 of its mean: 5 % for 800, and four of them
    torch.testing.assert_close(norms, exact, rtol=0.2, atol=1e-9)
    assert norms.sum().item() == pytest.approx(J.square().sum().item(), rel=0.1)


def test_power_iteration(toy):
    g, y, J = toy
    assert power_iteration(g, y, iterations=500) == pytest.approx(norm_of(J), rel=1e-4)
    assert power_iteration(g, y, iterations=3) <= norm_of(J) * (1 + 1e-12)
    assert power_iteration(torch.round, y, iterations=3) == 0


# -- expected distortion ---------------------------------------------------------------------------


def test_predicted_distortion_with_one_step_for_each_channel(toy):
    g, y, J = toy
    step = torch.tensor([0.5, 0.1, 0.9][: y.shape[1]], dtype=torch.float64)
    deltas = step[None, :, None, None].expand(y.shape)
    exact = ((J * deltas.flatten()).square().sum() / 12 / J.shape[0]).item()
    assert torch.equal(per_channel(step, y), deltas)
    found = predicted_distortion(g, y, step, probes=800, x=torch.zeros_like(g(y)))
    # 4.5 standard errors: one in 100,000
    assert abs(found.linear - exact) <= 4.5 * found.standard_error + 1e-9 * exact
    assert found.standard_error < 0.06 * exact
    assert found.zero == pytest.approx(g(y).square().mean().item())
    assert found.total == found.zero + found.linear
    few = predicted_distortion(g, y, step, probes=50)
    expected = 4 * found.standard_error
    assert few.zero is None
    assert few.standard_error == pytest.approx(expected, rel=0.5, abs=1e-9 * exact)


def test_it_predicts_what_noise_does():
    y, step = randn(1, 3, 6, 6), 0.01
    generator = torch.Generator().manual_seed(1)
    draws = []
    for _ in range(400):
        noise = torch.rand(y.shape, generator=generator, dtype=y.dtype) - 0.5
        draws.append(mse(up(y + step * noise), up(y)))
    predicted = predicted_distortion(up, y, step, probes=200).total
    assert predicted == pytest.approx(sum(draws) / 400, rel=0.03)


# -- Lipschitz bounds ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_conv_norm_is_never_below_and_tight(k, seed):
    weight = randn(3, 2, k, k, seed=seed)
    bound = conv_norm(weight)

    def convolve(v):
        return F.conv2d(v, weight, padding=k // 2)

    def norm_on(side):
        return norm_of(dense(convolve, randn(1, 2, side, side)))

    small, medium, large = norm_on(1), norm_on(4), norm_on(12)
    assert small <= medium * (1 + 1e-12) and medium <= large * (1 + 1e-12)
    assert 0.8 * bound < large <= bound * (1 + 1e-12)  # 12 x 12 is not yet the infinite plane
    spectrum = torch.fft.fft2(weight, s=(256, 256)).permute(2, 3, 0, 1)
    fine = torch.linalg.matrix_norm(spectrum, ord=2).max().item()
    assert fine <= bound * (1 + 1e-12)
    assert bound <= 1.04 * fine  # 1/cos²(π/16) = 1.0396


def inverse_of(block, *shape):
    """The inverse as a function of one vector, and the vector's shape.

    ``shape`` is that of a branch without the batch; a list of levels is a core.
    """
    parts = block if isinstance(block, list) else [block]
    branches = parts[0].branches

    def inverse(v):
        maps = v.chunk(branches, dim=1)
        for part in reversed(parts):
            maps = part.inverse(*maps)
            maps = maps if isinstance(maps, tuple) else (maps,)
        return torch.cat(maps, dim=1)

    return inverse, (1, branches * shape[0], *shape[1:])


def random_block(kind, seed, shared, kernel, clamp, size):
    torch.manual_seed(seed)
    options = dict(clamp=clamp, shared=shared)
    block = {
        "conv1x1": lambda: InvertibleConv1x1(4),
        "coupling": lambda: Coupling(4, 5, kernel, **options),
        "level": lambda: Level(4, 2, 5, kernel, **options),
        "core": lambda: [Level(channels, 1, 5, kernel, **options) for channels in (4, 16)],
    }[kind]()
    parts = torch.nn.ModuleList(block if kind == "core" else [block])
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.copy_(torch.randn(parameter.shape) * size / math.sqrt(parameter[0].numel()))
        for part in parts.modules():
            if isinstance(part, InvertibleConv1x1):
                part.weight += torch.eye(len(part.weight))
    parts.double().requires_grad_(False)
    return block


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["conv1x1", "coupling", "level", "core"]),
    seed=st.integers(0, 10**6),
    shared=st.booleans(),
    kernel=st.sampled_from([1, 3]),
    clamp=st.sampled_from([0.3, 1.0, 2.0]),
    size=st.sampled_from([0.1, 0.5, 1.5]),
    box=st.sampled_from([0.1, 1.0, 4.0]),
)
def test_the_bound_is_never_below_the_measurement(kind, seed, shared, kernel, clamp, size, box):
    block = random_block(kind, seed, shared, kernel, clamp, size)
    bound = lipschitz_bound(block, box)
    inverse, shape = inverse_of(block, *((16, 1, 2) if kind == "core" else (4, 2, 2)))
    generator = torch.Generator().manual_seed(seed)
    p, q = box * (2 * torch.rand(2, *shape, generator=generator, dtype=torch.float64) - 1)
    corner = box * torch.sign(p)
    for point, other in ((p, q), (corner, p)):
        assert norm_of(dense(inverse, point)) <= bound.value * (1 + 1e-9)
        apart = (inverse(point) - inverse(other)).norm()
        assert apart <= bound.value * (point - other).norm() * (1 + 1e-9)
        branches = inverse(point).chunk(1 if kind == "conv1x1" else 2, dim=1)
        for branch, limit in zip(branches, bound.box, strict=False):
            assert branch.abs().max() <= limit * (1 + 1e-9)
    for half in bound.couplings:  # the form in notebook 01 is never the sharper one
        simple = (1 + half.translation) * half.stretch + half.box * half.slope * half.gate
        assert half.value <= simple + 1e-9


def tight_level():
    """A level whose bound is nearly attained at the point returned with it.

    All of its parts stretch channel 0. A small clamp makes e^c almost 1. Large shifts make the box
    almost attained. G is 0 at the point, where tanh is steepest. The signs are such that all
    contributions add up.
    """
    level = Level(4, 1, 1, 1, clamp=0.01).double().requires_grad_(False)
    for parameter in level.parameters():
        parameter.zero_()
    level.conv1x1.weight.copy_(torch.diag(torch.tensor([1 / 3, 1.0, 1.0, 1.0])))
    low, high = level.couplings[0].from_low, level.couplings[0].from_high
    inverted = 101.0  # high of the point after the first half: 1 + 100
    for net, slope, bias in ((low.G, 6.0, 0.0), (low.H, 3.0, -100.0),
                             (high.G, 0.006, -0.006 * inverted), (high.H, 3.0, -1e5)):
        net[0].weight[0, 0], net[2].weight[0, 0], net[4].weight[0, 0] = 1.0, 1.0, slope
        net[4].bias[0] = bias
    point = torch.zeros(1, 8, 1, 1, dtype=torch.float64)
    point[0, 0], point[0, 4] = 1e-9, 1.0  # low is just above the kink of LeakyReLU
    return level, point


def test_the_bound_fails_when_any_factor_is_halved():
    level, point = tight_level()
    bound = lipschitz_bound(level, 1.0)
    measured = norm_of(dense(inverse_of(level, 4, 1, 1)[0], point))
    assert 0.9 * bound.value < measured <= bound.value
    halved = [dataclasses.replace(bound, matrices=(bound.matrices[0] / 2,))]
    for i, half in enumerate(bound.couplings):
        for field in dataclasses.fields(half):
            smaller = dataclasses.replace(half, **{field.name: getattr(half, field.name) / 2})
            couplings = [*bound.couplings[:i], smaller, *bound.couplings[i + 1:]]
            halved.append(dataclasses.replace(bound, couplings=tuple(couplings)))
    assert len(halved) == 1 + 2 * 5
    assert all(wrong.value < measured for wrong in halved)


def test_the_squeeze_changes_no_length():
    assert lipschitz_bound(Squeeze(), 2.0).value == 1
    inverse, shape = inverse_of(Squeeze(), 4, 2, 2)
    assert norm_of(dense(inverse, randn(*shape))) == pytest.approx(1)


# -- the error budget ------------------------------------------------------------------------------

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def latents(model, x, quality=4.0):
    """y, y g g' and ŷ."""
    y = model.g_a(x)
    gain, inverse_gain, _ = model.gains(quality)
    return y, y * gain * inverse_gain, coder.encode_latent(model, y, quality).y_hat


@pytest.fixture(scope="module")
def budget(model):
    return error_budget(model, X, 4.0)


def test_the_shares_add_up_to_the_measured_distortion(model, budget):
    _, _, y_hat = latents(model, X)
    measured = mse(model.g_s(y_hat), X)
    assert budget.distortion == pytest.approx(measured, rel=1e-9)
    assert sum(row.share for row in budget.rows) == pytest.approx(measured, rel=1e-9)
    assert [row.name for row in budget.rows] == [
        "rounding", "gains", "CFRM", "inverse level 4", "PDM 4", "inverse level 3", "PDM 3",
        "inverse level 2", "PDM 2", "inverse level 1", "FDSM-S",
    ]
    for row in budget.rows:
        if row.name.startswith("inverse"):
            assert abs(row.share) + row.linear < 1e-12 * measured


def test_the_rows_are_what_they_say(model, budget):
    rows = {row.name: row for row in budget.rows}
    y, scaled, y_hat = latents(model, X)
    with_gains, without = mse(model.g_s(scaled), X), mse(model.g_s(y), X)
    assert rows["rounding"].share == pytest.approx(budget.distortion - with_gains, rel=1e-9)
    assert rows["gains"].share == pytest.approx(with_gains - without, rel=1e-9, abs=1e-15)
    joined = mse(model.g_s.fdsm_s(*model.g_a.fdsm_d(X)), X)
    assert rows["FDSM-S"].share == pytest.approx(joined)
    assert rows["FDSM-S"].linear == pytest.approx(joined)
    change = 1e-5 * (y_hat - scaled)
    slope = (model.g_s(scaled + change) - model.g_s(scaled - change)) / 2e-5
    linear = slope.square().mean().item()
    assert rows["rounding"].linear == pytest.approx(linear, rel=1e-4)  # a kink may lie near


def test_a_linear_decoder_is_predicted_exactly():
    torch.manual_seed(0)
    linear = AINN.from_preset("tiny", cfrm=False, pdm="none", fdsm=False, **SMALL)
    budget = error_budget(linear.double().requires_grad_(False).eval(), X, 4.0)
    assert budget.linear_total == pytest.approx(budget.distortion, rel=1e-9)
    assert budget.cross != 0
    assert max(abs(row.remainder) for row in budget.rows) < 1e-12 * budget.distortion


def replaced(model):
    """What brute force needs of every row: h_k, v_k, and what step k makes of v_{k-1}."""
    y, scaled, y_hat = latents(model, X)
    g_s, reference = model.g_s, (y,)
    yield g_s, (scaled,), (y_hat,)
    yield g_s, (y,), (scaled,)
    entering = {"fdsm_s": (X,)}  # the encoder's own maps behind each step of the decoder
    for decoder_step, stop in (("cfrm", "squeeze"), ("inverse_level4", "level4"),
                               ("pdm4", "level4"), ("inverse_level3", "level3"),
                               ("pdm3", "level3"), ("inverse_level2", "level2"),
                               ("pdm2", "level2"), ("inverse_level1", "level1")):
        entering[decoder_step] = model.g_a.run((X,), stop=stop)
    for name, following in zip(g_s.names, g_s.names[1:], strict=False):
        made, reference = g_s.run(reference, name, following), entering[name]
        yield lambda *maps, start=following: g_s.run(maps, start)[0], reference, made
    yield lambda x_hat: x_hat, (X,), g_s.run(reference, "fdsm_s")


def test_the_remainders_are_what_the_linear_total_lacks(model, budget):
    remainders = {row.name: row.remainder for row in budget.rows}
    missing = budget.distortion - budget.linear_total
    assert sum(remainders.values()) == pytest.approx(missing, rel=1e-9)
    assert abs(missing) > 1e-4 * budget.distortion  # or it would not be a test
    assert abs(remainders["FDSM-S"]) < 1e-15 < abs(remainders["rounding"])
    slopes, changes = [], []
    for decode, reference, made in replaced(model):  # central differences
        plus, minus = ([v + h * (m - v) for v, m in zip(reference, made, strict=True)]
                       for h in (1e-5, -1e-5))
        slopes.append((decode(*plus) - decode(*minus)) / 2e-5)
        changes.append(decode(*made) - decode(*reference))
    linear, exact = sum(slopes), sum(changes)
    assert exact.square().mean().item() == pytest.approx(budget.distortion)
    assert budget.linear_total == pytest.approx(linear.square().mean().item(), rel=1e-7)
    rounding = ((changes[0] - slopes[0]) * (exact + linear)).mean().item()
    assert remainders["rounding"] == pytest.approx(rounding, rel=1e-3)  # a kink may lie near


def test_rho_takes_the_best_gain(model, budget):
    _, _, y_hat = latents(model, X)
    arrived = model.g_s.run((y_hat,), stop="pdm4")
    left = model.g_s.run(arrived, start="pdm4", stop="inverse_level3")
    true = model.g_a.run((X,), stop="level4")
    before, after, v = (torch.cat(maps, dim=1) for maps in (arrived, left, true))

    def removed(inverse_gain):
        return 1 - ((inverse_gain * after - v).norm() / (before - v).norm()).item()

    best = max(removed(inverse_gain) for inverse_gain in torch.linspace(-2, 2, 2001))
    found, gain = rho(v, before, after)
    assert found == removed(1 / gain) == pytest.approx(best, abs=1e-5)
    of_pdms = {row.name: row.rho for row in budget.rows if row.rho is not None}
    assert list(of_pdms) == ["PDM 4", "PDM 3", "PDM 2"]
    assert of_pdms["PDM 4"] == pytest.approx(found)


def test_the_budget_of_a_network_with_a_middle_scale():
    torch.manual_seed(1)
    extended = shaken(AINN.from_preset("tiny", ms_cfrm=True, **SMALL), 0.05)
    extended = extended.double().requires_grad_(False).eval()
    budget = error_budget(extended, X, 4.0)
    _, _, y_hat = latents(extended, X)
    measured = mse(extended.g_s(y_hat), X)
    assert sum(row.share for row in budget.rows) == pytest.approx(measured, rel=1e-9)
    rows = {row.name: row for row in budget.rows}
    assert rows["MS-CFRM"].linear > 0
    assert abs(rows["inverse level 4"].share) < 1e-12 * measured


# -- mistakes of the user --------------------------------------------------------------------------

Y = randn(1, 3, 2, 2)


@pytest.mark.parametrize("call, message", [
    (lambda: Jacobian(up, torch.arange(3)), "floating-point"),
    (lambda: Jacobian(lambda y: [y], Y), "one tensor"),
    (lambda: Jacobian(lambda y: Y, Y), "depends on y"),
    (lambda: Jacobian(up, Y).jvp(Y[:, :2]), "expected the shape"),
    (lambda: Jacobian(up, Y).vjp(Y), "expected the shape"),
    (lambda: predicted_distortion(up, Y, 1.0, probes=1), "2 probes"),
    (lambda: column_norms(torch.tanh, torch.zeros(3)), "channel dimension"),
    (lambda: predicted_distortion(up, Y, -1.0), "step"),
    (lambda: predicted_distortion(up, Y, math.nan), "step"),
    (lambda: predicted_distortion(up, Y, torch.ones(4)), "step"),
    (lambda: predicted_distortion(up, Y, 1.0, x=Y), "expected the shape"),
    (lambda: conv_norm(torch.zeros(2, 2, 2, 2)), "odd"),
    (lambda: lipschitz_bound(torch.nn.Conv2d(1, 1, 1), 1.0), "Conv2d"),
    (lambda: lipschitz_bound(Squeeze(), 0.0), "box"),
])
def test_mistakes_are_answered_with_a_sentence(call, message):
    with pytest.raises(AINNError, match=message):
        call()


def test_the_budget_takes_one_image(model):
    with pytest.raises(AINNError, match="one image"):
        error_budget(model, X.expand(2, -1, -1, -1), 4.0)
