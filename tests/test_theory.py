import dataclasses
import math

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from compressai.layers import GDN
from compressai.models import FactorizedPrior
from conftest import shaken
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from ainn_lib import AINN, AINNError, entropy, lipschitz, theory
from ainn_lib.invertible import Coupling, InvertibleConv1x1, Level, Squeeze
from ainn_lib.stages import run_stages
from ainn_lib.theory import Jacobian
from ainn_lib.widgets import at_delta

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
    return F.interpolate(F.max_pool2d(F.relu(y), 2), scale_factor=2, mode="bilinear", align_corners=True)


def squares(y):
    return y.square() + y.flip(1)


NORM = GDN(3, inverse=True).double()  # an autograd.Function that torch.func refuses
TOYS = {"up": (up, randn(1, 3, 3, 2)), "down": (down, randn(1, 3, 4, 4)), "pooled": (pooled, randn(1, 2, 4, 4)),
        "GDN": (NORM, randn(1, 3, 3, 3)), "two images": (squares, randn(2, 3, 2, 2)),
        "CompressAI's": (FactorizedPrior(4, 3).g_s.double(), randn(1, 3, 1, 2))}


def dense(g, y):
    return jacobian(g, y).reshape(-1, y.numel()).detach()


@pytest.fixture(params=TOYS)
def toy(request):
    g, y = TOYS[request.param]
    return g, y, dense(g, y)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return shaken(AINN.from_preset("tiny", **SMALL), 0.05).double().requires_grad_(False).eval()


def mse(a, b):
    return (a - b).square().mean().item()


# -- Jacobians ---------------------------------------------------------------------------------------------------------

def test_products_equal_the_dense_jacobians(toy):
    g, y, J = toy
    lazy, v = Jacobian(g, y), randn(*y.shape, seed=5)
    w = randn(*lazy.value.shape, seed=6)
    torch.testing.assert_close(lazy.value, g(y).detach())
    torch.testing.assert_close(lazy.jvp(v).flatten(), J @ v.flatten())
    torch.testing.assert_close(lazy.vjp(w).flatten(), J.T @ w.flatten())
    torch.testing.assert_close(lazy.matrix(), J)


def test_torch_func_refuses_gdn_and_ordinary_autograd_stands_in():
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.jvp(*(NORM, (randn(1, 3, 2, 2),), (randn(1, 3, 2, 2),)))


def test_it_works_where_gradients_are_off_and_leaves_nothing_behind(toy):
    g, y, J = toy
    with torch.no_grad():
        lazy = Jacobian(g, y)
        pushed = lazy.jvp(torch.ones_like(y))
    torch.testing.assert_close(pushed.flatten(), J.sum(1))
    assert not (pushed.requires_grad or lazy.value.requires_grad or y.requires_grad)


def test_straight_through_rounding_has_the_derivative_of_training():
    J = Jacobian(lambda y: y + (torch.round(y) - y).detach(), randn(1, 4))
    assert J.jvp(torch.ones(1, 4, dtype=torch.float64)).tolist() == [[1.0] * 4]


