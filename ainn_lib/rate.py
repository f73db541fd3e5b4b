"""One network, every rate: per-channel gains that depend on a continuous quality from 1 (smallest file) to 8 (best)."""

import torch
from torch import Tensor, nn

from .errors import AINNError

QUALITIES = (1.0, 8.0)
NODES = 8
GRID = 256  # qualities lie on multiples of 1/256, so that a file can name its own exactly


def snap(quality: float) -> float:
    """The quality that a file can hold nearest to ``quality``.

    Raises:
        AINNError: when it is no number from 1 to 8.

    >>> snap(4.5), snap(1)
    (4.5, 1.0)
    """
    try:
        value = float(quality)
    except (TypeError, ValueError):
        raise AINNError(f"quality must be a number from 1 to 8, got {quality!r}") from None
    if not QUALITIES[0] <= value <= QUALITIES[1]:
        raise AINNError(f"quality must be a number from 1 (smallest file) to 8 (best), got {quality!r}")
    return round(value * GRID) / GRID


class RateControl(nn.Module):
    r"""Gain before quantization, its counterpart after it, and a bias for the entropy parameters, each a table with one
    row for every whole quality and linear interpolation between rows:

    .. math:: y_q = y \odot g(q), \qquad \hat y = \hat y_q \odot g'(q), \qquad
              (\sigma, \mu) \mathrel{+}= \beta(q).

    g' starts as 1/g but is trained by itself (a decoder that knows its noise shrinks). Rows are kept as a fixed base
    times a learned factor near 1, so that one learning rate fits all of them. Interpolation multiplies numbers of few
    bits in float64 and is exact: encoder and decoder agree to the last bit on any machine.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("base", torch.ones(NODES))
        self.register_buffer("inverse_base", torch.ones(NODES))
        self.gain_factor = nn.Parameter(torch.ones(NODES, channels))
        self.inverse_factor = nn.Parameter(torch.ones(NODES, channels))
        self.bias = nn.Parameter(torch.zeros(NODES, 2 * channels))

    @torch.no_grad()
    def set_steps(self, steps: list[float], gain: float) -> None:
        """Start at the quantization steps (one for each whole quality) of a linear codec whose latents grow by ``gain``."""
        self.base.copy_(torch.tensor([gain / step for step in steps]))
        self.inverse_base.copy_(torch.tensor([step / gain for step in steps]))

    @torch.no_grad()
    def move(self, old: tuple[float, float], new: tuple[float, float]) -> None:
        r"""Keep what was learned while the range of λ changes: each row's steps change by :math:`\sqrt{\lambda_{old}/\lambda_{new}}`."""
        nodes = torch.arange(1, NODES + 1, dtype=torch.float32)
        finer = (lagrangian(nodes, new) / lagrangian(nodes, old)).sqrt()
        self.base.mul_(finer)
        self.inverse_base.div_(finer)
        self.bias.mul_(finer[:, None])

    def forward(self, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """quality (B,) in [1, 8] -> gain (B, C, 1, 1), inverse gain (B, C, 1, 1), bias (B, 2C, 1, 1)."""
        tables = (self.base.double()[:, None] * self.gain_factor, self.inverse_base.double()[:, None] * self.inverse_factor,
                  self.bias.double())
        nodes = torch.arange(1, NODES + 1, device=quality.device, dtype=torch.float64)
        weights = (1 - (quality[:, None].double() - nodes).abs()).clamp_min(0)  # (B, NODES)
        dtype = self.bias.dtype
        return tuple((weights[:, :, None] * table).sum(1)[:, :, None, None].to(dtype) for table in tables)


def lagrangian(quality: Tensor, lambdas: tuple[float, float]) -> Tensor:
    r"""λ(q), geometric between the λ of quality 1 and that of quality 8.

    >>> lagrangian(torch.tensor([1.0, 8.0]), (0.002, 0.128)).tolist() == [0.0020000000949949026, 0.12800000607967377]
    True
    """
    low, high = lambdas
    return low * (high / low) ** ((quality - QUALITIES[0]) / (QUALITIES[1] - QUALITIES[0]))
