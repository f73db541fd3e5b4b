"""PDM, the progressive denoising module of the decoder, after the inverse of levels 4, 3 and 2."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tiles import Step

STRENGTH = 0.2


def double_conv(channels_in: int, middle: int, channels_out: int, norm: bool) -> nn.Sequential:
    """(3x3 conv -> [batch norm] -> ReLU) twice."""
    steps = []
    for a, b in ((channels_in, middle), (middle, channels_out)):
        steps.append(nn.Conv2d(a, b, 3, padding=1, bias=not norm))
        if norm:
            steps.append(nn.BatchNorm2d(b))
        steps.append(nn.ReLU())
    return nn.Sequential(*steps)


class UNet(nn.Module):
    """The structure-based denoiser: ``widths = (inc, down_1, ...)``, one pooling a width after inc.

    Going up, each `double_conv` sees concat(skip, upsampled), has half its input as middle width,
    and gives half the skip's width. The last 1x1 convolution is the one that `AINN` may start at
    zero. ``align_corners`` belongs to the bilinear upsampling: with it (the authors') each value
    depends on the whole map.

    Shapes: (B, C, H, W) -> the same; H and W multiples of 2 ** poolings.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], norm: bool = True,
                 align_corners: bool = True):
        super().__init__()
        self.align_corners = align_corners
        self.inc = double_conv(channels, widths[0], widths[0], norm)
        self.down = nn.ModuleList(
            double_conv(a, b, b, norm) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList()
        below = widths[-1]
        for skip in reversed(widths[:-1]):
            self.up.append(double_conv(skip + below, (skip + below) // 2, skip // 2, norm))
            below = skip // 2
        self.last = nn.Conv2d(below, channels, 1)
        poolings = len(widths) - 1
        self.align = 2**poolings
        # two 3x3 convolutions at every scale 2^k, going down and coming up,
        # and one sample of the coarser map for every upsampling
        coarse = sum(2 * 2**k + 2**k + 2 * 2 ** (k - 1) for k in range(1, poolings + 1))
        self.receptive_radius = None if align_corners else 2 + coarse

    def forward(self, v: Tensor) -> Tensor:
        skips = [self.inc(v)]
        for block in self.down:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        v = skips.pop()
        for block in self.up:
            skip = skips.pop()
            v = F.interpolate(v, scale_factor=2, mode="bilinear", align_corners=self.align_corners)
            v = block(torch.cat([skip, v], dim=1))
        return self.last(v)


class ResidualBlock(nn.Module):
    """``v + conv3(ReLU(conv3(ReLU(v))))``, the last convolution zero at the start.

    The authors' release holds it, unused.
    """

    receptive_radius = 2

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.first = nn.Conv2d(width, inner, 3, padding=1)
        self.last = nn.Conv2d(inner, width, 3, padding=1)

    def forward(self, v: Tensor) -> Tensor:
        return v + self.last(F.relu(self.first(F.relu(v))))


class DenseBlock(nn.Module):
    """``v`` + five 3x3 convolutions, each on all maps before it, LeakyReLU 0.2 between them.

    The last one is zero at the start. The authors' release holds the convolutions, unused; that
    they add to v is our reading.
    """

    receptive_radius = 5

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(width + i * inner, inner, 3, padding=1) for i in range(4))
        self.last = nn.Conv2d(width + 4 * inner, width, 3, padding=1)

    def forward(self, v: Tensor) -> Tensor:
        maps = v
        for conv in self.layers:
            maps = torch.cat([maps, F.leaky_relu(conv(maps), 0.2)], dim=1)
        return v + self.last(maps)


BLOCKS = {"residual": ResidualBlock, "dense": DenseBlock}
KINDS = ("unet", *BLOCKS)


class Chain(nn.Module):
    """The residual and the dense PDM: 3x3 conv -> two blocks -> 3x3 conv, at full resolution.

    This is our reading of what the paper draws. ``widths`` = (of the maps between the blocks,
    inside a block).

    Shapes: (B, C, H, W) -> the same.
    """

    align = 1

    def __init__(self, block: type, channels: int, widths: tuple[int, int], blocks: int = 2):
        super().__init__()
        width, inner = widths
        self.receptive_radius = 2 + blocks * block.receptive_radius
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(block(width, inner) for _ in range(blocks)))
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        for conv in (*(b.last for b in self.blocks), self.last):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, v: Tensor) -> Tensor:
        return self.last(self.blocks(self.first(v)))


def count_parameters(module: nn.Module) -> int:
    """Number of values in the parameters, fixed ones included."""
    return sum(p.numel() for p in module.parameters())


class PDM(nn.Module):
    r"""Denoises one branch at one level: :math:`v \leftarrow v + 0.2\,U(v)`.

    With ``skip`` (the authors') :math:`U(v) = v + \mathrm{net}(v)`, which is 1.2 v while the net
    is zero. Without, as in the small presets, :math:`U(v) = \mathrm{net}(v)`: it starts as the
    identity.

    Shapes: (B, C, H, W) -> the same. ``strength`` scales net(v) alone: 1 is the trained module.
    """

    def __init__(self, kind: str, channels: int, widths: tuple[int, ...], skip: bool = True,
                 norm: bool = True, align_corners: bool = True):
        super().__init__()
        self.skip = skip
        if kind == "unet":
            self.net = UNet(channels, widths, norm, align_corners)
        else:
            self.net = Chain(BLOCKS[kind], channels, widths)

    def forward(self, v: Tensor, strength: float = 1.0) -> Tensor:
        correction = strength * self.net(v)
        return v + STRENGTH * (v + correction if self.skip else correction)


class Denoise(Step):
    """The PDMs of both branches at one level. Shapes: two tensors (B, C, H, W) -> the same."""

    def __init__(self, low: PDM, high: PDM):
        super().__init__()
        self.low, self.high = low, high
        self.receptive_radius, self.align = low.net.receptive_radius, low.net.align

    def forward(self, low: Tensor, high: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        return self.low(low, strength), self.high(high, strength)
