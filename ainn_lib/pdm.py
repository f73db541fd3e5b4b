"""PDM, the progressive denoising module of the decoder: one per branch after the inverse of levels 4, 3 and 2."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("unet", "residual", "dense")
STRENGTH = 0.2


class DoubleConv(nn.Sequential):
    """(3x3 conv -> [batch norm] -> ReLU) twice; in evaluation mode the batch norms are folded into the convolutions.

    Shapes: (B, in, H, W) -> (B, out, H, W).
    """

    def __init__(self, channels_in: int, middle: int, channels_out: int, norm: bool):
        steps = []
        for a, b in ((channels_in, middle), (middle, channels_out)):
            steps += [nn.Conv2d(a, b, 3, padding=1, bias=not norm), *([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]
        super().__init__(*steps)

    def forward(self, v: Tensor) -> Tensor:
        if self.training or len(self) == 4:
            return super().forward(v)
        for conv, norm in ((self[0], self[1]), (self[3], self[4])):
            gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            shift = norm.bias - norm.running_mean * gain
            v = F.relu(F.conv2d(v, conv.weight * gain[:, None, None, None], shift, padding=1))
        return v


class UNet(nn.Module):
    """The structure-based denoiser: ``widths = (inc, down_1, ...)``, one pooling for each width after the first.

    Going up, each `DoubleConv` sees concat(skip, upsampled), has half its input as middle width, and gives half the
    skip's width. Its last 1x1 convolution belongs to the ones that `AINN` may start at zero.

    Shapes: (B, C, H, W) -> the same; H and W at least 2 ** poolings.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], norm: bool = True, align_corners: bool = True):
        super().__init__()
        self.align_corners = align_corners
        self.inc = DoubleConv(channels, widths[0], widths[0], norm)
        self.down = nn.ModuleList(DoubleConv(a, b, b, norm) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList()
        below = widths[-1]
        for skip in reversed(widths[:-1]):
            self.up.append(DoubleConv(skip + below, (skip + below) // 2, skip // 2, norm))
            below = skip // 2
        self.last = nn.Conv2d(below, channels, 1)
        poolings = len(widths) - 1
        self.align = 2**poolings
        # two 3x3 convolutions at every scale, going down and coming up, and one sample of every bilinear upsampling
        self.reach = None if align_corners else 2 + sum(2 * 2**k + (1 * 2**k + 2 * 2 ** (k - 1)) for k in range(1, poolings + 1))

    def forward(self, v: Tensor) -> Tensor:
        skips = [self.inc(v)]
        for block in self.down:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        v = skips.pop()
        for block in self.up:
            skip = skips.pop()
            v = F.interpolate(v, scale_factor=2, mode="bilinear", align_corners=self.align_corners)
            gap_h, gap_w = skip.shape[2] - v.shape[2], skip.shape[3] - v.shape[3]
            if gap_h or gap_w:  # an odd map loses a row or column in the pooling
                v = F.pad(v, (gap_w // 2, gap_w - gap_w // 2, gap_h // 2, gap_h - gap_h // 2))
            v = block(torch.cat([skip, v], dim=1))
        return self.last(v)


class ResidualBlock(nn.Module):
    """``v + conv3(ReLU(conv3(ReLU(v))))``, the last convolution zero at the start: the authors' release holds it, unused."""

    reach = 2

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.first = nn.Conv2d(width, inner, 3, padding=1)
        self.last = nn.Conv2d(inner, width, 3, padding=1)

    def forward(self, v: Tensor) -> Tensor:
        return v + self.last(F.relu(self.first(F.relu(v))))

    @staticmethod
    def count(width: int, inner: int) -> int:
        """Parameters of a block of these widths."""
        return 18 * width * inner + inner + width


class DenseBlock(nn.Module):
    """``v`` + five 3x3 convolutions, each on all maps before it, LeakyReLU 0.2 between them, the last one zero at the start.

    The authors' release holds the convolutions, unused; that they add to v is our reading.
    """

    reach = 5

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width + i * inner, inner, 3, padding=1) for i in range(4))
        self.last = nn.Conv2d(width + 4 * inner, width, 3, padding=1)

    def forward(self, v: Tensor) -> Tensor:
        maps = v
        for conv in self.layers:
            maps = torch.cat([maps, F.leaky_relu(conv(maps), 0.2)], dim=1)
        return v + self.last(maps)

    @staticmethod
    def count(width: int, inner: int) -> int:
        """Parameters of a block of these widths."""
        return 9 * (inner * (4 * width + 6 * inner) + width * (width + 4 * inner)) + 4 * inner + width


BLOCKS = {"residual": ResidualBlock, "dense": DenseBlock}


class Chain(nn.Module):
    """The residual and the dense PDM, our reading of what the paper draws: 3x3 conv -> blocks -> 3x3 conv.

    Shapes: (B, C, H, W) -> the same.
    """

    def __init__(self, block: type, channels: int, width: int, inner: int, blocks: int = 2):
        super().__init__()
        self.reach, self.align = 2 + blocks * block.reach, 1
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(block(width, inner) for _ in range(blocks)))
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        for conv in (*(b.last for b in self.blocks), self.last):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, v: Tensor) -> Tensor:
        return self.last(self.blocks(self.first(v)))

    @staticmethod
    def count(block: type, channels: int, width: int, inner: int, blocks: int = 2) -> int:
        """Parameters of a chain of these widths."""
        return 18 * channels * width + width + channels + blocks * block.count(width, inner)


def build_net(kind: str, channels: int, widths: tuple[int, ...], norm: bool = True, align_corners: bool = True) -> nn.Module:
    """The net of one PDM. A chain gets the widths (two numbers close to each other) that match the U-Net's parameters."""
    if kind == "unet":
        return UNet(channels, widths, norm, align_corners)
    return Chain(BLOCKS[kind], channels, *_matched_widths(BLOCKS[kind], channels, widths, norm))


@functools.cache
def _matched_widths(block: type, channels: int, widths: tuple[int, ...], norm: bool) -> tuple[int, int]:
    with torch.device("meta"):  # sizes only: nothing is allocated or drawn
        target = count_parameters(UNet(channels, widths, norm))
    best, width = (float("inf"), 1, 1), 1
    while Chain.count(block, channels, width, max(1, width // 2)) < 2 * target:
        for inner in range(max(1, width // 2), 2 * width + 1):
            off = abs(Chain.count(block, channels, width, inner) / target - 1) + 0.01 * abs(math.log(inner / width))
            best = min(best, (off, width, inner))
        width += 1
    return best[1:]


def count_parameters(module: nn.Module) -> int:
    """Number of values in the parameters, fixed ones included."""
    return sum(p.numel() for p in module.parameters())


class PDM(nn.Module):
    r"""Denoises one branch at one level: :math:`v \leftarrow v + s\,U(v)`.

    With ``skip`` (the authors') :math:`U(v) = v + \mathrm{net}(v)`, which is 1.2 v while the net is zero; without, as in
    the small presets, :math:`U(v) = \mathrm{net}(v)`, which starts as the identity. s = 0.2.

    Shapes: (B, C, H, W) -> the same. ``strength`` scales net(v) alone: 1 is the trained module.
    """

    def __init__(self, kind: str, channels: int, widths: tuple[int, ...], skip: bool = True, norm: bool = True,
                 align_corners: bool = True):
        super().__init__()
        self.skip = skip
        self.net = build_net(kind, channels, widths, norm, align_corners)

    def forward(self, v: Tensor, strength: float = 1.0) -> Tensor:
        correction = strength * self.net(v)
        return v + STRENGTH * (v + correction if self.skip else correction)
