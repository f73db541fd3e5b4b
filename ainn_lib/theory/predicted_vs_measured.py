"""The theory's predictions beside measurements, for networks that are invertible or not.

Distortions are mean squared errors per value of x.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network import coder
from ..network.cfrm import Concat, Halves
from ..network.fdsm import Copy, Mean
from ..network.model import AINN
from .jacobian import (
    Jacobian,
    Step,
    Synthesis,
    column_norms,
    mean_square,
    per_channel,
    predicted_distortion,
    random_signs,
)


def core(model: AINN) -> AINN:
    """A copy without FDSM, PDM, CFRM and squeeze: ``g_a`` is F, y is u with 1536 channels."""
    bare, offset = copy.deepcopy(model), model.config.input_offset
    bare.g_a.fdsm_d, bare.g_a.squeeze = Copy(offset), Concat()
    bare.g_s.cfrm, bare.g_s.fdsm_s = Halves(), Mean(offset)
    for name in {"ms_cfrm", "pdm4", "pdm3", "pdm2"}.intersection(bare.g_s.names):
        delattr(bare.g_s, name)
    return bare


def step_sizes(model: AINN, quality: float | None = None) -> Tensor:
    """The trained step of each channel of u, (1536,): g' of the channel of y that averages it."""
    _, inverse_gain, _ = model.gains(quality)
    return inverse_gain.flatten().repeat(1536 // inverse_gain.numel())


@dataclass(frozen=True)
class NoiseCheck:
    """The distortion ‖g(y + n) − g(y)‖²/d_x by an error n of the latent, predicted and measured."""

    correlation: float  #: ρ of the errors of the two branches, in steps
    variance: float  #: of the errors, over Δ²/12
    independent: float  #: predicted for independent uniform noise of steps Δ
    correlated: float  #: predicted with each channel's measured variance, and ρ
    measured: float


@torch.no_grad()
def check_noise(g: Synthesis, y: Tensor, n: Tensor, step: Step, probes: int = 8) -> NoiseCheck:
    """Adds n, drawn at random or made by rounding, to y.

    Args:
        y, n: (1, 2C, h, w), two branches of C channels.
        step: Δ, see `per_channel`.
    """
    low, high = (n / per_channel(step, y)).chunk(2, dim=1)
    rho = ((low * high).sum() / (low.norm() * high.norm())).clamp(-1, 1).item()
    J = Jacobian(g, y)
    return NoiseCheck(
        correlation=rho,
        variance=6 * (mean_square(low) + mean_square(high)),
        independent=predicted_distortion(g, y, step, probes).linear,
        correlated=correlated_distortion(J, n.square().mean((0, 2, 3)), rho, probes),
        measured=mean_square(g(y + n) - J.value),
    )


def correlated_distortion(J: Jacobian, variance: Tensor, rho: float, probes: int = 8) -> float:
    r"""tr(J Σ Jᵀ)/d_x for noise whose two branches (halves of the channels) have correlation ρ.

    ``variance`` is s², (2C,). White noise v becomes :math:`n_L = s_L v_L` and
    :math:`n_H = s_H(\rho v_L + \sqrt{1-\rho^2}\,v_H)`.
    """
    deviation = variance.sqrt()[:, None, None]
    total = 0.0
    for v in random_signs(J.y, probes):
        low, high = v.chunk(2, dim=1)
        high = rho * low + math.sqrt(1 - rho**2) * high
        total += mean_square(J.jvp(deviation * torch.cat([low, high], dim=1)))
    return total / probes


@dataclass(frozen=True)
class DecoderCheck:
    r"""The distortion of the whole decoder, where :math:`\hat x - x = r_0 + Jn + r`.

    ``predicted`` + variance + dependence + cross + remainder = measured. r₀ is g(y) − x, and n is
    the error of rounding.
    """

    measured: float
    zero: float  #: D₀ = ‖r₀‖²/d_x
    linear: float  #: tr(J Σ Jᵀ)/d_x for independent uniform noise of the decoder's steps
    variance: float  #: the change when each channel's noise has the variance of its errors
    dependence: float  #: the rest up to ‖Jn‖²/d_x: the errors depend on each other
    cross: float  #: 2⟨r₀, Jn⟩/d_x: the errors depend on the picture
    remainder: float  #: the rest: J changes along the errors
    midpoint: float  #: ‖r₀ + J(y + n/2) n‖²/d_x: the prediction with the true n, J taken half-way
    rounding: float  #: variance of n over that of uniform noise

    @property
    def predicted(self) -> float:
        """D₀ + linear term."""
        return self.zero + self.linear

    @property
    def off(self) -> float:
        """Relative error of `predicted`."""
        return self.predicted / self.measured - 1


@torch.no_grad()
def whole_decoder(model: AINN, x: Tensor, quality: float | None = None,
                  probes: int = 16) -> DecoderCheck:
    """Decodes the latent that a file holds; the prediction starts from y g g', without rounding.

    Shapes: x (1, 3, H, W).
    """
    y = model.g_a(x)
    gain, inverse_gain, _ = model.gains(quality)
    start = y * gain * inverse_gain
    n = coder.encode_latent(model, y, quality).y_hat.to(y) - start
    J = Jacobian(model.g_s, start)
    r0, pushed = J.value - x, J.jvp(n)
    half_way = Jacobian(model.g_s, start + n / 2).jvp(n)
    norms = column_norms(model.g_s, start, probes) / x.numel()
    uniform, real = inverse_gain.flatten() ** 2 / 12, n.square().mean((0, 2, 3))
    linear, with_variance = (uniform * norms).sum().item(), (real * norms).sum().item()
    measured = mean_square(model.g_s(start + n) - x)
    return DecoderCheck(
        measured,
        zero=mean_square(r0),
        linear=linear,
        variance=with_variance - linear,
        dependence=mean_square(pushed) - with_variance,
        cross=2 * (r0 * pushed).mean().item(),
        remainder=measured - mean_square(r0 + pushed),
        midpoint=mean_square(r0 + half_way),
        rounding=(real / uniform).mean().item(),
    )
