"""The Jacobian of a synthesis g, which is never formed, and the distortion that it predicts.

g is any differentiable function from one tensor to one tensor: ``model.g_s``, CompressAI's, a toy.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AINNError

Synthesis = Callable[[Tensor], Tensor]
Step = float | Tensor  #: one step, or one for each channel: see `per_channel`


class Jacobian:
    r"""The linear map :math:`J = \partial g/\partial y` at y.

    ``jvp(v)`` is :math:`Jv`, ``vjp(w)`` is :math:`J^T w`, and ``value`` is g(y); v has the shape of
    y, w that of g(y). Straight-through rounding in g has the derivative that training uses.
    Raises AINNError when y or g(y) is not one floating-point tensor, or a shape is wrong.

    >>> J = Jacobian(lambda y: y**2, torch.tensor([1., 2.]))
    >>> J.jvp(torch.tensor([1., 1.])).tolist(), J.vjp(torch.tensor([0., 1.])).tolist()
    ([2.0, 4.0], [0.0, 4.0])
    """

    def __init__(self, g: Synthesis, y: Tensor):
        if not isinstance(y, Tensor) or not y.is_floating_point() or not y.numel():
            raise AINNError("y must be a floating-point tensor with at least one value")
        self.y = y.detach()
        self._input = self.y.clone().requires_grad_()
        with torch.enable_grad():
            self._output = g(self._input)
        if not isinstance(self._output, Tensor) or not self._output.requires_grad:
            raise AINNError("g must return one tensor that depends on y")
        self.value = self._output.detach()

    def vjp(self, w: Tensor) -> Tensor:
        """Jᵀw, shaped as y."""
        check_shape(w, self.value)
        return torch.autograd.grad(self._output, self._input, w, retain_graph=True)[0]

    def jvp(self, v: Tensor) -> Tensor:
        """Jv, shaped as g(y). Jᵀw is linear in w, so the gradient of ⟨v, Jᵀw⟩ by w is Jv."""
        check_shape(v, self.y)
        w = torch.zeros_like(self.value, requires_grad=True)
        pulled, = torch.autograd.grad(self._output, self._input, w, create_graph=True)
        if not pulled.requires_grad:  # plain rounding: J is 0
            return torch.zeros_like(self.value)
        return torch.autograd.grad(pulled, w, v)[0]


def column_norms(g: Synthesis, y: Tensor, probes: int = 16) -> Tensor:
    r"""How much each channel c of y moves the image, :math:`\|J_c\|_F^2` for its columns of J.

    Hutchinson's estimator: with random signs w, :math:`E\,(J^Tw)_i^2` is the squared norm of
    column i, so one VJP serves all channels. Their sum is :math:`\|J\|_F^2 = \sum_i \sigma_i^2`.

    Shapes: y (B, C, ...) -> (C,).

    >>> column_norms(lambda y: y * torch.tensor([[1., 2.]]), torch.ones(1, 2)).tolist()
    [1.0, 4.0]
    """
    if y.dim() < 2:
        raise AINNError(f"y needs a batch and a channel dimension, got {tuple(y.shape)}")
    J = Jacobian(g, y)
    squares = [J.vjp(w).square() for w in random_signs(J.value, probes)]
    return torch.stack(squares).mean(0).transpose(0, 1).flatten(1).sum(1)


def power_iteration(g: Synthesis, y: Tensor, iterations: int = 200) -> float:
    r""":math:`\sigma_{\max}(J)`, approached from below by :math:`v \leftarrow J^TJv / \|v\|`.

    >>> round(power_iteration(lambda y: y * torch.tensor([1., 5., 2.]), torch.ones(3)), 6)
    5.0
    """
    J = Jacobian(g, y)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(J.y)
    for _ in range(iterations):
        v = J.vjp(J.jvp(v / v.norm().clamp_min(1e-30)))
    return math.sqrt(v.norm().item())  # v is JᵀJ times a vector of length 1


@dataclass(frozen=True)
class Prediction:
    """E D ≈ D₀ + linear term, mean squared errors per value of x."""

    zero: float | None  #: D₀ = ‖g(y) − x‖²/d_x; None without x
    linear: float
    standard_error: float  #: of ``linear``

    @property
    def total(self) -> float:
        """D₀ + linear term; D₀ counts as 0 without x."""
        return (self.zero or 0.0) + self.linear


def predicted_distortion(g: Synthesis, y: Tensor, step: Step, probes: int = 16,
                         x: Tensor | None = None, seed: int = 0) -> Prediction:
    r"""Predicts the distortion of g(y + n) for independent uniform noise n of steps Δ:

    .. math:: E\,D \approx D_0 + \frac{1}{12\,d_x}\sum_c \Delta_c^2\,\|J_c\|_F^2.

    ``step`` is Δ, see `per_channel`; x is the original, without which D₀ is not computed.

    >>> double = predicted_distortion(lambda y: 2 * y, torch.zeros(1, 3), step=0.5)
    >>> abs(double.total - 2**2 * 0.5**2 / 12) < 1e-6
    True
    """
    J = Jacobian(g, y)
    zero = None if x is None else mean_square(J.value - check_shape(x, J.value))
    deltas = per_channel(step, J.y)
    pulled = (deltas * J.vjp(w) for w in random_signs(J.value, probes, seed))
    samples = torch.stack([v.square().sum() for v in pulled]) / 12 / J.value.numel()
    return Prediction(zero, samples.mean().item(), samples.std().item() / math.sqrt(probes))


def per_channel(step: Step, y: Tensor) -> Tensor:
    """Step sizes, one number or (C,) or what broadcasts to y, in the shape of y, (B, C, ...).

    Raises AINNError when they do not fit y, or one of them is negative or not finite.
    """
    step = torch.as_tensor(step, dtype=y.dtype, device=y.device)
    if step.dim() == 1 and y.dim() > 1:
        step = step.reshape(-1, *[1] * (y.dim() - 2))
    if not torch.isfinite(step).all() or (step < 0).any():
        raise AINNError("a step must be a finite number, 0 or more")
    try:
        return step.expand(y.shape)
    except RuntimeError as error:
        raise AINNError(f"give one step, or one for each channel of {tuple(y.shape)}") from error


def random_signs(like: Tensor, probes: int, seed: int = 0) -> Iterator[Tensor]:
    """``probes`` tensors shaped as ``like``, of independent values -1 and 1."""
    if probes < 2:
        raise AINNError(f"a standard error needs 2 probes or more, got {probes}")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(probes):
        yield (2 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like)


def check_shape(v: Tensor, like: Tensor) -> Tensor:
    """Returns v, or raises AINNError when its shape is not that of ``like``."""
    if v.shape != like.shape:
        raise AINNError(f"expected the shape {tuple(like.shape)}, got {tuple(v.shape)}")
    return v


def mean_square(v: Tensor) -> float:
    """The mean of v²."""
    return v.square().mean().item()
