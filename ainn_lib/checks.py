r"""The theory's predictions beside what a network does: under uniform noise, under real rounding, and as a whole decoder.

`ainn_lib.theory` predicts; here the same is measured, and what lies between them is taken apart into parts that add up.
All of it takes any network, invertible or not. Distortions are mean squared errors per value of x.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import entropy, theory
from .model import AINN
from .theory import Jacobian, Synthesis


@dataclass(frozen=True)
class NoiseCheck:
    """Uniform noise of step Δ added to y."""

    delta: float  #: in units of the trained step
    predicted: float  #: tr(J Σ Jᵀ)/d_x
    measured: float  #: ‖g(y + n) − g(y)‖²/d_x, mean over draws
    standard_error: float  #: of ``measured``

    @property
    def off(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class RoundingCheck:
    """y rounded to multiples of Δ."""

    delta: float  #: in units of the trained step
    correlation: float  #: ρ of the two branches' errors, in steps
    variance: float  #: of the error, over Δ²/12
    independent: float  #: predicted for independent uniform noise
    correlated: float  #: predicted with the measured Σ: each channel's variance, and ρ
    measured: float  #: ‖g(y + n) − g(y)‖²/d_x


@dataclass(frozen=True)
class DecoderCheck:
    r"""The distortion of the whole decoder as a sum: ``predicted`` + variance + dependence + cross + remainder = measured.

    With r₀ = g(y) − x and the error n that rounding made, :math:`\hat x - x = r_0 + Jn + r`.
    """

    quality: float | None
    measured: float
    zero: float  #: D₀ = ‖r₀‖²/d_x
    linear: float  #: tr(J Σ Jᵀ)/d_x for independent uniform noise of the decoder's steps
    variance: float  #: what changes when each channel's noise has the variance that its rounding errors have
    dependence: float  #: the rest up to ‖Jn‖²/d_x: the errors depend on each other
    cross: float  #: 2⟨r₀, Jn⟩/d_x: the errors depend on the picture
    remainder: float  #: what the linear prediction with the true n still misses
    midpoint: float  #: ‖r₀ + J(y + n/2) n‖²/d_x, the whole prediction with J taken half-way
    rounding: float  #: variance of n over that of uniform noise

    @property
    def predicted(self) -> float:
        """D₀ + linear term."""
        return self.zero + self.linear

    @property
    def off(self) -> float:
        """Relative error of `predicted`."""
        return self.predicted / self.measured - 1


def steps(model: AINN, quality: float | None = None) -> Tensor:
    """The trained step of every channel of u, (1536,): that of the channel of y into which it is averaged (g', `rate`)."""
    back = model.gains(quality)[1].flatten()
    return back.repeat(1536 // len(back))


@torch.no_grad()
def uniform_noise(g: Synthesis, y: Tensor, step: float | Tensor, deltas: Iterable[float], probes: int = 16, draws: int = 8,
                  seed: int = 0) -> list[NoiseCheck]:
    """Uniform noise of Δ times the steps ``step`` (as `theory.predicted_distortion` takes them): predicted and measured."""
    generator, widths = torch.Generator().manual_seed(seed), theory.per_channel(step, y)
    linear, clean, checks = theory.predicted_distortion(g, y, step, probes, seed=seed).linear, g(y), []
    for delta in deltas:
        noise = (torch.rand(y.shape, generator=generator, dtype=torch.float64).to(y) - 0.5 for _ in range(draws))
        errors = torch.stack([(g(y + delta * widths * n) - clean).square().mean() for n in noise])
        checks.append(NoiseCheck(delta, delta**2 * linear, errors.mean().item(), errors.std().item() / math.sqrt(draws)))
    return checks


@torch.no_grad()
def real_rounding(g: Synthesis, y: Tensor, step: float | Tensor, deltas: Iterable[float],
                  probes: int = 6) -> list[RoundingCheck]:
    """y, (1, 2C, h, w) of two branches, rounded to multiples of Δ times the steps: predicted and measured."""
    checks, clean = [], g(y)
    for delta in deltas:
        width = delta * theory.per_channel(step, y)
        error = torch.round(y / width) * width - y
        low, high = (error / width).chunk(2, dim=1)
        rho = ((low * high).sum() / (low.norm() * high.norm())).clamp(-1, 1).item()
        root = theory.correlated_branches(error.square().mean((0, 2, 3), keepdim=True).sqrt(), rho)
        independent, correlated = (theory.predicted_distortion(g, y, noise, probes).linear for noise in (width, root))
        checks.append(RoundingCheck(delta, rho, 12 * (error / width).square().mean().item(), independent, correlated,
                                    (g(y + error) - clean).square().mean().item()))
    return checks


@torch.no_grad()
def whole_decoder(model: AINN, x: Tensor, quality: float | None = None, probes: int = 16) -> DecoderCheck:
    """Predicted and measured distortion of the latent that a file holds, x (1, 3, H, W); departs from y g g' (`rate`)."""
    y, (gain, back, _) = model.g_a(x), model.gains(quality)
    kept = y * gain * back
    n = entropy.encode_latent(model, y, quality).y_hat.to(y) - kept
    J, size = Jacobian(model.g_s, kept), x.numel()
    r0, pushed = J.value - x, J.jvp(n)
    half_way = Jacobian(model.g_s, kept + n / 2).jvp(n)
    norms = theory.column_norms(model.g_s, kept, probes).value
    uniform = (back.flatten() ** 2 / 12).expand(len(norms))
    linear, real = ((variance * norms).sum().item() / size for variance in (uniform, n.square().mean((0, 2, 3))))
    measured, first_order = ((v - x).square().mean().item() for v in (model.g_s(kept + n), J.value + pushed))
    zero, alone = r0.square().mean().item(), pushed.square().mean().item()
    return DecoderCheck(quality, measured, zero, linear, real - linear, alone - real, first_order - zero - alone,
                        measured - first_order, (r0 + half_way).square().mean().item(),
                        (n.square().mean((0, 2, 3)) / uniform).mean().item())