def test_the_whole_decoder(model):
    y = model.g_a(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    lazy, v = Jacobian(model.g_s, y), randn(*y.shape)
    w = randn(1, 3, 16, 16)
    difference = (model.g_s(y + 1e-6 * v) - model.g_s(y - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(lazy.jvp(v), difference, rtol=1e-5, atol=1e-6)  # central differences: 1e-10 / 1e-6
    assert (lazy.jvp(v) * w).sum().item() == pytest.approx((v * lazy.vjp(w)).sum().item(), rel=1e-11)


def test_frobenius_norm(toy):
    g, y, J = toy
    few, many = (theory.frobenius(g, y, probes=n) for n in (50, 800))
    exact = J.square().sum().item()
    for estimate in (few, many):  # 4.5 standard errors: one in 100,000
        assert abs(estimate.value - exact) <= 4.5 * estimate.standard_error + 1e-9 * exact
    assert many.standard_error < 0.06 * exact
    assert many.standard_error == pytest.approx(few.standard_error / 4, rel=0.5, abs=1e-9 * exact)


def test_column_norms(toy):
    g, y, J = toy
    norms = theory.column_norms(g, y, probes=800)
    exact = J.square().sum(0).reshape(y.shape).transpose(0, 1).flatten(1).sum(1)
    assert norms.value.shape == (y.shape[1],)
    assert ((norms.value - exact).abs() <= 4.5 * norms.standard_error + 1e-9 * exact).all()
    assert (norms.standard_error < 0.1 * exact).all()


# -- singular values ---------------------------------------------------------------------------------------------------

def test_power_iteration(toy):
    g, y, J = toy
    found = theory.power_iteration(g, y, iterations=3000, tolerance=1e-13)
    assert found == pytest.approx(torch.linalg.svdvals(J)[0].item(), rel=1e-5)


def test_lanczos_is_exact_in_the_end_and_bounds_before(toy):
    g, y, J = toy
    exact = torch.linalg.svdvals(J)
    full = theory.singular_values(g, y, steps=1000)
    assert full.largest == pytest.approx(exact[0].item(), rel=1e-9)
    assert full.smallest == pytest.approx(exact[-1].item(), rel=1e-7, abs=1e-9)
    assert full.steps <= len(exact) and full.largest_residual < 1e-9
    early = theory.singular_values(g, y, steps=3)
    assert early.largest <= exact[0] * (1 + 1e-12) and early.smallest >= exact[-1] * (1 - 1e-12) - 1e-12
    for value, residual in ((early.largest, early.largest_residual), (early.smallest, early.smallest_residual)):
        assert (exact - value).abs().min() <= residual + 1e-9


def test_lanczos_finds_a_null_vector():
    found = theory.singular_values(lambda y: y * torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64), randn(1, 3))
    assert found.largest == pytest.approx(2) and found.smallest == pytest.approx(0, abs=1e-12)


# -- expected distortion -----------------------------------------------------------------------------------------------

def test_predicted_distortion_with_one_step_a_channel(toy):
    g, y, J = toy
    step = torch.tensor([0.5, 0.1, 0.9][: y.shape[1]], dtype=torch.float64)
    x = torch.zeros_like(g(y))
    deltas = step[None, :, None, None].expand(y.shape).flatten()
    exact = ((J * deltas).square().sum() / 12 / J.shape[0]).item()
    found = theory.predicted_distortion(g, y, step, probes=800, x=x)
    assert abs(found.linear - exact) <= 4.5 * found.standard_error + 1e-9 * exact and found.standard_error < 0.06 * exact
    assert found.zero == pytest.approx(g(y).square().mean().item()) and found.total == found.zero + found.linear
    assert theory.predicted_distortion(g, y, step, probes=4).zero is None


@pytest.mark.parametrize("rho", [1.0, 0.6, -0.8])
def test_predicted_distortion_with_correlated_branches(rho):
    y = randn(1, 4, 2, 2)
    deviation = torch.tensor([0.3, 0.1, 0.2, 0.4], dtype=torch.float64)[None, :, None, None]
    J = dense(lambda v: torch.tanh(F.conv2d(v, randn(5, 4, 1, 1, seed=8))), y)
    g = (lambda v: torch.tanh(F.conv2d(v, randn(5, 4, 1, 1, seed=8))))
    s = deviation.flatten()
    covariance = torch.diag(s**2)
    for a, b in ((0, 2), (1, 3)):
        covariance[a, b] = covariance[b, a] = rho * s[a] * s[b]
    exact = ((J @ torch.kron(covariance, torch.eye(4, dtype=torch.float64)) * J).sum() / J.shape[0]).item()
    found = theory.predicted_distortion(g, y, theory.correlated_branches(deviation, rho), probes=1500)
    assert abs(found.linear - exact) <= 4.5 * found.standard_error and found.standard_error < 0.04 * exact


def test_it_predicts_what_noise_does():
    y, step = randn(1, 3, 6, 6), 0.01
    generator = torch.Generator().manual_seed(1)
    draws = [mse(up(y + step * (torch.rand(y.shape, generator=generator, dtype=y.dtype) - 0.5)), up(y)) for _ in range(400)]
    assert theory.predicted_distortion(up, y, step, probes=200).total == pytest.approx(sum(draws) / 400, rel=0.03)


def test_the_bare_core_inverts_and_shares_its_weights(model):
    bare, x = theory.core(model), torch.rand(1, 3, 32, 32, dtype=torch.float64)
    u = bare.g_a(x)
    assert u.shape == (1, 1536, 2, 2) and mse(bare.g_s(u), x) < 1e-24
    assert bare.levels is model.levels and model.config.squeeze and model.config.fdsm


# -- Lipschitz bounds --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_conv_norm_is_never_below_and_tight(k, seed):
    weight = randn(3, 2, k, k, seed=seed)
    bound = lipschitz.conv_norm(weight)
    norms = [torch.linalg.matrix_norm(dense(lambda v: F.conv2d(v, weight, padding=k // 2), randn(1, 2, n, n)), ord=2).item()
             for n in (1, 4, 12)]
    assert max(norms) <= bound * (1 + 1e-12)
    fine = torch.linalg.matrix_norm(torch.fft.fft2(weight, s=(256, 256)).permute(2, 3, 0, 1), ord=2).max().item()
    assert fine <= bound * (1 + 1e-12) and bound <= 1.04 * fine  # 1/cos²(π/16) = 1.0396
    assert norms[0] <= norms[1] * (1 + 1e-12) <= norms[2] * (1 + 2e-12)
    assert norms[2] > 0.8 * bound  # 12 x 12 is not yet the infinite plane


def inverse_of(block, *shape):
    """block.inverse as a function of one vector, whatever its branches."""
    pair = block[-1].branches if isinstance(block, torch.nn.ModuleList) else block.branches

    def inverse(v):
        maps = v.chunk(pair, dim=1)
        for part in reversed(block) if isinstance(block, torch.nn.ModuleList) else [block]:
            maps = part.inverse(*maps)
            maps = maps if isinstance(maps, tuple) else (maps,)
        return torch.cat(maps, dim=1)

    return inverse, (1, pair * shape[0], *shape[1:])


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["conv1x1", "coupling", "level", "core"]), seed=st.integers(0, 10**6), shared=st.booleans(),
       kernel=st.sampled_from([1, 3]), clamp=st.sampled_from([0.3, 1.0, 2.0]), size=st.sampled_from([0.1, 0.5, 1.5]),
       box=st.sampled_from([0.1, 1.0, 4.0]))
def test_the_bound_is_never_below_the_measurement(kind, seed, shared, kernel, clamp, size, box):
    torch.manual_seed(seed)
    options = dict(clamp=clamp, shared=shared)
    block = {"conv1x1": lambda: InvertibleConv1x1(4), "coupling": lambda: Coupling(4, 5, kernel, **options),
             "level": lambda: Level(4, 2, 5, kernel, **options),
             "core": lambda: torch.nn.ModuleList(Level(c, 1, 5, kernel, **options) for c in (4, 16))}[kind]()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape) * size / math.sqrt(parameter[0].numel()))
        for part in block.modules():
            if isinstance(part, InvertibleConv1x1):
                part.weight += torch.eye(len(part.weight))
    block = block.double().requires_grad_(False)
    bound = theory.lipschitz_bound(block, box)
    inverse, shape = inverse_of(block, *((16, 1, 2) if kind == "core" else (4, 2, 2)))
    generator = torch.Generator().manual_seed(seed)
    points = [box * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) for _ in range(3)]
    points += [box * torch.sign(points[0])]  # a corner of the box
    for p, q in zip(points, points[1:] + points[:1], strict=True):
        assert torch.linalg.matrix_norm(dense(inverse, p), ord=2) <= bound.value * (1 + 1e-9)
        assert (inverse(p) - inverse(q)).norm() <= bound.value * (p - q).norm() * (1 + 1e-9)
        branches = inverse(p).chunk(1 if kind == "conv1x1" else 2, dim=1)
        assert all(v.abs().max() <= limit * (1 + 1e-9) for v, limit in zip(branches, bound.box, strict=False))
    for factor in bound.factors:
        if isinstance(factor, lipschitz.CouplingFactor):  # the form in the text is never the sharper one
            assert factor.value <= (1 + factor.translation) * factor.stretch + factor.box * factor.slope * factor.gate + 1e-9


