"""The invertible core F of the paper's framework figure: squeeze, invertible 1x1 convolution, coupling layer, level.

A block either maps one tensor (`Squeeze`, `InvertibleConv1x1`) or the pair of the low- and the high-frequency branch
(`Coupling`, `Level`; marked by ``branches = 2``). Every block has ``forward`` and ``inverse``.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import AINNError


class Squeeze(nn.Module):
    r"""Space to depth: :math:`s_{(2\,dy + dx)C + c,\;i,\;j} = x_{c,\;2i+dy,\;2j+dx}` (position-major channels).

    ``torch.pixel_unshuffle`` orders the channels the other way round (c-major).

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
        b, c, h, w = x.shape
        if h % 2 or w % 2:
            raise AINNError(f"the squeeze halves height and width, but got {h}x{w}")
        x = x.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c).permute(0, 3, 1, 2)

    def inverse(self, s: Tensor) -> Tensor:
        b, c, h, w = s.shape
        s = s.permute(0, 2, 3, 1).reshape(b, h, w, 2, 2, c // 4)
        return s.permute(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4).permute(0, 3, 1, 2)


class InvertibleConv1x1(nn.Module):
    r"""Learned mixing of channels at every position, :math:`v = W u`, inverse :math:`u = W^{-1} v`.

    W starts as a random rotation (QR of a Gaussian). Its inverse is computed in float64 and kept until W changes.

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
        self._cached = (None, None)

    def forward(self, u: Tensor) -> Tensor:
        return self._product(self.weight, u)

    def inverse(self, v: Tensor) -> Tensor:
        return self._product(self.inverse_weight(), v)

    @staticmethod
    def _product(matrix: Tensor, v: Tensor) -> Tensor:
        device = "cpu" if v.is_meta else v.device.type  # meta tensors (sizes without values) know no autocast
        with torch.autocast(device, enabled=False):  # a rotation in bfloat16 would be none: W⁻¹W is off by a percent
            # in channels_last the permuted map is a matrix already, without a copy
            return F.linear(v.permute(0, 2, 3, 1).to(matrix.dtype), matrix).permute(0, 3, 1, 2)

    def inverse_weight(self) -> Tensor:
        """W⁻¹ in the dtype of W, (C, C)."""
        if self.weight.requires_grad and torch.is_grad_enabled():
            return torch.linalg.inv(self.weight.double()).to(self.weight.dtype)
        key = (self.weight.data_ptr(), self.weight._version, self.weight.dtype, self.weight.device)
        if self._cached[0] != key:
            with torch.no_grad():
                self._cached = (key, torch.linalg.inv(self.weight.double()).to(self.weight.dtype))
        return self._cached[1]


class CouplingNet(nn.Sequential):
    """conv k -> LeakyReLU 0.2 -> conv 1x1 -> LeakyReLU 0.2 -> conv k, the last one zero at the start.

    The first two convolutions start at 0.1 x Xavier normal with zero biases, so a fresh coupling layer is the identity.
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
    r"""The nets G and H of one half of a coupling: ``b -> (log scale, shift)``.

    log scale :math:`= c\,(2\sigma(G(b)) - 1) \in (-c, c)`, shift :math:`= H(b)`. With ``shared`` one net with two
    outputs plays both parts (half the operations; the paper keeps two separate nets).
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

    def forward(self, b: Tensor) -> tuple[Tensor, Tensor]:
        g, shift = self.net(b).chunk(2, dim=1) if self.shared else (self.G(b), self.H(b))
        return self.clamp * torch.tanh(g / 2), shift  # 2σ(g) − 1 = tanh(g/2)


class Coupling(nn.Module):
    r"""Affine coupling between the branches, exactly invertible whatever its nets compute:

    .. math:: a' = a\,e^{c(2\sigma(G_2(b)) - 1)} + H_2(b), \qquad b' = b\,e^{c(2\sigma(G_1(a')) - 1)} + H_1(a').

    Shapes: two tensors (B, C, H, W) -> two tensors of the same shape.

    >>> layer, a, b = Coupling(12, 12, 3).double(), *torch.randn(2, 1, 12, 4, 4, dtype=torch.float64)
    >>> a2, b2 = layer.inverse(*layer(a, b))
    >>> torch.allclose(a, a2, atol=1e-12) and torch.allclose(b, b2, atol=1e-12)
    True
    """

    branches = 2

    def __init__(self, channels: int, hidden: int, kernel: int, clamp: float = 1.0, shared: bool = False):
        super().__init__()
        self.from_b = ScaleAndShift(channels, hidden, kernel, clamp, shared)  # G2, H2
        self.from_a = ScaleAndShift(channels, hidden, kernel, clamp, shared)  # G1, H1

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.from_b(b)
        a = a * log_scale.exp() + shift
        log_scale, shift = self.from_a(a)
        return a, b * log_scale.exp() + shift

    def inverse(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.from_a(a)
        b = (b - shift) * (-log_scale).exp()
        log_scale, shift = self.from_b(b)
        return (a - shift) * (-log_scale).exp(), b


class Level(nn.Module):
    """One level of the core: squeeze, one 1x1 convolution shared by both branches, then coupling layers.

    Shapes: two tensors (B, C/4, H, W) -> two tensors (B, C, H/2, W/2), where C is ``channels``.
    """

    branches = 2

    def __init__(self, channels: int, couplings: int, hidden: int, kernel: int, clamp: float = 1.0,
                 shared: bool = False, trainable: bool = True):
        super().__init__()
        self.squeeze = Squeeze()
        self.conv1x1 = InvertibleConv1x1(channels, trainable)
        self.reach = couplings * 4 * (kernel // 2)  #: samples: two nets after one another, two k x k convolutions each
        self.couplings = nn.ModuleList(Coupling(channels, hidden, kernel, clamp, shared) for _ in range(couplings))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (self.conv1x1(self.squeeze(v)) for v in (a, b))
        for coupling in self.couplings:
            a, b = coupling(a, b)
        return a, b

    def inverse(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for coupling in reversed(self.couplings):
            a, b = coupling.inverse(a, b)
        return tuple(self.squeeze.inverse(self.conv1x1.inverse(v)) for v in (a, b))


@torch.no_grad()
def check_invertible(block: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> float:
    """Largest absolute error of ``block.inverse(block(x)) - x`` over one standard-normal input.

    Args:
        block: a block of this module, or a whole `AINN` (there: ``g_s(g_a(x)) - x``, no quantization). It is copied,
            so its own dtype stays as it is.
        shape: (B, C, H, W) of the input; of each branch where the block maps a pair.
        dtype: precision of the check.

    Raises:
        AINNError: when the block has no inverse, or the result is not finite.

    >>> check_invertible(Level(12, 2, 8, 3), (1, 3, 8, 8)) < 1e-12
    True
    """
    block = copy.deepcopy(block).to(dtype).eval()
    forward, inverse = getattr(block, "g_a", block), getattr(block, "g_s", getattr(block, "inverse", None))
    if inverse is None:
        raise AINNError(f"{type(block).__name__} has no inverse to check")
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
              for _ in range(getattr(block, "branches", 1))]
    outputs = forward(*inputs)
    back = inverse(*outputs) if isinstance(outputs, tuple) else inverse(outputs)
    back = back if isinstance(back, tuple) else (back,)
    error = max((x - y).abs().max().item() for x, y in zip(inputs, back, strict=True))
    if error != error or error == float("inf"):
        raise AINNError(f"{type(block).__name__} gave a value that is not finite")
    return error
