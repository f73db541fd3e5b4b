"""An encoder that takes its time: it refines the latent of one image before coding it.

g_a is trained for all images and quantizes by rounding. For one image there are better symbols:
those that minimize R + λD of this very file. The decoder does not change.
"""

import math

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import AINNError
from ..network.entropy_model import lagrangian
from ..network.model import AINN
from ..network.tiles import Step, windows

STEPS = (0, 30, 100, 300)  #: of gradient descent, for effort 0 to 3
HOTTEST, COLDEST = 0.5, 0.1  #: temperature at the first and at the last step
LEARNING_RATE = 0.02  #: of Adam, in quantization steps
CONTEXT_EVERY = 10  #: steps between two passes of the sequential context
WHOLE = 1600  #: latent positions, of 16x16 pixels each, that are refined in one piece
TILE, MARGIN = 24, 4  #: positions along a side of a tile, and around it, of a larger latent


def check_effort(effort: int) -> None:
    """Raises AINNError unless the effort is 0, 1, 2 or 3."""
    if type(effort) is not int or not 0 <= effort < len(STEPS):
        raise AINNError(f"effort must be 0, 1, 2 or 3, got {effort!r}")


def temperatures_of(effort: int) -> list[float]:
    """The temperature at each step: it falls geometrically from `HOTTEST` to `COLDEST`."""
    steps = STEPS[effort]
    return [HOTTEST * (COLDEST / HOTTEST) ** (step / steps) for step in range(steps)]


def trade_off(model: AINN, quality: float | None) -> float:
    """λ at a quality; of a fixed-rate network, the middle of its range."""
    lambdas = model.config.lambdas
    if quality is None:
        return math.sqrt(lambdas[0] * lambdas[1])
    return lagrangian(torch.tensor(quality, dtype=torch.float32), lambdas).item()


def refine(model: AINN, x: Tensor, y: Tensor, quality: float | None,
           temperatures: list[float]) -> Tensor:
    r"""A latent near y whose file costs less :math:`R + \lambda\,255^2\,\mathrm{MSE}`.

    Large latents are refined in overlapping tiles. The same arguments give the same latent on one
    machine.

    Args:
        x: the image, (1, 3, 16h, 16w) in [0, 1].
        y: g_a(x), (1, M, h, w).
        temperatures: one for each step of gradient descent.
    """
    height, width = y.shape[2:]
    side = max(height, width) if height * width <= WHOLE else TILE
    frame = Step()
    frame.receptive_radius = MARGIN
    tiles = [(rows, columns) for rows in windows(height, side, frame)
             for columns in windows(width, side, frame)]
    result = y.clone()
    noise, total = torch.Generator().manual_seed(0), len(tiles) * len(temperatures)
    with tqdm(total=total, desc="refining", leave=False, disable=None) as bar:
        for (top, bottom, y0, y1), (left, right, x0, x1) in tiles:
            part = _refine_tile(model, x[:, :, 16 * y0:16 * y1, 16 * x0:16 * x1],
                                y[:, :, y0:y1, x0:x1], quality, temperatures, noise, bar)
            result[:, :, top:bottom, left:right] = (
                part[:, :, top - y0:bottom - y0, left - x0:right - x0])
    return result


def _refine_tile(model: AINN, x: Tensor, y: Tensor, quality: float | None,
                 temperatures: list[float], noise: torch.Generator, bar: tqdm) -> Tensor:
    r"""Stochastic Gumbel annealing (Yang, Bamler and Mandt 2020).

    Each value of y - μ is rounded down or up at random, the nearer one more often. A temperature τ
    makes the choice soft at first and hard at last. Gradients of rate and distortion flow through
    the soft choice to y.
    """
    gain, inverse_gain, bias = model.gains(quality)
    weight = trade_off(model, quality) * 255**2
    y = (y * gain).detach().requires_grad_(True)
    optimizer = torch.optim.Adam([y], LEARNING_RATE)
    means = None
    for step, temperature in enumerate(temperatures):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _decay(step / len(temperatures))
        with torch.no_grad():
            hyper, means = _means(model, y, bias, None if step % CONTEXT_EVERY == 0 else means)
        with torch.enable_grad():
            chosen = means + _soft_round(y - means, temperature, noise)
            scales, mu = model.gaussian_parameters(hyper, model.context_prediction(chosen), bias)
            bpp = _bits(model, chosen, scales, mu) / (x.shape[2] * x.shape[3])
            mse = (model.g_s(chosen * inverse_gain) - x).square().mean()
            (y.grad,) = torch.autograd.grad(bpp + weight * mse, y)
        optimizer.step()
        bar.update()
    return y.detach() / gain


def _decay(progress: float) -> float:
    """Factor on the learning rate: 1, and a cosine over the last 30 %."""
    return 0.5 + 0.5 * math.cos(math.pi * max(0.0, (progress - 0.7) / 0.3))


def _means(model: AINN, y: Tensor, bias: Tensor,
           before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output of the hyper-synthesis, and the means μ that a decoder of y has.

    They come from the sequential pass, which is slow; with the means of the step ``before``, from
    one parallel pass over what these means give.
    """
    z = model.h_a(y)
    medians = model.entropy_bottleneck.quantiles[:, 0, 1].reshape(1, -1, 1, 1)
    hyper = model.h_s(torch.round(z - medians) + medians)[:, :, :y.shape[2], :y.shape[3]]
    if before is None:
        seen = model.sequential(y, hyper, bias)
    else:
        seen = torch.round(y - before) + before
    return hyper, model.gaussian_parameters(hyper, model.context_prediction(seen), bias)[1]


def _soft_round(value: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    r"""Floor or ceiling, softly: :math:`\lfloor v\rfloor + p`, p from a Gumbel softmax.

    The logits of floor and ceiling are :math:`-\mathrm{artanh}(f)/\tau` and
    :math:`-\mathrm{artanh}(1-f)/\tau`, with f the fraction of v.
    """
    floor = torch.floor(value.detach())
    fraction = (value - floor).clamp(1e-5, 1 - 1e-5)
    logits = (torch.atanh(fraction) - torch.atanh(1 - fraction)) / temperature
    # the difference of two Gumbel variables is logistic
    uniform = torch.rand(value.shape, generator=generator, dtype=torch.float32).to(value)
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    return floor + torch.sigmoid((logits + torch.logit(uniform)) / temperature)


def _bits(model: AINN, y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
    gaussian = model.gaussian_conditional
    likelihoods = gaussian.likelihood_lower_bound(gaussian._likelihood(y, scales, means))
    return -torch.log2(likelihoods).sum()
