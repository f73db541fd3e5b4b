"""CFRM, the channel feature recovery module (the paper's CFRM figure), and its optional middle-scale form."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualDenseBlock(nn.Module):
    r"""Recovers the channels that the squeeze averaged away, from the squeezed latent itself.

    Each of ``layers`` convolutions 3x3 + ReLU of width ``growth`` sees the block's input and all outputs before it (the
    split-concatenation that mirrors the channel squeeze); one 1x1 convolution without activation fuses them all:

    .. math:: \hat u = \mathrm{fuse}(\hat y, d_1, \dots, d_n) + \mathrm{skip}(\hat y)

    At the authors' size: M = 192, growth M, 768/M - 1 = 3 layers, out 768.

    Shapes: (B, channels, H, W) -> (B, out, H, W). Without ``skip`` (MS-CFRM) the fused part alone is returned and starts
    at zero.
    """

    def __init__(self, channels: int, out: int, growth: int, layers: int, skip: bool = True):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(channels + i * growth, growth, 3, padding=1) for i in range(layers))
        self.fuse = nn.Conv2d(channels + layers * growth, out, 1)
        self.skip = nn.Conv2d(channels, out, 1) if skip else None
        if not skip:
            nn.init.zeros_(self.fuse.weight)
            nn.init.zeros_(self.fuse.bias)

    def forward(self, y: Tensor) -> Tensor:
        v = y
        for conv in self.layers:
            v = torch.cat([v, F.relu(conv(v))], dim=1)
        return self.fuse(v) if self.skip is None else self.fuse(v) + self.skip(y)


class CFRM(nn.Module):
    r"""Two residual dense blocks, one for each branch: :math:`\hat y \mapsto (\hat u_L, \hat u_H)`.

    Shapes: (B, M, H, W) -> two tensors (B, 768, H, W).
    """

    def __init__(self, M: int, growth: int, layers: int):
        super().__init__()
        self.low = ResidualDenseBlock(M, 768, growth, layers)
        self.high = ResidualDenseBlock(M, 768, growth, layers)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.low(y), self.high(y)


class MSCFRM(nn.Module):
    """Recovery at a middle scale. The paper names it and does not publish its layout: this one is our reading.

    After the inverse of level 4, each branch v gets ``v + block(concat(v, y'))``, y' the latent brought to this scale by a
    pixel shuffle; the block starts at zero.

    Shapes: two tensors (B, 192, H, W) and y' (B, M/4, H, W) -> two tensors (B, 192, H, W).
    """

    def __init__(self, M: int, growth: int, layers: int):
        super().__init__()
        self.low = ResidualDenseBlock(192 + M // 4, 192, growth, layers, skip=False)
        self.high = ResidualDenseBlock(192 + M // 4, 192, growth, layers, skip=False)

    def forward(self, low: Tensor, high: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return low + self.low(torch.cat([low, y], dim=1)), high + self.high(torch.cat([high, y], dim=1))
