"""FDSM, the frequency decomposition and synthesis module (the paper's FDSM figure).

Images enter with values in [0, 1]. Both halves know the network's ``offset``, which is subtracted
at the entrance and added at the exit, so that the maps between them lie around zero.
"""

import torch
import torch.nn.functional as F
from compressai.layers import ResidualBlock
from torch import Tensor, nn

from .tiles import Step

POOLS = (3, 5, 7)


def average_pool(x: Tensor, k: int) -> Tensor:
    """Mean over k x k pixels, stride 1, same size, zero padding counted."""
    # with three channels the channels_last pooling of PyTorch is many times slower,
    # and two passes (columns, then rows) are quicker than one
    x = x.contiguous()
    x = F.avg_pool2d(x, (k, 1), stride=1, padding=(k // 2, 0))
    return F.avg_pool2d(x, (1, k), stride=1, padding=(0, k // 2))


class FrequencyPath(nn.Module):
    """concat of three maps -> 1x1 conv 9 -> 3 -> LeakyReLU 0.2 -> residual block.

    Shapes: (B, 9, H, W) -> (B, 3, H, W).
    """

    def __init__(self):
        super().__init__()
        self.conv1x1 = nn.Conv2d(9, 3, 1)
        self.activation = nn.LeakyReLU(0.2)
        self.block = ResidualBlock(3, 3)

    def forward(self, maps: Tensor) -> Tensor:
        return self.block(self.activation(self.conv1x1(maps)))


class FDSMDecomposition(Step):
    r"""FDSM-D: splits an image into its low- and its high-frequency branch.

    .. math:: x_L = x + P_L(\mathrm{pool}_3 x, \mathrm{pool}_5 x, \mathrm{pool}_7 x), \qquad
              x_H = x + P_H(x - \mathrm{pool}_3 x, x - \mathrm{pool}_5 x, x - \mathrm{pool}_7 x)

    with average pools of stride 1 (zero padding counted in the average). An injection from x to
    (x_L, x_H), not onto.

    Shapes: (B, 3, H, W) -> two tensors (B, 3, H, W); values about as those of x.
    """

    receptive_radius = 5  # pool 7 and two 3x3 convolutions

    def __init__(self, offset: float = 0.0):
        super().__init__()
        self.offset = offset
        self.low = FrequencyPath()
        self.high = FrequencyPath()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x - self.offset
        pools = [average_pool(x, k) for k in POOLS]
        low = self.low(torch.cat(pools, dim=1))
        high = self.high(torch.cat([x - pool for pool in pools], dim=1))
        return x + low, x + high


class Copy(Step):
    """Stands in for FDSM-D: x_L = x_H = x."""

    def __init__(self, offset: float = 0.0):
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x - self.offset, x - self.offset


class MaskNet(nn.Module):
    """The attention of FDSM-S: an encoder-decoder of three poolings that looks at both branches.

    Shapes: (B, 6, H, W) -> (B, 1, H, W), values in (0, 1); H and W multiples of 8.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128)):
        super().__init__()
        w1, w2, w3 = widths
        self.down = nn.ModuleList([_conv(6, w1, 5), _conv(w1, w2, 5), _conv(w2, w3, 3)])
        self.bottleneck = _conv(w3, w3, 3)
        self.up = nn.ModuleList(
            [_conv(w3 + w3, w3, 3), _conv(w3 + w2, w2, 5), _conv(w2 + w1, w1, 5)])
        self.out = nn.Conv2d(w1, 1, 1)

    def forward(self, branches: Tensor) -> Tensor:
        skips, v = [], branches
        for conv in self.down:
            skips.append(F.relu(conv(v)))
            v = F.max_pool2d(skips[-1], 2)
        v = F.relu(self.bottleneck(v))
        for conv, skip in zip(self.up, reversed(skips), strict=True):
            v = F.interpolate(v, scale_factor=2, mode="bilinear", align_corners=False)
            v = F.relu(conv(torch.cat([v, skip], dim=1)))
        return torch.sigmoid(self.out(v))


class FDSMSynthesis(Step):
    r"""FDSM-S: joins the branches by attention, :math:`\hat x = m\,\hat x_L + (1 - m)\,\hat x_H`.

    Shapes: two tensors (B, 3, H, W) -> (B, 3, H, W), not clamped; H and W multiples of 8.
    ``mask`` returns m, (B, 1, H, W) in (0, 1).
    """

    # pixels: going down, convolutions 5, 5, 3, 3 at scales 1, 2, 4, 8;
    # coming up, 1 of each bilinear upsampling and convolutions 3, 5, 5
    receptive_radius = (2 + 4 + 4 + 8) + (8 + 4) + (4 + 4) + (2 + 2)
    align = 8

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128), offset: float = 0.0):
        super().__init__()
        self.offset = offset
        self.masknet = MaskNet(widths)

    def mask(self, low: Tensor, high: Tensor) -> Tensor:
        return self.masknet(torch.cat([low, high], dim=1))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        m = self.mask(low, high)
        return m * low + (1 - m) * high + self.offset


class Mean(Step):
    """Stands in for FDSM-S: the mean of both branches."""

    def __init__(self, offset: float = 0.0):
        super().__init__()
        self.offset = offset

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return (low + high) / 2 + self.offset


def _conv(channels_in: int, channels_out: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