def tight_level():
    """A level whose bound is nearly attained at the returned point (a', b'): every part of it stretches channel 0.

    A small clamp makes e^c almost 1; large shifts make the box almost attained; the gates' G is 0 at the point, where
    tanh is steepest; signs are such that all contributions add up.
    """
    level = Level(4, 1, 1, 1, clamp=0.01).double().requires_grad_(False)
    for parameter in level.parameters():
        parameter.zero_()
    level.conv1x1.weight.copy_(torch.diag(torch.tensor([1 / 3, 1.0, 1.0, 1.0])))
    coupling = level.couplings[0]
    b = 101.0  # of the point: b' − H₁(0) = 1 + 100
    for half, gate, offset, shift in ((coupling.from_a, 6.0, 0.0, -100.0), (coupling.from_b, 0.006, -0.006 * b, -1e5)):
        for net, slope, bias in ((half.G, gate, offset), (half.H, 3.0, shift)):
            net[0].weight[0, 0], net[2].weight[0, 0], net[4].weight[0, 0] = 1.0, 1.0, slope
            net[4].bias[0] = bias
    point = torch.zeros(1, 8, 1, 1, dtype=torch.float64)
    point[0, 0], point[0, 4] = 1e-9, 1.0  # a' just above the kink of LeakyReLU
    return level, point


