"""The causal 5x5 context: the order in which a decoder walks over the latent, and the latent that it sees on its way."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAST = [(dy, dx) for dy in range(3) for dx in range(5) if dy < 2 or dx < 2]  #: the 12 taps of the causal 5x5 mask


def wavefront(height: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The steps of the wavefront: rows i and columns j of the positions with j + 3i = 0, 1, ..., rows ascending.

    With the 5x5 causal mask none of them needs another one. Their number is width + 3 (height - 1); less where the width is
    under 3, since steps without a position are left out.

    >>> [list(zip(i.tolist(), j.tolist())) for i, j in wavefront(2, 4)][3:5]
    [[(0, 3), (1, 0)], [(1, 1)]]
    """
    for step in range(width + 3 * (height - 1)):
        first = max(0, -(-(step - width + 1) // 3))
        i = np.arange(first, min(height - 1, step // 3) + 1)
        if len(i):
            yield i, step - 3 * i


@torch.no_grad()
def sequential_latent(y: Tensor, hyper: Tensor, bias: Tensor, context: nn.Conv2d, parameters: nn.Sequential) -> Tensor:
    r"""What a decoder reconstructs: :math:`\hat y = \mathrm{round}(y - \mu) + \mu`, each mean μ from the positions before.

    In training the context has to be this latent. One pass over round(y) or over y + noise gives means that no decoder
    has: a network learns to rely on them, and its files become longer than the estimate.

    Args:
        y: (B, M, h, w), with its gain.
        hyper: (B, hyper_out, h, w), from the hyper-synthesis.
        bias: added to scales and means, (B or 1, 2M, 1, 1) or (1,).
        context: the masked convolution.
        parameters: the 1x1 convolutions from (hyper, context) to scales and means.
    """
    batch, channels, height, width = y.shape
    rows, hyper = (v.float().flatten(2).transpose(1, 2) for v in (y, hyper))  # (B, hw, channels)
    bias = bias.reshape(len(bias), 1, -1)
    stride = width + 4
    past = rows.new_zeros(batch, (height + 2) * stride, channels)  # y_hat, framed by zeros
    taps = torch.stack([context.weight[:, :, dy, dx] for dy, dx in PAST], dim=1).flatten(1)
    offsets = torch.tensor([dy * stride + dx for dy, dx in PAST], device=y.device)
    for i, j in wavefront(height, width):
        corner, here = (torch.from_numpy(i * step + j).to(y.device) for step in (stride, width))
        neighbours = past[:, (corner[:, None] + offsets).flatten()].reshape(batch, len(i), -1)
        v = torch.cat([hyper[:, here], F.linear(neighbours, taps, context.bias)], dim=2)
        for layer in parameters:
            v = F.linear(v, layer.weight.flatten(1), layer.bias) if isinstance(layer, nn.Conv2d) else layer(v)
        means = (v + bias).chunk(2, dim=2)[1]
        past[:, corner + (2 * stride + 2)] = torch.round(rows[:, here] - means) + means
    return past.reshape(batch, height + 2, stride, channels)[:, 2:, 2:-2].permute(0, 3, 1, 2)
