"""CFRM, the channel feature recovery module (the paper's CFRM figure), and the channel squeeze
that it recovers from."""

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from .tiles import Step

BRANCH_CHANNELS = 768  # of each branch behind level 4


class ChannelSqueeze(Step):
    """S: the mean over groups of M of the 1536 channels of both branches.

    Shapes: two tensors (B, 768, h, w) -> (B, M, h, w).
    """

    def __init__(self, M: int):
        super().__init__()
        self.M = M

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return reduce(torch.cat([low, high], dim=1), "b (g m) h w -> b m h w", "mean", m=self.M)


class Concat(Step):
    """Stands in for S: all 1536 channels are coded."""

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.cat([low, high], dim=1)


class ResidualDenseBlock(nn.Module):
    r"""Recovers the channels that the squeeze averaged away, from the squeezed latent itself.

    Each of ``layers`` convolutions 3x3 + ReLU of width ``growth`` sees the block's input and all
    outputs before it (the split-concatenation that mirrors the channel squeeze). One 1x1
    convolution without activation fuses them all:

    .. math:: \hat u = \mathrm{fuse}(\hat y, d_1, \dots, d_n) + \mathrm{skip}(\hat y)

    At the authors' size: M = 192, growth M, 768/M - 1 = 3 layers, out 768.

    Shapes: (B, channels, H, W) -> (B, out, H, W). Without ``skip`` (MS-CFRM) the fused part alone
    is returned and starts at zero.
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


class CFRM(Step):
    r"""Two residual dense blocks, one for each branch: :math:`\hat y \mapsto (\hat u_L, \hat u_H)`.

    Shapes: (B, M, H, W) -> two tensors (B, 768, H, W); with ``keep_latent`` ŷ itself comes third,
    for MS-CFRM.
    """

    def __init__(self, M: int, growth: int, layers: int, keep_latent: bool = False):
        super().__init__()
        self.low = ResidualDenseBlock(M, BRANCH_CHANNELS, growth, layers)
        self.high = ResidualDenseBlock(M, BRANCH_CHANNELS, growth, layers)
        self.keep_latent = keep_latent
        self.receptive_radius = layers

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        maps = self.low(y), self.high(y)
        return (*maps, y) if self.keep_latent else maps


class CopyToGroups(Step):
    """Stands in for CFRM: ŷ is copied to all groups of both branches; shapes as there."""

    def __init__(self, keep_latent: bool = False):
        super().__init__()
        self.keep_latent = keep_latent

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        copies = y.repeat(1, BRANCH_CHANNELS // y.shape[1], 1, 1)
        return (copies, copies, y) if self.keep_latent else (copies, copies)


class Halves(Step):
    """Stands in for CFRM where nothing was squeezed: the two branches of u."""

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y.chunk(2, dim=1)


class MSCFRM(Step):
    """Recovery at a middle scale. The paper names it and does not publish it: this is our reading.

    After the inverse of level 4, each branch v gets ``v + block(concat(v, y'))``, where y' is the
    latent brought to this scale by a pixel shuffle. The block starts at zero.

    Shapes: two tensors (B, 192, H, W) and y' (B, M/4, H, W) -> two tensors (B, 192, H, W).
    """

    def __init__(self, M: int, growth: int, layers: int):
        super().__init__()
        self.low = ResidualDenseBlock(192 + M // 4, 192, growth, layers, skip=False)
        self.high = ResidualDenseBlock(192 + M // 4, 192, growth, layers, skip=False)
        self.receptive_radius = layers

    def forward(self, low: Tensor, high: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (low + self.low(torch.cat([low, y], dim=1)),
                high + self.high(torch.cat([high, y], dim=1)))