def test_the_bound_fails_when_any_single_factor_is_halved():
    level, point = tight_level()
    bound = theory.lipschitz_bound(level, 1.0)
    measured = torch.linalg.matrix_norm(dense(inverse_of(level, 4, 1, 1)[0], point), ord=2).item()
    assert 0.9 * bound.value < measured <= bound.value
    halved = 0
    for i, factor in enumerate(bound.factors):
        for field in dataclasses.fields(factor):
            smaller = dataclasses.replace(factor, **{field.name: getattr(factor, field.name) / 2})
            wrong = dataclasses.replace(bound, factors=(*bound.factors[:i], smaller, *bound.factors[i + 1:]))
            assert wrong.value < measured, (i, field.name)
            halved += 1
    assert halved == 2 * 5 + 2


def test_the_squeeze_changes_no_length():
    assert theory.lipschitz_bound(Squeeze(), 2.0).value == 1
    assert torch.linalg.svdvals(dense(inverse_of(Squeeze(), 4, 2, 2)[0], randn(1, 4, 2, 2))).max().item() == pytest.approx(1)


# -- log-determinants --------------------------------------------------------------------------------------------------

BLOCKS = {
    "squeeze": (Squeeze(), (1, 3, 4, 4)),
    "conv1x1": (InvertibleConv1x1(6), (1, 6, 2, 3)),
    "coupling": (shaken(Coupling(4, 5, 3), 0.5), (1, 4, 3, 2)),
    "coupling, shared net, clamp 2": (shaken(Coupling(4, 5, 3, clamp=2.0, shared=True), 0.5), (1, 4, 3, 2)),
    "level": (shaken(Level(12, 2, 5, 3), 0.3), (1, 3, 4, 4)),
    "core": (torch.nn.ModuleList([shaken(Level(12, 1, 5, 3), 0.3), shaken(Level(48, 1, 5, 3), 0.3)]), (1, 3, 4, 4)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_log_determinant(name):
    block, shape = BLOCKS[name]
    block = block.double()
    for part in block.modules():
        if isinstance(part, InvertibleConv1x1):  # a rotation has log-determinant 0: no test
            part.weight.data *= 1.1
    pair = 1 if name in ("squeeze", "conv1x1") else 2

    def forward(v):
        maps = v.chunk(pair, dim=1)
        for part in block if name == "core" else [block]:
            maps = part(*maps)
            maps = maps if isinstance(maps, tuple) else (maps,)
        return torch.cat(maps, dim=1)

    images = [randn(1, pair * shape[1], *shape[2:], seed=s) for s in (1, 2)]
    exact = torch.stack([torch.linalg.slogdet(dense(forward, v))[1] for v in images])
    found = theory.log_determinant(block, *torch.cat(images).chunk(pair, dim=1))
    torch.testing.assert_close(found.detach(), exact, rtol=1e-9, atol=1e-9)
    assert name == "squeeze" or (exact.abs() > 0.1).all()


# -- the error budget --------------------------------------------------------------------------------------------------

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(scope="module")
def budget(model):
    return theory.error_budget(model, X, 4.0)


def test_the_budget_telescopes_to_the_measured_distortion(model, budget):
    y_hat = entropy.encode_latent(model, model.g_a(X), 4.0).y_hat
    measured = mse(model.g_s(y_hat), X)
    assert budget.distortion == pytest.approx(measured, rel=1e-9)
    assert sum(stage.hybrid for stage in budget.stages) == pytest.approx(measured, rel=1e-9)
    assert all(abs(s.hybrid) + s.linear < 1e-12 * measured for s in budget.stages if s.name.startswith("inverse"))
    assert [s.name for s in budget.stages][:3] == ["rounding", "gains", "CFRM"] and len(budget.stages) == 11


def test_the_rows_are_what_they_say(model, budget):
    rows = {stage.name: stage for stage in budget.stages}
    gain, inverse_gain, _ = model.gains(4.0)
    y = model.g_a(X)
    kept = y * gain * inverse_gain
    assert rows["rounding"].hybrid == pytest.approx(budget.distortion - mse(model.g_s(kept), X), rel=1e-9)
    assert rows["gains"].hybrid == pytest.approx(mse(model.g_s(kept), X) - mse(model.g_s(y), X), rel=1e-9, abs=1e-15)
    joined = mse(model.join(*model.split(X))[0], X)
    assert rows["FDSM-S"].hybrid == pytest.approx(joined) and rows["FDSM-S"].linear == pytest.approx(joined)
    n = entropy.encode_latent(model, y, 4.0).y_hat - kept
    h = 1e-5
    slope = (model.g_s(kept + h * n) - model.g_s(kept - h * n)) / (2 * h)
    assert rows["rounding"].linear == pytest.approx(slope.square().mean().item(), rel=1e-4)  # a kink may lie within h


def test_a_linear_decoder_is_predicted_exactly():
    torch.manual_seed(0)
    linear = AINN.from_preset("tiny", cfrm=False, pdm="none", fdsm=False, **SMALL).double().requires_grad_(False).eval()
    budget = theory.error_budget(linear, X, 4.0)
    assert budget.linear_total == pytest.approx(budget.distortion, rel=1e-9) and abs(budget.cross) > 0
    assert max(abs(stage.bend) for stage in budget.stages) < 1e-12 * budget.distortion


def test_the_bends_are_what_the_linear_total_lacks(model, budget):
    bends = {stage.name: stage.bend for stage in budget.stages}
    assert sum(bends.values()) == pytest.approx(budget.distortion - budget.linear_total, rel=1e-9)
    assert abs(sum(bends.values())) > 1e-4 * budget.distortion  # or it would not be a test
    assert abs(bends["FDSM-S"]) < 1e-15 < abs(bends["rounding"])  # behind FDSM-S nothing follows
    linear, y = 0, model.g_a(X)
    (gain, back, _), y_hat = model.gains(4.0), entropy.encode_latent(model, y, 4.0).y_hat
    kept, stages, level, true = y * gain * back, model.synthesis_stages(), 4, (y,)
    encoder = [model.split(X)]
    for block in model.levels:
        encoder.append(block(*encoder[-1]))
    steps = [((kept,), (y_hat,), stages), ((y,), (kept,), stages)]
    for i, stage in enumerate(stages):
        level -= stage.name.startswith("inverse")
        made, true = stage.run(*true), (X,) if i == len(stages) - 1 else encoder[level]
        steps.append((true, made, stages[i + 1:]))
    for start, end, rest in steps:  # brute force: central differences
        plus, minus = ([a + h * (b - a) for a, b in zip(start, end, strict=True)] for h in (1e-5, -1e-5))
        linear = linear + (run_stages(rest, plus)[0] - run_stages(rest, minus)[0]) / 2e-5
    assert budget.linear_total == pytest.approx(linear.square().mean().item(), rel=1e-7)
    both, (start, end, _) = linear + model.g_s(y_hat) - X, steps[0]
    exact = model.g_s(y_hat) - model.g_s(kept)
    slope = (model.g_s(kept + 1e-5 * (y_hat - kept)) - model.g_s(kept - 1e-5 * (y_hat - kept))) / 2e-5
    assert bends["rounding"] == pytest.approx(((exact - slope) * both).mean().item(), rel=1e-3)  # a kink may lie within 1e-5


def test_rho_takes_the_best_gain(model, budget):
    y_hat = entropy.encode_latent(model, model.g_a(X), 4.0).y_hat
    arrived, true = (y_hat,), (X,)
    stages = {s.name: s for s in model.synthesis_stages()}
    for name in ("CFRM", "inverse level 4"):
        arrived = stages[name].run(*arrived)
    for stage in model.analysis_stages()[:4]:
        true = stage.run(*true)
    before, after, v = (torch.cat(maps, dim=1) for maps in (arrived, stages["PDM 4"].run(*arrived), true))
    best = max(1 - ((g * after - v).norm() / (before - v).norm()).item() for g in torch.linspace(-2, 2, 4001))
    rho, = (s.rho for s in budget.stages if s.name == "PDM 4")
    assert rho == pytest.approx(best, abs=1e-5)
    assert [s.rho is None for s in budget.stages].count(False) == 3


def test_the_budget_of_a_network_with_a_middle_scale():
    torch.manual_seed(1)
    extended = shaken(AINN.from_preset("tiny", ms_cfrm=True, **SMALL), 0.05).double().requires_grad_(False).eval()
    budget = theory.error_budget(extended, X, 4.0)
    measured = mse(extended.g_s(entropy.encode_latent(extended, extended.g_a(X), 4.0).y_hat), X)
    assert sum(stage.hybrid for stage in budget.stages) == pytest.approx(measured, rel=1e-9)
    assert "MS-CFRM" in [stage.name for stage in budget.stages]


# -- mistakes of the user ----------------------------------------------------------------------------------------------

Y = randn(1, 3, 2, 2)


@pytest.mark.parametrize("call, message", [
    (lambda: Jacobian(up, torch.arange(3)), "floating-point"),
    (lambda: Jacobian(lambda y: [y], Y), "one tensor"),
    (lambda: Jacobian(up, Y).jvp(Y[:, :2]), "expected the shape"),
    (lambda: Jacobian(up, Y).vjp(Y), "expected the shape"),
    (lambda: Jacobian(lambda y: y, torch.zeros(20000)).matrix(), "too large"),
    (lambda: theory.frobenius(up, Y, probes=1), "2 probes"),
    (lambda: theory.column_norms(torch.tanh, torch.zeros(3)), "channel dimension"),
    (lambda: theory.singular_values(up, Y, steps=0), "steps"),
    (lambda: theory.predicted_distortion(up, Y, -1.0), "step"),
    (lambda: theory.predicted_distortion(up, Y, torch.ones(4)), "step"),
    (lambda: theory.predicted_distortion(up, Y, 1.0, x=Y), "expected the shape"),
    (lambda: theory.correlated_branches(Y, 1.5), "correlation"),
    (lambda: lipschitz.conv_norm(torch.zeros(2, 2, 2, 2)), "odd"),
    (lambda: theory.lipschitz_bound(torch.nn.Conv2d(1, 1, 1), 1.0), "Conv2d"),
    (lambda: theory.lipschitz_bound(Squeeze(), 0.0), "box"),
    (lambda: theory.log_determinant(torch.nn.Conv2d(1, 1, 1), Y), "Conv2d"),
])
def test_mistakes_are_answered_with_a_sentence(call, message):
    with pytest.raises(AINNError, match=message):
        call()


def test_the_budget_takes_one_image(model):
    with pytest.raises(AINNError, match="one image"):
        theory.error_budget(model, X.expand(2, -1, -1, -1), 4.0)


# -- the explorer ------------------------------------------------------------------------------------------------------

def test_the_delta_explorer_over_its_range():
    y = randn(1, 3, 4, 4)
    mix = randn(3, 3, 1, 1, seed=4)
    x = F.conv2d(y, mix) + 0.1
    for delta in (2.0**k for k in range(-5, 6)):
        figure, numbers = at_delta(lambda v: F.conv2d(v, mix), y, x, torch.tensor([0.1, 0.2, 0.3]), delta)
        assert numbers.zero == pytest.approx(0.01) and numbers.predicted > numbers.zero
        assert numbers.predicted == pytest.approx(numbers.measured, rel=0.7)  # 48 draws of noise
        assert f"{numbers.measured:.3e}" in str(numbers)
        plt.close(figure)
    with pytest.raises(AINNError, match="delta"):
        at_delta(up, y, x, 1.0, 100.0)
