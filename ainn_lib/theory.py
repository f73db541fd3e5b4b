r"""The theory of an approximately invertible codec, computed: Jacobians, predicted distortion, bounds, error budget.

Most of it takes a *synthesis* g, any differentiable function from one tensor to one tensor: ``model.g_s``, CompressAI's,
a toy. J is its Jacobian at y, :math:`d_x` the number of its outputs. J is never formed, except as a reference.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import entropy
from .errors import AINNError
from .lipschitz import lipschitz_bound, log_determinant  # noqa: F401  (a part of the theory)
from .model import AINN
from .stages import Maps, run_stages

Synthesis = Callable[[Tensor], Tensor]
LARGEST_MATRIX = 2**27  #: entries of a Jacobian that `Jacobian.matrix` still forms (1 GiB in float64)


class Jacobian:
    r"""The linear map :math:`J = \partial g/\partial y` at y, applied without being formed.

    ``jvp(v)`` is :math:`Jv` and ``vjp(w)`` is :math:`J^T w`; ``value`` is g(y). `torch.func` computes both. An
    ``autograd.Function`` in the older style (CompressAI's GDN holds one) is refused by it; then ordinary autograd
    stands in, and Jv comes from differentiating :math:`J^T w`, which is linear in w, once more (slower, the same number).
    Through straight-through rounding both give the derivative that training uses, not that of the staircase.

    Shapes: v as y, w as g(y); any shapes.

    Raises:
        AINNError: when y is no floating-point tensor, g gives no tensor, or v or w has the wrong shape.

    >>> J = Jacobian(lambda y: y**2, torch.tensor([1., 2.]))
    >>> J.jvp(torch.tensor([1., 1.])).tolist(), J.vjp(torch.tensor([0., 1.])).tolist()
    ([2.0, 4.0], [0.0, 4.0])
    """

    def __init__(self, g: Synthesis, y: Tensor):
        if not isinstance(y, Tensor) or not y.is_floating_point() or not y.numel():
            raise AINNError("y must be a floating-point tensor with at least one value")
        self.g, self.y = g, y.detach()
        try:
            self.value, pull = torch.func.vjp(g, self.y)
            self._pull = lambda w: pull(w)[0]
        except RuntimeError:
            start = self.y.clone().requires_grad_()
            with torch.enable_grad():
                value = g(start)
            self._pull = lambda w: torch.autograd.grad(value, start, w, retain_graph=True, materialize_grads=True)[0]
            self.value = value
        if not isinstance(self.value, Tensor):
            raise AINNError(f"g must give one tensor, it gave a {type(self.value).__name__}")
        self.value = self.value.detach()

    def vjp(self, w: Tensor) -> Tensor:
        """Jᵀw, shaped as y."""
        return self._pull(_shaped(w, self.value)).detach()

    def jvp(self, v: Tensor) -> Tensor:
        """Jv, shaped as g(y)."""
        try:
            return torch.func.jvp(self.g, (self.y,), (_shaped(v, self.y),))[1].detach()
        except (RuntimeError, NotImplementedError):  # the second: an operation without forward mode
            start = self.y.clone().requires_grad_()
            with torch.enable_grad():
                value = self.g(start)
                w = torch.zeros_like(value, requires_grad=True)
                pulled, = torch.autograd.grad(value, start, w, create_graph=True, materialize_grads=True)
                return torch.autograd.grad(pulled, w, v, materialize_grads=True)[0].detach()

    def matrix(self) -> Tensor:
        """J itself, (values of g(y), values of y): the reference at small sizes. Its exact σᵢ: ``torch.linalg.svdvals``."""
        rows, columns = self.value.numel(), self.y.numel()
        if rows * columns > LARGEST_MATRIX:
            raise AINNError(f"a Jacobian of {rows} x {columns} is too large to form")
        if columns <= rows:
            return torch.stack([self.jvp(e).flatten() for e in _basis(self.y)], dim=1)
        return torch.stack([self.vjp(e).flatten() for e in _basis(self.value)])


@dataclass(frozen=True)
class Estimate:
    """A mean over random probes."""

    value: float
    standard_error: float  #: of the mean
    probes: int


def frobenius(g: Synthesis, y: Tensor, probes: int = 16, seed: int = 0) -> Estimate:
    r""":math:`\|J\|_F^2 = \sum_i \sigma_i^2`, by random signs v (Hutchinson): :math:`E\,\|Jv\|^2 = \mathrm{tr}(J^TJ)`.

    Through JVPs; where g has fewer outputs than inputs through VJPs, :math:`E\,\|J^Tw\|^2`. Unit: (unit of x / unit of y)².

    >>> frobenius(lambda y: 3 * y, torch.ones(1, 5))
    Estimate(value=45.0, standard_error=0.0, probes=16)
    """
    J = Jacobian(g, y)
    apply, like = (J.jvp, J.y) if J.y.numel() <= J.value.numel() else (J.vjp, J.value)
    return _estimate([apply(v).square().sum() for v in _signs(like, probes, seed)])


@dataclass(frozen=True)
class ColumnNorms:
    r""":math:`\|J_c\|_F^2`, J_c the columns of J that belong to channel c of y."""

    value: Tensor  #: (C,)
    standard_error: Tensor  #: (C,)
    probes: int


def column_norms(g: Synthesis, y: Tensor, probes: int = 16, seed: int = 0) -> ColumnNorms:
    r"""How much each latent channel moves the image: :math:`\|J_c\|_F^2 = E \sum_{i\in c} (J^Tw)_i^2`, w random signs.

    One VJP gives all channels at once. Shapes: y (B, C, ...), channels along dimension 1.

    >>> column_norms(lambda y: y * torch.tensor([[1., 2.]]), torch.ones(1, 2)).value.tolist()
    [1.0, 4.0]
    """
    if y.dim() < 2:
        raise AINNError(f"y needs a batch and a channel dimension, got {tuple(y.shape)}")
    J = Jacobian(g, y)
    samples = torch.stack([J.vjp(w).square().transpose(0, 1).flatten(1).sum(1) for w in _signs(J.value, probes, seed)])
    return ColumnNorms(samples.mean(0), samples.std(0) / math.sqrt(probes), probes)


def power_iteration(g: Synthesis, y: Tensor, iterations: int = 200, tolerance: float = 1e-10, seed: int = 0) -> float:
    r""":math:`\sigma_{\max}(J)` from below: :math:`v \leftarrow J^TJv / \|J^TJv\|` until σ² gains less than ``tolerance``.

    >>> round(power_iteration(lambda y: y * torch.tensor([1., 5., 2.]), torch.ones(3)), 6)
    5.0
    """
    J = Jacobian(g, y)
    v, last = _unit(J.y, seed), 0.0
    for _ in range(iterations):
        v = J.vjp(J.jvp(v))
        square = v.norm().item()  # v had length 1: this tends to σ²
        if square <= last * (1 + tolerance):
            break
        v, last = v / square, square
    return math.sqrt(last)


@dataclass(frozen=True)
class SingularValues:
    """Estimates of σ_max and of the smallest of the min(d_x, d_y) singular values, each with its residual."""

    largest: float  #: never above σ_max
    smallest: float  #: never below σ_min
    largest_residual: float  #: some singular value lies this near to ``largest``
    smallest_residual: float
    steps: int  #: Lanczos steps made


def singular_values(g: Synthesis, y: Tensor, steps: int = 40, seed: int = 0) -> SingularValues:
    r"""Largest and smallest singular value by Lanczos bidiagonalisation :math:`JV = UB` with full reorthogonalisation.

    Exact after min(d_x, d_y) steps. The largest is good long before, the smallest often is not: look at the residual.

    >>> s = singular_values(lambda y: y * torch.tensor([1., 5., 2.]), torch.ones(3))
    >>> round(s.largest, 5), round(s.smallest, 5)
    (5.0, 1.0)
    """
    if steps < 1:
        raise AINNError(f"steps must be 1 or more, got {steps}")
    J = Jacobian(g, y)
    tall = J.y.numel() <= J.value.numel()
    there, back, like = (J.jvp, J.vjp, J.y) if tall else (J.vjp, J.jvp, J.value)
    V, U, diagonal, above = [_unit(like, seed)], [], [], []
    tiny = 1e-13 if y.dtype == torch.float64 else 1e-6
    for step in range(min(steps, like.numel())):
        u = _orthogonal(there(V[-1]), U)
        diagonal.append(u.norm().item())
        if diagonal[-1] <= tiny * max(diagonal):  # a null vector: σ_min is 0
            above.append(0.0)
            break
        U.append(u / diagonal[-1])
        v = _orthogonal(back(U[-1]), V)
        above.append(v.norm().item() if step + 1 < like.numel() else 0.0)
        if above[-1] <= tiny * max(diagonal):  # the whole space that this start can reach
            above[-1] = 0.0
            break
        V.append(v / above[-1])
    bidiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    bidiagonal += torch.diag(torch.tensor(above[:-1], dtype=torch.float64), 1)
    left, sigma, _ = torch.linalg.svd(bidiagonal)
    residual = above[-1] * left[-1].abs()
    return SingularValues(sigma[0].item(), sigma[-1].item(), residual[0].item(), residual[-1].item(), len(diagonal))


# -- expected distortion -----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Prediction:
    """E D ≈ D₀ + linear term, mean squared errors per value of x."""

    zero: float | None  #: D₀ = ‖g(y) − x‖²/d_x; None where x was not given
    linear: float  #: tr(J Σ Jᵀ)/d_x
    standard_error: float  #: of ``linear``
    probes: int

    @property
    def total(self) -> float:
        """D₀ + linear term (D₀ = 0 where x was not given)."""
        return (self.zero or 0.0) + self.linear


def predicted_distortion(g: Synthesis, y: Tensor, step: float | Tensor | Callable[[Tensor], Tensor], probes: int = 16,
                         x: Tensor | None = None, seed: int = 0) -> Prediction:
    r"""What quantization noise of mean 0 will do to the image, to first order, before any is drawn:

    .. math:: E\,D \approx D_0 + \frac{1}{d_x}\mathrm{tr}(J\Sigma J^T),
              \qquad \Sigma = \mathrm{diag}(\Delta_c^2/12):\quad D_0 + \frac{1}{12\,d_x}\sum_c \Delta_c^2\,\|J_c\|_F^2.

    Args:
        step: the steps Δ of independent uniform noise: a number, (C,) for one a channel, or what broadcasts to y. Or, for
            correlated noise, a function that multiplies unit white noise, shaped as y, by a root of Σ.
        x: the original, shaped as g(y); with it D₀ is counted.

    Raises:
        AINNError: for a step that does not fit y or is negative, and for fewer than 2 probes.

    >>> round(predicted_distortion(lambda y: 2 * y, torch.zeros(1, 3), 0.5).total, 6) == round(2**2 * 0.5**2 / 12, 6)
    True
    """
    J = Jacobian(g, y)
    zero = None if x is None else (J.value - _shaped(x, J.value)).square().mean().item()
    if callable(step):
        samples = [J.jvp(_shaped(step(v), J.y)).square().mean() for v in _signs(J.y, probes, seed)]
    else:
        deltas = per_channel(step, J.y)
        samples = [(deltas * J.vjp(w)).square().sum() / 12 / J.value.numel() for w in _signs(J.value, probes, seed)]
    linear = _estimate(samples)
    return Prediction(zero, linear.value, linear.standard_error, probes)


def per_channel(step: float | Tensor, y: Tensor) -> Tensor:
    """Steps Δ, one number, (C,) or broadcastable to y (B, C, ...), as a tensor that broadcasts to y."""
    step = torch.as_tensor(step, dtype=y.dtype, device=y.device)
    if step.dim() == 1 and y.dim() > 1:
        step = step.reshape(-1, *[1] * (y.dim() - 2))
    try:
        fits = torch.broadcast_shapes(step.shape, y.shape) == y.shape
    except RuntimeError:
        fits = False
    if not fits or not torch.isfinite(step).all() or (step < 0).any():
        raise AINNError(f"a step is a finite number above 0, or one for each channel of {tuple(y.shape)}")
    return step


def correlated_branches(deviation: Tensor, correlation: float | Tensor) -> Callable[[Tensor], Tensor]:
    r"""A root of the covariance of noise whose two branches (halves of the channels) agree with correlation ρ:
    :math:`n_L = s_L v_L,\; n_H = s_H(\rho v_L + \sqrt{1-\rho^2}\,v_H)`. For `predicted_distortion`.

    Args:
        deviation: standard deviation of the noise, broadcastable to (B, 2C, ...); Δ/√12 where it is uniform.
        correlation: ρ, one number or broadcastable to one branch (B, C, ...).

    >>> root = correlated_branches(torch.tensor(1.), 1.0)
    >>> root(torch.tensor([[2., 7.]])).tolist()
    [[2.0, 2.0]]
    """
    rho = torch.as_tensor(correlation)
    if not (rho.abs() <= 1).all():
        raise AINNError("a correlation lies from -1 to 1")

    def root(v: Tensor) -> Tensor:
        low, high = v.chunk(2, dim=1)
        return deviation * torch.cat([low, rho * low + (1 - rho**2).sqrt() * high], dim=1)

    return root


def core(model: AINN) -> AINN:
    """The trained core alone as a codec: squeeze (with CFRM), PDM and FDSM off, so that y is u and ``g_s`` inverts ``g_a``.

    It shares the weights of ``model``. Its u has 1536 channels, and it has no entropy model of its own.
    """
    bare = copy.copy(model)
    bare.config = dataclasses.replace(model.config, squeeze=False, ms_cfrm=False, fdsm=False, pdm="none")
    return bare


# -- the error budget --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class StageError:
    """One row of the budget; mean squared errors per value of x."""

    name: str
    hybrid: float  #: what the measured MSE loses when this stage, too, hands on the encoder's own activations
    linear: float  #: ‖J ε‖²/d_x, ε the stage's own error on the encoder's activations, J of all that follows it
    bend: float  #: what the linear total gains when the stage's error passes on exactly, in place of J ε
    rho: float | None  #: ρ_k of a PDM: which part of the error that came in it took away (negative: it added); else None


@dataclass(frozen=True)
class ErrorBudget:
    """Where the distortion of one decoded image comes from."""

    distortion: float  #: measured MSE of g_s(ŷ), not clamped
    stages: tuple[StageError, ...]
    cross: float  #: sum of the products of different stages' linear errors, which the rows leave out

    @property
    def linear_total(self) -> float:
        """The linear prediction of the distortion: all rows and the cross terms. With all bends it is ``distortion``."""
        return sum(stage.linear for stage in self.stages) + self.cross


@torch.no_grad()
def error_budget(model: AINN, x: Tensor, quality: float | None = None) -> ErrorBudget:
    r"""Takes the distortion of the decoder apart, stage by stage.

    The reference behind every stage k is the encoder's own activation v_k (u before level 4, x at the end). Let D_k be
    the MSE when v_k enters what follows stage k. ``hybrid`` is :math:`D_{k-1} - D_k`: it telescopes to the measured
    distortion, :math:`D(\hat y) - 0`. To first order the error is :math:`\hat x - x \approx \sum_k J_k\,\varepsilon_k`
    with :math:`\varepsilon_k = \mathrm{stage}_k(v_{k-1}) - v_k` and J_k at v_k; its squares are ``linear``, its products
    ``cross``. Exactly :math:`\hat x - x = \sum_k \int_0^1 J_k(v_k + t\varepsilon_k)\,\varepsilon_k\,dt`; what the integrals
    change is ``bend``. Rows before the stages: *rounding* (ŷ against y g g') and *gains* (that against y: g' is not 1/g).
    The rows of inverse levels are 0, unless the synthesis has its own.

    For a PDM, :math:`\rho_k = 1 - \|\mathrm{PDM}(\hat v_k)/\gamma - v_k\| / \|\hat v_k - v_k\|` on the decoder's own
    activations, with the γ that makes it largest.

    Args:
        x: (1, 3, H, W) in [0, 1], H and W multiples of 16, in the model's dtype (float64 for exact sums).

    Raises:
        AINNError: for more than one image, or a quality that the model does not take.
    """
    if x.dim() != 4 or x.shape[0] != 1:
        raise AINNError(f"one image (1, 3, H, W) at a time, got {tuple(x.shape)}")
    encoder, maps = [], (x,)
    for stage in model.analysis_stages():
        maps = stage.run(*maps)
        encoder.append(maps)  # x_L and x_H, v_1 ... v_4 = u, y
    (y,) = encoder[-1]
    gain, inverse_gain, _ = model.gains(quality)
    scaled, y_hat = y * gain * inverse_gain, entropy.encode_latent(model, y, quality).y_hat.to(y)
    stages = model.synthesis_stages()
    rows = [("rounding", (y_hat,), (scaled,), stages, None), ("gains", (scaled,), (y,), stages, None)]
    true, decoded, level = (y,), (y_hat,), 4
    for i, stage in enumerate(stages):
        level -= stage.name.startswith("inverse")
        made, arrived, decoded = stage.run(*true), decoded, stage.run(*decoded)
        behind = (x,) if i == len(stages) - 1 else encoder[level]
        true = behind + made[len(behind):]  # MS-CFRM's third map is y itself
        rho = _removed(arrived, decoded, true) if stage.name.startswith("PDM") else None
        rows.append((stage.name, made, true, stages[i + 1:], rho))
    images = [run_stages(rest, made)[0] for _, made, _, rest, _ in rows] + [x]
    hybrid = [(image - x).square().mean().item() for image in images]
    errors = [_first_order(rest, made, true) for _, made, true, rest, _ in rows]
    linear, total = [e.square().mean().item() for e in errors], sum(errors)
    both = total + images[0] - x  # |a|² - |b|² = (a + b)(a - b): what the total lacks falls apart into stages
    bends = [((images[k] - images[k + 1] - e) * both).mean().item() for k, e in enumerate(errors)]
    table = tuple(StageError(row[0], hybrid[k] - hybrid[k + 1], linear[k], bends[k], row[4]) for k, row in enumerate(rows))
    return ErrorBudget(hybrid[0], table, total.square().mean().item() - sum(linear))


def _first_order(rest: list, made: Maps, true: Maps) -> Tensor:
    """J (made − true) of the stages that follow, at ``true``."""
    sizes = [v.shape[1] for v in true]
    true, step = torch.cat(true, dim=1), torch.cat(made, dim=1) - torch.cat(true, dim=1)
    return Jacobian(lambda v: run_stages(rest, v.split(sizes, dim=1))[0], true).jvp(step)


def _removed(before: Maps, after: Maps, true: Maps) -> float:
    before, after, true = (torch.cat(maps[:2], dim=1) for maps in (before, after, true))
    inverse_gamma = (after * true).sum() / after.square().sum()
    return 1 - ((inverse_gamma * after - true).norm() / (before - true).norm()).item()


# -- small parts -------------------------------------------------------------------------------------------------------

def _shaped(v: Tensor, like: Tensor) -> Tensor:
    if v.shape != like.shape:
        raise AINNError(f"expected the shape {tuple(like.shape)}, got {tuple(v.shape)}")
    return v


def _basis(like: Tensor) -> Tensor:
    return torch.eye(like.numel(), dtype=like.dtype, device=like.device).reshape(-1, *like.shape)


def _signs(like: Tensor, probes: int, seed: int):
    if probes < 2:
        raise AINNError(f"a standard error needs 2 probes or more, got {probes}")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(probes):
        yield (2 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like)


def _estimate(samples: list[Tensor]) -> Estimate:
    values = torch.stack(samples)
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(samples)), len(samples))


def _unit(like: Tensor, seed: int) -> Tensor:
    v = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like)
    return v / v.norm()


def _orthogonal(v: Tensor, others: list[Tensor]) -> Tensor:
    for _ in range(2):  # once is not enough in floating point
        for other in others:
            v = v - (v * other).sum() * other
    return v
