r"""What weights alone say of the invertible blocks: a Lipschitz bound of the inverse, and the log-determinant.

The bound is for the decoder, which runs the blocks backwards: how much it can enlarge an error, whatever the image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import AINNError
from .invertible import Coupling, InvertibleConv1x1, Level, ScaleAndShift, Squeeze


def conv_norm(weight: Tensor) -> float:
    r"""An upper bound of the operator norm of a zero-padded convolution of stride 1 on maps of any size.

    On the infinite plane the norm is :math:`\sup_\omega \sigma_{\max}(\hat W(\omega))`; zero padding restricts that operator
    and can only lessen it. A trigonometric polynomial of degree d exceeds its maximum on N points by at most a factor
    :math:`1/\cos(\pi d/N)`, once for each direction. Exact for 1x1 kernels.

    Shapes: weight (C_out, C_in, k, k), k odd.
    """
    if weight.dim() != 4 or not weight.shape[2] % 2 or not weight.shape[3] % 2:
        raise AINNError(f"a kernel (C_out, C_in, k, k) with odd k is needed, got {tuple(weight.shape)}")
    degrees = [side // 2 for side in weight.shape[2:]]
    grid = [16 * d or 1 for d in degrees]
    spectrum = torch.fft.fft2(weight.detach().double(), s=grid).permute(2, 3, 0, 1)
    spectrum = spectrum[: grid[0] // 2 + 1]  # the rest is its conjugate
    excess = math.prod(math.cos(math.pi * d / n) for d, n in zip(degrees, grid, strict=True))
    return torch.linalg.matrix_norm(spectrum, ord=2).max().item() / excess


@dataclass(frozen=True)
class LinearFactor:
    """A block that is one matrix at every position."""

    norm: float  #: σ_max of it

    @property
    def value(self) -> float:
        return self.norm


@dataclass(frozen=True)
class CouplingFactor:
    r"""One half of an inverse coupling, :math:`b = (b' - H(a'))\,e^{-s(a')}` beside an unchanged a', as a map of pairs.

    From :math:`\|db\| \le e^c(\|db'\| + L_H\|da'\|) + B\,\tfrac c2 L_G\|da'\|`: Lip is at most the norm of
    :math:`\begin{pmatrix}1&0\\e^cL_H+B\frac c2L_G&e^c\end{pmatrix}`, itself at most :math:`(1+L_H)e^c + B\,\tfrac c2L_G`.
    """

    stretch: float  #: e^c
    translation: float  #: L_H
    slope: float  #: c/2, the steepest that c·tanh(G/2) can be
    gate: float  #: L_G
    box: float  #: B, bound of |b|

    @property
    def value(self) -> float:
        mixing = self.stretch * self.translation + self.box * self.slope * self.gate
        total = 1 + mixing**2 + self.stretch**2  # trace of MᵀM, whose determinant is stretch²
        return math.sqrt((total + math.sqrt(max(0.0, total**2 - 4 * self.stretch**2))) / 2)


@dataclass(frozen=True)
class LipschitzBound:
    """Product of the factors, in the order in which the inverse applies them."""

    factors: tuple[LinearFactor | CouplingFactor, ...]
    box: tuple[float, float]  #: bound of |a| and of |b| behind the inverse

    @property
    def value(self) -> float:
        return math.prod(factor.value for factor in self.factors)


def lipschitz_bound(block: nn.Module, box: float) -> LipschitzBound:
    r"""A Lipschitz constant of ``block.inverse`` from weights alone, for inputs with all :math:`|a'|, |b'| \le B` = ``box``.

    The constants of the parts multiply; the box is carried through them by interval bounds, since a coupling's constant
    grows with the values that it scales. No input is looked at, so the bound is safe and loose.

    Args:
        block: `Squeeze`, `InvertibleConv1x1`, `Coupling`, `Level`, or the core (``model.levels``: levels 4 to 1).

    Raises:
        AINNError: for another block, or a box that is not a positive number.

    >>> round(lipschitz_bound(Coupling(4, 4, 3), box=1.0).value, 3)  # fresh: only the clamp speaks, e for each half
    7.389
    """
    if not 0 < box < math.inf:
        raise AINNError(f"the box must be a positive number, got {box}")
    return _bound(block, (float(box), float(box)))


def _bound(block: nn.Module, box: tuple[float, float]) -> LipschitzBound:
    if isinstance(block, Squeeze):
        return LipschitzBound((LinearFactor(1.0),), box)
    if isinstance(block, InvertibleConv1x1):
        inverse = torch.linalg.inv(block.weight.detach().double())
        row = inverse.abs().sum(1).max().item()
        return LipschitzBound((LinearFactor(torch.linalg.matrix_norm(inverse, ord=2).item()),), (row * box[0], row * box[1]))
    if isinstance(block, Coupling):
        a, b = box
        first = _half(block.from_a, a, b)
        second = _half(block.from_b, first.box, a)
        return LipschitzBound((first, second), (second.box, first.box))
    factors = []
    for part in reversed(_parts(block)):
        bound = _bound(part, box)
        factors, box = [*factors, *bound.factors], bound.box
    return LipschitzBound(tuple(factors), box)


def _parts(block: nn.Module) -> list[nn.Module]:
    """What a level, or the core, does one after the other."""
    if isinstance(block, Level):
        return [block.squeeze, block.conv1x1, *block.couplings]
    if isinstance(block, nn.ModuleList):
        return list(block)
    raise AINNError(f"bound and log-determinant are known for the invertible blocks alone, not for a {type(block).__name__}")


def _half(nets: ScaleAndShift, source: float, target: float) -> CouplingFactor:
    gate, shift = _nets(nets)
    stretch = math.exp(nets.clamp)
    largest = torch.full((shift[0][0].shape[1],), source, dtype=torch.float64)
    for weight, bias in shift:  # LeakyReLU makes no value larger
        largest = weight.abs().sum((2, 3)) @ largest + bias.abs()
    norms = [math.prod(conv_norm(weight) for weight, _ in net) for net in (shift, gate)]
    return CouplingFactor(stretch, norms[0], nets.clamp / 2, norms[1], stretch * (target + largest.max().item()))


def _nets(nets: ScaleAndShift) -> tuple[list, list]:
    """(weight, bias) of the three convolutions of G and of H; a shared net ends in the rows of both."""
    if not nets.shared:
        return tuple([(net[i].weight.detach().double(), net[i].bias.detach().double()) for i in (0, 2, 4)]
                     for net in (nets.G, nets.H))
    *first, (weight, bias) = [(nets.net[i].weight.detach().double(), nets.net[i].bias.detach().double()) for i in (0, 2, 4)]
    return tuple([*first, rows] for rows in zip(weight.chunk(2), bias.chunk(2), strict=True))


def log_determinant(block: nn.Module, *maps: Tensor) -> Tensor:
    r""":math:`\log|\det|` (natural) of the Jacobian of an invertible block's forward map at its input, differentiable.

    Squeeze: 0. 1x1 convolution: :math:`hw\,\log|\det W|`. Coupling: the sum of all log scales. Level and core F: the sum of
    their parts; a level's 1x1 convolution counts once a branch.

    Args:
        block: a block of `ainn_lib.invertible`, or the core (``model.levels``).
        maps: its input, one tensor (B, C, H, W) or the pair of branches.

    Returns:
        (B,) in natural units.

    >>> W = InvertibleConv1x1(12)  # starts as a rotation
    >>> bool(log_determinant(W, torch.ones(1, 12, 4, 4)).abs() < 1e-4)
    True
    """
    if isinstance(block, Squeeze):
        return maps[0].new_zeros(maps[0].shape[0])
    if isinstance(block, InvertibleConv1x1):
        height, width = maps[0].shape[2:]
        return (height * width * torch.linalg.slogdet(block.weight)[1]).expand(maps[0].shape[0])
    if isinstance(block, Coupling):
        after, _ = block(*maps)
        return block.from_b(maps[1])[0].flatten(1).sum(1) + block.from_a(after)[0].flatten(1).sum(1)
    total = 0
    for part in _parts(block):
        if part.branches == 1:
            total = total + sum(log_determinant(part, v) for v in maps)
            maps = tuple(part(v) for v in maps)
        else:
            total, maps = total + log_determinant(part, *maps), part(*maps)
    return total
