"""The entropy model: hyperprior, causal context, gains for every rate, and quantization.

It is CompressAI's `Cheng2020Anchor` without its transforms, and the names of its parts are the
same. A Gaussian with mean and scale predicts each value of the latent from the hyper-latent and
from the values that a decoder has seen before.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import conv3x3, subpel_conv3x3
from compressai.models import CompressionModel
from torch import Tensor, nn

from ..errors import AINNError
from .config import DEFAULT_QUALITY, AINNConfig

QUALITIES = (1.0, 8.0)
NODES = 8
GRID = 256  # qualities lie on multiples of 1/256, so that a file can name its own exactly
#: rows and columns of the 12 taps of the causal 5x5 mask, in raster order
CAUSAL_TAPS = [(tap // 5, tap % 5) for tap in range(12)]


# -- rate ------------------------------------------------------------------------------------------


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
        raise AINNError(
            f"quality must be a number from 1 (smallest file) to 8 (best), got {quality!r}")
    return round(value * GRID) / GRID


def lagrangian(quality: Tensor, lambdas: tuple[float, float]) -> Tensor:
    r"""λ(q), geometric between the λ of quality 1 and that of quality 8.

    >>> [round(v, 4) for v in lagrangian(torch.tensor([1.0, 4.5, 8.0]), (0.002, 0.128)).tolist()]
    [0.002, 0.016, 0.128]
    """
    low, high = lambdas
    return low * (high / low) ** ((quality - QUALITIES[0]) / (QUALITIES[1] - QUALITIES[0]))


class RateControl(nn.Module):
    r"""One network for every rate: gains that depend on a continuous quality from 1 to 8.

    A gain before quantization, its counterpart after it, and a bias for the entropy parameters:

    .. math:: y_q = y \odot g(q), \qquad \hat y = \hat y_q \odot g'(q), \qquad
              (\sigma, \mu) \mathrel{+}= \beta(q).

    Each is a table with one row for every whole quality and linear interpolation between rows.
    g' starts as 1/g and is trained on its own (a decoder that knows its noise shrinks). Rows are
    kept as a fixed base times a learned factor near 1, so that one learning rate fits all of them.
    Interpolation multiplies numbers of few bits in float64 and is exact: encoder and decoder agree
    to the last bit on any machine.
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
        """Start at quantization steps, one for each whole quality, of latents grown by ``gain``."""
        self.base.copy_(torch.tensor([gain / step for step in steps]))
        self.inverse_base.copy_(torch.tensor([step / gain for step in steps]))

    @torch.no_grad()
    def rescale_steps(self, old: tuple[float, float], new: tuple[float, float]) -> None:
        r"""Keep what was learned while the range of λ changes from ``old`` to ``new``.

        Each row's steps change by :math:`\sqrt{\lambda_{old}/\lambda_{new}}`.
        """
        nodes = torch.arange(1, NODES + 1, dtype=torch.float32)
        finer = (lagrangian(nodes, new) / lagrangian(nodes, old)).sqrt()
        self.base.mul_(finer)
        self.inverse_base.div_(finer)
        self.bias.mul_(finer[:, None])

    def forward(self, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """quality (B,) in [1, 8] -> gain and inverse gain (B, C, 1, 1), bias (B, 2C, 1, 1)."""
        gain = self.base.double()[:, None] * self.gain_factor
        inverse = self.inverse_base.double()[:, None] * self.inverse_factor
        nodes = torch.arange(1, NODES + 1, device=quality.device, dtype=torch.float64)
        weights = (1 - (quality[:, None].double() - nodes).abs()).clamp_min(0)  # (B, NODES)

        def interpolated(table: Tensor) -> Tensor:
            row = (weights[:, :, None] * table).sum(1)
            return row[:, :, None, None].to(self.bias.dtype)

        return interpolated(gain), interpolated(inverse), interpolated(self.bias.double())


# -- causal context --------------------------------------------------------------------------------


class CausalConv(nn.Module):
    """The context model: a 5x5 convolution that sees the 12 positions coded before.

    CompressAI's `MaskedConv2d` holds all 25 taps and sets the others to zero in every forward
    pass. Here only those in the past exist.

    Shapes: (B, in, H, W) -> (B, out, H, W); ``taps`` is (out, in, 12), in raster order.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        conv = nn.Conv2d(channels_in, channels_out, 5)
        self.taps = nn.Parameter(conv.weight.detach().flatten(2)[:, :, : len(CAUSAL_TAPS)].clone())
        self.bias = nn.Parameter(conv.bias.detach().clone())

    def dense(self) -> Tensor:
        """The kernel with zeros at the other taps, (out, in, 5, 5)."""
        return F.pad(self.taps, (0, 25 - len(CAUSAL_TAPS))).unflatten(2, (5, 5))

    def rows(self) -> Tensor:
        """The kernel as a matrix (out, 12 in) for neighbours one after the other."""
        return self.taps.transpose(1, 2).flatten(1)

    def forward(self, y: Tensor) -> Tensor:
        return F.conv2d(y, self.dense(), self.bias, padding=2)


def wavefront(height: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The steps of the wavefront: rows i and columns j of the positions with j + 3i = 0, 1, ...

    With the 5x5 causal mask no position of a step needs another one. Their number is
    width + 3 (height - 1); less where the width is under 3, since empty steps are left out.

    >>> [list(zip(i.tolist(), j.tolist())) for i, j in wavefront(2, 4)][3:5]
    [[(0, 3), (1, 0)], [(1, 1)]]
    """
    for step in range(width + 3 * (height - 1)):
        first = max(0, -(-(step - width + 1) // 3))
        i = np.arange(first, min(height - 1, step // 3) + 1)
        if len(i):
            yield i, step - 3 * i


@torch.no_grad()
def sequential_latent(y: Tensor, hyper: Tensor, bias: Tensor, context: CausalConv,
                      parameters: nn.Sequential) -> Tensor:
    r"""What a decoder sees: :math:`\hat y = \mathrm{round}(y - \mu) + \mu`, μ from the past.

    In training the context has to be this latent. One pass over round(y) or over y + noise gives
    means that no decoder has: a network learns to rely on them, and its files become longer than
    the estimate.

    Args:
        y: (B, M, h, w), with its gain.
        hyper: (B, hyper_out, h, w), from the hyper-synthesis.
        bias: added to scales and means, (B or 1, 2M, 1, 1) or (1,).
        context: the causal convolution.
        parameters: the 1x1 convolutions from (hyper, context) to scales and means.
    """
    batch, channels, height, width = y.shape
    rows, hyper = (v.float().flatten(2).transpose(1, 2) for v in (y, hyper))  # (B, hw, channels)
    bias = bias.reshape(len(bias), 1, -1)
    stride = width + 4
    past = rows.new_zeros(batch, (height + 2) * stride, channels)  # y_hat, framed by zeros
    taps = context.rows()
    for here, framed, neighbours in _places(height, width, y.device):
        seen = past[:, neighbours].reshape(batch, len(here), -1)
        v = torch.cat([hyper[:, here], F.linear(seen, taps, context.bias)], dim=2)
        for layer in parameters:
            is_conv = isinstance(layer, nn.Conv2d)
            v = F.linear(v, layer.weight.flatten(1), layer.bias) if is_conv else layer(v)
        means = (v + bias).chunk(2, dim=2)[1]
        past[:, framed] = torch.round(rows[:, here] - means) + means
    past = past.reshape(batch, height + 2, stride, channels)
    return past[:, 2:, 2:-2].permute(0, 3, 1, 2)


@cache  # for ever: a CUDA graph reads these tensors where they are
def _places(height: int, width: int, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each step of the wavefront: its n positions in a map and in the frame of zeros (2 above,
    2 at each side), and in the frame the 12 n places of their neighbours."""
    stride, places = width + 4, []
    taps = np.array([dy * stride + dx for dy, dx in CAUSAL_TAPS])
    for i, j in wavefront(height, width):
        corner = i * stride + j
        three = i * width + j, corner + (2 * stride + 2), (corner[:, None] + taps).ravel()
        places.append(tuple(torch.from_numpy(place).to(device) for place in three))
    return places


# -- the whole model -------------------------------------------------------------------------------


class EntropyModel(CompressionModel):
    """Everything between y and the bits: what `AINN` has beside its two transforms.

    Shapes: y is (B, M, h, w), z (B, N, ceil(h/4), ceil(w/4)).
    """

    #: what is used where no quality is given; None: `DEFAULT_QUALITY`
    quality: float | None = None

    def __init__(self, config: AINNConfig):
        super().__init__()
        self.config = c = config
        M, N, wide = c.latent_channels, c.N, c.N * 3 // 2
        self.h_a = _sequence(conv3x3(M, N), conv3x3(N, N), conv3x3(N, N, stride=2),
                             conv3x3(N, N), conv3x3(N, N, stride=2))
        self.h_s = _sequence(conv3x3(N, N), subpel_conv3x3(N, N, 2), conv3x3(N, wide),
                             subpel_conv3x3(wide, wide, 2), conv3x3(wide, c.hyper_out))
        self.context_prediction = CausalConv(M, c.context_out)
        first, second = c.parameter_widths
        self.entropy_parameters = _sequence(
            nn.Conv2d(c.hyper_out + c.context_out, first, 1), nn.Conv2d(first, second, 1),
            nn.Conv2d(second, 2 * M, 1))
        with torch.device("cpu"):  # a network of shapes alone still has these small constants
            self.entropy_bottleneck = EntropyBottleneck(N)
            self.gaussian_conditional = GaussianConditional(None)
        if c.variable_rate:
            self.rate_control = RateControl(M)

    def quality_of(self, quality: float | None) -> float | None:
        """The quality in steps of 1/256; None is the default's, or a fixed-rate network's own.

        Raises:
            AINNError: for a quality on a fixed-rate network, or out of range.
        """
        if not self.config.variable_rate:
            if quality is not None:
                raise AINNError("this network has one fixed rate; it takes no quality")
            return None
        chosen = self.quality if quality is None else quality
        return snap(DEFAULT_QUALITY if chosen is None else chosen)

    def gains(self, quality: float | Tensor | None, batch: int = 1) -> tuple[Tensor, ...]:
        """Gain, inverse gain and entropy bias at a quality; (1, 1, 0) on a fixed-rate network.

        Args:
            quality: a number, or a tensor () or (B,), from 1 to 8; None: the default.

        Raises:
            AINNError: for a quality on a fixed-rate network, or out of range.
        """
        like = self.entropy_bottleneck.quantiles
        if not isinstance(quality, Tensor) or not self.config.variable_rate:
            quality = self.quality_of(quality)
        if quality is None:
            return like.new_ones(1), like.new_ones(1), like.new_zeros(1)
        quality = torch.as_tensor(quality, dtype=like.dtype, device=like.device)
        inside = (quality >= QUALITIES[0]) & (quality <= QUALITIES[1])
        # on a GPU the check would wait for the device in every step of training
        if not quality.is_cuda and not inside.all():
            raise AINNError(f"quality must lie from 1 to 8, got {quality.tolist()}")
        return self.rate_control(quality.expand(batch))

    def gaussian_parameters(self, hyper: Tensor, context: Tensor,
                            bias: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and mean (each B, M, h, w) from hyper-synthesis and context outputs."""
        both = self.entropy_parameters(torch.cat([hyper, context], dim=1)) + bias
        return both.chunk(2, dim=1)

    def quantize(self, y: Tensor, bias: Tensor, noise: tuple[Tensor, Tensor] | None = None
                 ) -> tuple[Tensor, dict[str, Tensor]]:
        """Latent with its gain -> quantized latent, and likelihoods of y and z.

        With quantization "ste" the quantized latent is the one that a file holds, in training too.
        Without training the likelihoods are those of the file's symbols.

        Args:
            noise: in training, uniform noise in ±1/2 for y and z; drawn afresh where None.
        """
        device = "cpu" if y.is_meta else y.device.type
        with torch.autocast(device, enabled=False):  # bfloat16 cannot tell the symbols apart
            y = y.to(self.context_prediction.taps.dtype)
            z = self.h_a(y)
            noise_y, noise_z = noise or (torch.rand_like(y) - 0.5, torch.rand_like(z) - 0.5)
            z_hat, z_likelihoods = self._hyper_latent(z, noise_z)
            hyper = self.h_s(z_hat)[:, :, : y.shape[2], : y.shape[3]]  # longer: h no multiple of 4
            noisy = y + noise_y if self.training else None
            if self.config.quantization == "noise":
                y_hat = torch.round(y) if noisy is None else noisy
                coded = y if noisy is None else noisy
            else:
                seen = self.sequential(y, hyper, bias)
                y_hat = y + (seen - y).detach()  # straight-through
                coded = y_hat if noisy is None else noisy
            scales, means = self.gaussian_parameters(hyper, self.context_prediction(y_hat), bias)
            likelihoods = self._gaussian_likelihood(coded, scales, means)
            return y_hat, {"y": likelihoods, "z": z_likelihoods}

    def sequential(self, y: Tensor, hyper: Tensor, bias: Tensor) -> Tensor:
        """`sequential_latent` of this network; a `Trainer` has it recorded for a GPU."""
        return sequential_latent(y, hyper, bias, self.context_prediction, self.entropy_parameters)

    def _gaussian_likelihood(self, y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        gaussian = self.gaussian_conditional
        if not self.training:
            return gaussian(y, scales, means, training=False)[1]
        # the noise is in y already: `forward` would add it again
        return gaussian.likelihood_lower_bound(gaussian._likelihood(y, scales, means))

    def _hyper_latent(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        bottleneck = self.entropy_bottleneck
        if not self.training:
            return bottleneck(z, training=False)
        b, channels, h, w = z.shape
        values = (z + noise).transpose(0, 1).reshape(channels, 1, -1)
        likelihood = bottleneck.likelihood_lower_bound(bottleneck._likelihood(values)[0])
        likelihood = likelihood.reshape(channels, b, h, w).transpose(0, 1)
        if self.config.quantization == "noise":
            return z + noise, likelihood
        medians = bottleneck._get_medians().detach()[None]
        rounded = torch.round(z - medians) + medians
        return z + (rounded - z).detach(), likelihood  # straight-through


def _sequence(*convs: nn.Module) -> nn.Sequential:
    """The convolutions with LeakyReLU between them, numbered as in CompressAI."""
    steps = [step for conv in convs for step in (conv, nn.LeakyReLU())]
    return nn.Sequential(*steps[:-1])
