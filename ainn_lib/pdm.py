"""PDM, the progressive denoising module of the decoder: one per branch after the inverse of levels 4, 3 and 2."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("unet", "residual", "dense")
STRENGTH = 0.2


class DoubleConv(nn.Sequential):
    """(3x3 conv -> [batch norm] -> ReLU) twice. Shapes: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, channels_in: int, middle: int, channels_out: int, norm: bool):
        steps = []
        for a, b in ((channels_in, middle), (middle, channels_out)):
            steps += [nn.Conv2d(a, b, 3, padding=1, bias=not norm), *([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]
        super().__init__(*steps)


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


class ResidualChain(nn.Module):
    """A chain of ``v + conv3(ReLU(conv3(ReLU(v))))`` blocks; returns what the chain adds to its input.

    The block is the one that the authors' release holds; the chain, and its inner width, are our reading.
    """

    def __init__(self, channels: int, width: int, blocks: int = 3):
        super().__init__()
        self.reach, self.align = 2 * blocks, 1
        self.first = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for _ in range(blocks))
        self.last = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1) for _ in range(blocks))

    def forward(self, v: Tensor) -> Tensor:
        start = v
        for first, last in zip(self.first, self.last, strict=True):
            v = v + last(F.relu(first(F.relu(v))))
        return v - start


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each on all maps before it, LeakyReLU 0.2 between them, the last one zero at the start."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels + i * growth, growth, 3, padding=1) for i in range(4))
        self.last = nn.Conv2d(channels + 4 * growth, channels, 3, padding=1)

    def forward(self, v: Tensor) -> Tensor:
        for conv in self.layers:
            v = torch.cat([v, F.leaky_relu(conv(v), 0.2)], dim=1)
        return self.last(v)


class DenseChain(nn.Module):
    """A chain of ``v + DenseBlock(v)``; returns what the chain adds to its input. The chain is our reading."""

    def __init__(self, channels: int, growth: int, blocks: int = 2):
        super().__init__()
        self.reach, self.align = 5 * blocks, 1
        self.blocks = nn.ModuleList(DenseBlock(channels, growth) for _ in range(blocks))

    def forward(self, v: Tensor) -> Tensor:
        start = v
        for block in self.blocks:
            v = v + block(v)
        return v - start


def build_net(kind: str, channels: int, widths: tuple[int, ...], norm: bool = True, align_corners: bool = True) -> nn.Module:
    """The net of one PDM. The residual and the dense kind get the width that comes nearest to the U-Net's parameters."""
    if kind == "unet":
        return UNet(channels, widths, norm, align_corners)
    chain = {"residual": ResidualChain, "dense": DenseChain}[kind]
    with torch.device("meta"):  # sizes only: nothing is allocated or drawn
        target = count_parameters(UNet(channels, widths, norm))
        high = 1
        while count_parameters(chain(channels, high)) < target:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if count_parameters(chain(channels, middle)) < target else (low, middle)
        width = min((max(low, 1), high), key=lambda w: abs(count_parameters(chain(channels, w)) - target))
    return chain(channels, width)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
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
