"""A bound, from weights alone, of how much the inverse of a block can enlarge an error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import AINNError
from ..network.blocks import Coupling, InvertibleConv1x1, Level, ScaleAndShift, Squeeze


def conv_norm(weight: Tensor) -> float:
    r"""An upper bound of the operator norm of a zero-padded convolution of stride 1.

    On the infinite plane the norm is :math:`\sup_\omega \sigma_{\max}(\hat W(\omega))`, and zero
    padding can only lessen it. N frequencies in each direction are looked at: between them a
    trigonometric polynomial of degree d is larger by at most :math:`1/\cos^2(\pi d/N)`. Exact for
    1x1 kernels.

    Shapes: weight (C_out, C_in, k, k), k odd.

    >>> conv_norm(torch.diag(torch.tensor([3., -4.]))[:, :, None, None])
    4.0
    """
    side = weight.shape[-1]
    if weight.dim() != 4 or weight.shape[2] != side or side % 2 == 0:
        raise AINNError(f"a kernel (C_out, C_in, k, k) has odd k, got {tuple(weight.shape)}")
    degree = side // 2
    count = max(1, 16 * degree)
    spectrum = torch.fft.rfft2(weight.detach().double(), s=(count, count)).permute(2, 3, 0, 1)
    largest = torch.linalg.matrix_norm(spectrum, ord=2).max().item()
    return largest / math.cos(math.pi * degree / count) ** 2


@dataclass(frozen=True)
class CouplingFactor:
    r"""One half of an inverse coupling: :math:`v = (v' - H(w))\,e^{-s(w)}`, while w stays.

    :math:`\|dv\| \le e^c(\|dv'\| + L_H\|dw\|) + B\,\tfrac c2 L_G\|dw\|`, so the constant is at most
    the norm of :math:`\begin{pmatrix}1&0\\e^cL_H+B\frac c2L_G&e^c\end{pmatrix}`.
    """

    stretch: float  #: e^c
    translation: float  #: L_H, a Lipschitz constant of H
    slope: float  #: c/2, the largest slope of c·tanh(G/2)
    gate: float  #: L_G, a Lipschitz constant of G
    box: float  #: B, bound of |v|

    @property
    def value(self) -> float:
        """The norm of the matrix."""
        mixing = self.stretch * self.translation + self.box * self.slope * self.gate
        matrix = torch.tensor([[1.0, 0.0], [mixing, self.stretch]], dtype=torch.float64)
        return torch.linalg.matrix_norm(matrix, ord=2).item()


@dataclass(frozen=True)
class LipschitzBound:
    """The product of the constants of all parts. (A squeeze has the constant 1.)"""

    matrices: tuple[float, ...]  #: σ_max of each inverse 1x1 matrix
    couplings: tuple[CouplingFactor, ...]  #: two for each coupling
    box: tuple[float, float]  #: bound of |low| and of |high| behind the inverse

    @property
    def value(self) -> float:
        """The Lipschitz constant."""
        return math.prod(self.matrices) * math.prod(half.value for half in self.couplings)


def lipschitz_bound(block: nn.Module | Sequence[Level], box: float) -> LipschitzBound:
    """A Lipschitz constant of ``block.inverse`` for inputs of absolute value at most B.

    The constants of the parts multiply. A coupling's grows with the values that it scales, so
    interval bounds carry the box from part to part. No input is seen: the bound is safe and loose.

    Args:
        block: a block of `ainn_lib.network.blocks`, or the list of a core's levels. Another module
            raises AINNError.
        box: B, a positive number.

    >>> bound = lipschitz_bound(Coupling(4, 4, 3), box=1.0)  # a new one: only the clamp counts
    >>> round(bound.value, 3), round(math.e ** 2, 3)
    (7.389, 7.389)
    """
    if not 0 < box < math.inf:
        raise AINNError(f"the box must be a positive number, got {box}")
    low = high = float(box)
    matrices, couplings = [], []
    for part in reversed(_parts(block)):
        if isinstance(part, InvertibleConv1x1):
            inverse = torch.linalg.inv(part.weight.detach().double())
            matrices.append(torch.linalg.matrix_norm(inverse, ord=2).item())
            growth = inverse.abs().sum(1).max().item()
            low, high = growth * low, growth * high
        elif isinstance(part, Coupling):
            couplings.append(_half(part.from_low, source=low, target=high))
            high = couplings[-1].box
            couplings.append(_half(part.from_high, source=high, target=low))
            low = couplings[-1].box
    return LipschitzBound(tuple(matrices), tuple(couplings), (low, high))


def _parts(block: nn.Module | Sequence[Level]) -> list[nn.Module]:
    """The squeezes, 1x1 convolutions and couplings in the order of the forward map."""
    if isinstance(block, Squeeze | InvertibleConv1x1 | Coupling):
        return [block]
    if isinstance(block, Level):
        return [block.squeeze, block.conv1x1, *block.couplings]
    if isinstance(block, Sequence | nn.ModuleList):
        return [part for level in block for part in _parts(level)]
    raise AINNError(f"the bound is for invertible blocks, not for a {type(block).__name__}")


def _half(nets: ScaleAndShift, source: float, target: float) -> CouplingFactor:
    """The nets read values up to ``source``; the values to invert reach up to ``target``."""
    gate, shift = _convolutions(nets)
    stretch = math.exp(nets.clamp)
    largest = torch.full((shift[0][0].shape[1],), source, dtype=torch.float64)
    for weight, bias in shift:  # LeakyReLU makes no value larger
        largest = weight.abs().sum((2, 3)) @ largest + bias.abs()
    lip_shift, lip_gate = (math.prod(conv_norm(w) for w, _ in net) for net in (shift, gate))
    box = stretch * (target + largest.max().item())
    return CouplingFactor(stretch, lip_shift, nets.clamp / 2, lip_gate, box)


def _convolutions(nets: ScaleAndShift) -> tuple[list, list]:
    """(weight, bias) of the three convolutions of G, and of H, in float64."""
    both = (nets.net, nets.net) if nets.shared else (nets.G, nets.H)
    gate, shift = ([(net[i].weight.detach().double(), net[i].bias.detach().double())
                    for i in (0, 2, 4)] for net in both)
    if nets.shared:  # the last convolution has the outputs of G, then those of H
        weight, bias = gate[-1]
        gate[-1], shift[-1] = zip(weight.chunk(2), bias.chunk(2), strict=True)
    return gate, shift
