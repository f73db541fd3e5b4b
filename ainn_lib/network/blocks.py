"""The invertible core F of the paper's framework figure: squeeze, 1x1 convolution, coupling, level.

A block maps one tensor (`Squeeze`, `InvertibleConv1x1`), or the pair of the low- and the
high-frequency branch (`Coupling`, `Level`; marked by ``branches = 2``). Every block has three
methods: ``forward``, ``inverse``, and ``with_logdet``, which returns what ``forward`` returns and
after it the log-determinant of the block's Jacobian (natural logarithm, one value an image).
"""

import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import AINNError
from .tiles import Step


class Squeeze(nn.Module):
    r"""Space to depth: :math:`s_{(2\,dy + dx)C + c,\;i,\;j} = x_{c,\;2i+dy,\;2j+dx}`.

    The channels are position-major; ``torch.pixel_unshuffle`` orders them the other way round.

    Shapes: (B, C, H, W) -> (B, 4C, H/2, W/2); H and W even.

    Raises:
        AINNError: when H or W is odd.

    >>> x = torch.arange(8.).reshape(1, 2, 2, 2)
    >>> Squeeze()(x).flatten().tolist()
    [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]
    >>> bool((Squeeze().inverse(Squeeze()(x)) == x).all())
    True
    """

    branches = 1

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2 or x.shape[3] % 2:
            raise AINNError(
                f"the squeeze halves height and width, but got {x.shape[2]}x{x.shape[3]}")
        return rearrange(x, "b c (h dy) (w dx) -> b (dy dx c) h w", dy=2, dx=2)

    def inverse(self, s: Tensor) -> Tensor:
        return rearrange(s, "b (dy dx c) h w -> b c (h dy) (w dx)", dy=2, dx=2)

    def with_logdet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The log-determinant of a permutation is 0."""
        return self(x), x.new_zeros(x.shape[0])


class InvertibleConv1x1(nn.Module):
    r"""Mixing of channels at every position, :math:`v = W u`, with inverse :math:`u = W^{-1} v`.

    W starts as a random rotation (QR of a Gaussian). Its inverse is computed in float64.

    Shapes: (B, C, H, W) -> the same; ``weight`` is (C, C).

    >>> conv, x = InvertibleConv1x1(12).double(), torch.randn(1, 12, 4, 4, dtype=torch.float64)
    >>> torch.allclose(conv.inverse(conv(x)), x, atol=1e-12)
    True
    """

    branches = 1

    def __init__(self, channels: int, trainable: bool = True):
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        self.weight = nn.Parameter(rotation.float(), requires_grad=trainable)
        self._kept = torch.empty(0), torch.empty(0)  # W and its inverse

    def forward(self, u: Tensor) -> Tensor:
        return self._product(self.weight, u)

    def inverse(self, *maps: Tensor) -> Tensor | tuple[Tensor, ...]:
        """W⁻¹ on one map, or on each of several: the inverse of W is computed once for all."""
        matrix = self.inverse_weight()
        results = tuple(self._product(matrix, v) for v in maps)
        return results if len(maps) > 1 else results[0]

    def with_logdet(self, u: Tensor) -> tuple[Tensor, Tensor]:
        r"""The log-determinant is :math:`hw\,\log|\det W|`."""
        logdet = u.shape[2] * u.shape[3] * torch.linalg.slogdet(self.weight)[1]
        return self(u), logdet.expand(u.shape[0])

    @staticmethod
    def _product(matrix: Tensor, v: Tensor) -> Tensor:
        device = "cpu" if v.is_meta else v.device.type  # meta tensors know no autocast
        # a rotation in bfloat16 would be none: W⁻¹W is off by a percent
        with torch.autocast(device, enabled=False):
            # in channels_last the permuted map is a matrix already, without a copy
            rows = v.permute(0, 2, 3, 1).to(matrix.dtype)
            return F.linear(rows, matrix).permute(0, 3, 1, 2)

    def inverse_weight(self) -> Tensor:
        """W⁻¹ in the dtype of W, (C, C).

        Outside of training the inverse is kept, beside the values of W that it belongs to:
        comparing them notices every change, whichever way it was made. In training on a GPU it is
        computed each time: a comparison would wait for the device.
        """
        training = torch.is_grad_enabled() and (self.weight.requires_grad or self.weight.is_cuda)
        if training or self.weight.is_meta:
            return self._invert(self.weight)
        # an inference tensor could not enter a later gradient
        with torch.inference_mode(False), torch.no_grad():
            weight = self.weight.detach().clone()
            kept, inverse = self._kept
            if kept.dtype != weight.dtype or kept.device != weight.device or (
                    not torch.equal(kept, weight)):
                inverse = self._invert(weight)
                self._kept = weight, inverse
            return inverse

    @staticmethod
    def _invert(weight: Tensor) -> Tensor:
        waits = weight.is_cuda and torch.is_grad_enabled()  # a check for errors would, in training
        inverse, _ = torch.linalg.inv_ex(weight.double(), check_errors=not waits)
        return inverse.to(weight.dtype)


class CouplingNet(nn.Sequential):
    """conv k -> LeakyReLU 0.2 -> conv 1x1 -> LeakyReLU 0.2 -> conv k.

    The first two convolutions start at 0.1 x Xavier normal with zero biases, the last one at
    zero: a fresh coupling layer is the identity.
    """

    def __init__(self, channels_in: int, channels_out: int, hidden: int, kernel: int):
        super().__init__(
            nn.Conv2d(channels_in, hidden, kernel, padding=kernel // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, hidden, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, channels_out, kernel, padding=kernel // 2),
        )
        for conv in (self[0], self[2]):
            nn.init.xavier_normal_(conv.weight)
            conv.weight.data *= 0.1
            nn.init.zeros_(conv.bias)
        nn.init.zeros_(self[4].weight)
        nn.init.zeros_(self[4].bias)


class ScaleAndShift(nn.Module):
    r"""The nets G and H of one half of a coupling: a branch -> log scale and shift of the other.

    The log scale is :math:`c\,(2\sigma(G(v)) - 1) \in (-c, c)`, the shift :math:`H(v)`. With
    ``shared`` one net with two outputs is both (half the operations; the paper has two nets).
    """

    def __init__(self, channels: int, hidden: int, kernel: int, clamp: float, shared: bool):
        super().__init__()
        self.clamp = clamp
        self.shared = shared
        if shared:
            self.net = CouplingNet(channels, 2 * channels, hidden, kernel)
        else:
            self.G = CouplingNet(channels, channels, hidden, kernel)
            self.H = CouplingNet(channels, channels, hidden, kernel)

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.shared:
            g, shift = self.net(v).chunk(2, dim=1)
        else:
            g, shift = self.G(v), self.H(v)
        return self.clamp * torch.tanh(g / 2), shift  # 2σ(g) − 1 = tanh(g/2)


class Coupling(nn.Module):
    r"""Affine coupling of the low branch a and the high branch b, invertible whatever its nets are:

    .. math:: a' = a\,e^{c(2\sigma(G_2(b)) - 1)} + H_2(b), \qquad
              b' = b\,e^{c(2\sigma(G_1(a')) - 1)} + H_1(a').

    Shapes: two tensors (B, C, H, W) -> two tensors of the same shape.

    >>> layer, a, b = Coupling(12, 12, 3).double(), *torch.randn(2, 1, 12, 4, 4).double()
    >>> a2, b2 = layer.inverse(*layer(a, b))
    >>> torch.allclose(a, a2, atol=1e-12) and torch.allclose(b, b2, atol=1e-12)
    True
    """

    branches = 2

    def __init__(self, channels: int, hidden: int, kernel: int, clamp: float = 1.0,
                 shared: bool = False):
        super().__init__()
        self.from_high = ScaleAndShift(channels, hidden, kernel, clamp, shared)  # G2, H2
        self.from_low = ScaleAndShift(channels, hidden, kernel, clamp, shared)  # G1, H1

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.with_logdet(low, high)[:2]

    def with_logdet(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The log-determinant is the sum of all log scales."""
        low_scale, shift = self.from_high(high)
        low = low * low_scale.exp() + shift
        high_scale, shift = self.from_low(low)
        high = high * high_scale.exp() + shift
        return low, high, (low_scale + high_scale).flatten(1).sum(1)

    def inverse(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.from_low(low)
        high = (high - shift) * (-log_scale).exp()
        log_scale, shift = self.from_high(high)
        return (low - shift) * (-log_scale).exp(), high


class Level(Step):
    """One level of the core: squeeze, one 1x1 convolution for both branches, coupling layers.

    Shapes: two tensors (B, C/4, H, W) -> two tensors (B, C, H/2, W/2), where C is ``channels``.
    """

    branches = 2
    scale, align = 0.5, 2  # of the forward map

    def __init__(self, channels: int, couplings: int, hidden: int, kernel: int,
                 clamp: float = 1.0, shared: bool = False, trainable: bool = True):
        super().__init__()
        self.squeeze = Squeeze()
        self.conv1x1 = InvertibleConv1x1(channels, trainable)
        self.couplings = nn.ModuleList(
            Coupling(channels, hidden, kernel, clamp, shared) for _ in range(couplings))
        #: in samples of the level's own maps: two nets in a row, of two k x k convolutions each
        self.coupling_radius = couplings * 4 * (kernel // 2)

    @property
    def receptive_radius(self) -> int:
        """In samples of the forward map's input, whose sides are twice as long."""
        return 2 * self.coupling_radius

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (self.conv1x1(self.squeeze(v)) for v in (low, high))
        for coupling in self.couplings:
            low, high = coupling(low, high)
        return low, high

    def with_logdet(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sum over the level's parts; the 1x1 convolution counts once for each branch."""
        low, from_low = self.conv1x1.with_logdet(self.squeeze(low))
        high, from_high = self.conv1x1.with_logdet(self.squeeze(high))
        total = from_low + from_high
        for coupling in self.couplings:
            low, high, logdet = coupling.with_logdet(low, high)
            total = total + logdet
        return low, high, total

    def inverse(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        for coupling in reversed(self.couplings):
            low, high = coupling.inverse(low, high)
        low, high = self.conv1x1.inverse(low, high)
        return self.squeeze.inverse(low), self.squeeze.inverse(high)


@torch.no_grad()
def check_invertible(block: nn.Module, shape: tuple[int, ...],
                     dtype: torch.dtype = torch.float64) -> float:
    """Largest absolute error of ``block.inverse(block(x)) - x`` over one standard-normal input.

    Args:
        block: a block of this module, or a whole `AINN` (there: ``g_s(g_a(x)) - x``, without
            quantization). It is copied, so its own dtype stays as it is.
        shape: (B, C, H, W) of the input; of each branch where the block maps a pair.
        dtype: precision of the check.

    Raises:
        AINNError: when the block has no inverse, or the result is not finite.

    >>> check_invertible(Level(12, 2, 8, 3), (1, 3, 8, 8)) < 1e-12
    True
    """
    block = copy.deepcopy(block).to(dtype).eval()
    forward = getattr(block, "g_a", block)
    inverse = getattr(block, "g_s", getattr(block, "inverse", None))
    if inverse is None:
        raise AINNError(f"{type(block).__name__} has no inverse to check")
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
              for _ in range(getattr(block, "branches", 1))]
    outputs = forward(*inputs)
    back = inverse(*outputs) if isinstance(outputs, tuple) else inverse(outputs)
    back = back if isinstance(back, tuple) else (back,)
    error = max((x - y).abs().max() for x, y in zip(inputs, back, strict=True))
    if not torch.isfinite(error):
        raise AINNError(f"{type(block).__name__} gave a value that is not finite")
    return error.item()
