r"""Where the distortion of a decoded image comes from: one row for each step of the decoder.

The encoder's own activations :math:`v_k` are the reference: step k of ``g_s`` should turn
:math:`v_{k-1}` into :math:`v_k`. Let :math:`h_k` be the steps that follow it. The error of step k
changes the picture by :math:`\delta_k`, and to first order by :math:`e_k`:

.. math:: \delta_k = h_k(\mathrm{step}_k(v_{k-1})) - h_k(v_k), \qquad
          e_k = J_{h_k}(v_k)\,(\mathrm{step}_k(v_{k-1}) - v_k), \qquad
          \hat x - x = \sum_k \delta_k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AINNError
from ..network import coder
from ..network.model import AINN
from ..network.pdm import Denoise
from ..network.tiles import Maps
from ..network.transforms import TITLES
from .jacobian import Jacobian, mean_square

#: Step of g_s -> the step of g_a that it undoes. Its reference is what enters that one.
UNDOES = {
    "cfrm": "squeeze",
    "inverse_level4": "level4",
    "ms_cfrm": "level4",
    "pdm4": "level4",
    "inverse_level3": "level3",
    "pdm3": "level3",
    "inverse_level2": "level2",
    "pdm2": "level2",
    "inverse_level1": "level1",
    "fdsm_s": "fdsm_d",
}


@dataclass(frozen=True)
class BudgetRow:
    """One row of the budget. All errors are mean squared errors per value of x."""

    name: str  #: "rounding", "gains", or the title of a step
    share: float  #: error with v_{k-1} minus error with v_k; shares add up to the distortion
    linear: float  #: ‖e_k‖²/d_x
    remainder: float  #: ⟨δ_k − e_k, Σ(δ + e)⟩/d_x; remainders add up to distortion − linear_total
    rho: float | None  #: `rho` of a PDM on the decoder's own activations; None for other rows


@dataclass(frozen=True)
class ErrorBudget:
    """The distortion of one decoded image, exactly and to first order."""

    distortion: float  #: measured, of g_s(ŷ), not clamped
    rows: tuple[BudgetRow, ...]
    cross: float  #: sum of ⟨e_k, e_l⟩/d_x over all k ≠ l

    @property
    def linear_total(self) -> float:
        """The distortion to first order, ‖Σe‖²/d_x: the linear parts of all rows, and ``cross``."""
        return sum(row.linear for row in self.rows) + self.cross


def rho(reference: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    r"""The part ρ of an error that a denoiser removes, and its gain γ.

    .. math:: \rho = 1 - \|\mathrm{after}/\gamma - v\| \,/\, \|\mathrm{before} - v\|, \qquad
              1/\gamma = \langle\mathrm{after}, v\rangle \,/\, \|\mathrm{after}\|^2.

    γ gives the largest ρ: a change of scale is no error, since later steps undo it. ρ is 1 for a
    perfect denoiser, and negative for one that adds to the error.

    All tensors have one shape; ``reference`` is v, the values without error.

    >>> v = torch.tensor([3., 4.])
    >>> rho(v, before=v + 1, after=2 * v)
    (1.0, 2.0)
    """
    inverse_gain = (after * reference).sum() / after.square().sum().clamp_min(1e-30)
    left = (inverse_gain * after - reference).norm() / (before - reference).norm()
    return 1 - left.item(), (1 / inverse_gain).item()


@torch.no_grad()
def error_budget(model: AINN, x: Tensor, quality: float | None = None) -> ErrorBudget:
    """Takes the distortion of the decoder apart, step by step.

    Two rows come before those of ``g_s``: *rounding* leads from ŷ to y g g', and *gains* from there
    to y, since the inverse gain g' is not 1/g. Tied inverse levels have rows of 0.

    Args:
        x: (1, 3, H, W) in [0, 1], H and W multiples of 16, in the model's dtype. More than one
            image raises AINNError.
        quality: from 1 to 8; None is the default.
    """
    if x.dim() != 4 or x.shape[0] != 1:
        raise AINNError(f"one image (1, 3, H, W) at a time, got {tuple(x.shape)}")
    parts = _parts(model, x, quality)
    images = [part.image for part in parts] + [x]
    errors = [mean_square(image - x) for image in images]
    linear = sum(part.linear for part in parts)
    both = images[0] - x + linear
    rows = []
    for k, part in enumerate(parts):
        share = errors[k] - errors[k + 1]
        not_linear = images[k] - images[k + 1] - part.linear
        remainder = (not_linear * both).mean().item()
        rows.append(BudgetRow(part.name, share, mean_square(part.linear), remainder, part.rho))
    cross = mean_square(linear) - sum(row.linear for row in rows)
    return ErrorBudget(errors[0], tuple(rows), cross)


@dataclass(frozen=True)
class _Part:
    name: str
    image: Tensor  #: h_k(step_k(v_{k-1}))
    linear: Tensor  #: e_k
    rho: float | None


def _parts(model: AINN, x: Tensor, quality: float | None) -> list[_Part]:
    y = model.g_a(x)
    gain, inverse_gain, _ = model.gains(quality)
    scaled = y * gain * inverse_gain
    y_hat = coder.encode_latent(model, y, quality).y_hat.to(y)
    first, *others = model.g_s.names
    parts = [_part(model, "rounding", (y_hat,), (scaled,), first),
             _part(model, "gains", (scaled,), (y,), first)]
    reference, decoded = (y,), (y_hat,)
    for (name, step), following in zip(model.g_s.steps, (*others, None), strict=True):
        made = model.g_s.run(reference, start=name, stop=following)
        arrived, decoded = decoded, model.g_s.run(decoded, start=name, stop=following)
        reference = model.g_a.run((x,), stop=UNDOES[name])
        reference += made[len(reference):]  # before MS-CFRM y is the third map, without any error
        removed = None
        if isinstance(step, Denoise):
            removed, _ = rho(*(torch.cat(maps, dim=1) for maps in (reference, arrived, decoded)))
        parts.append(_part(model, TITLES[name], made, reference, following, removed))
    return parts


def _part(model: AINN, name: str, made: Maps, reference: Maps, following: str | None,
          removed: float | None = None) -> _Part:
    """Decodes what a step made with the steps that follow; None: it is the picture."""
    sizes = [v.shape[1] for v in made]

    def decode(v: Tensor) -> Tensor:
        if following is None:
            return v
        return model.g_s.run(v.split(sizes, dim=1), start=following)[0]

    end, start = torch.cat(made, dim=1), torch.cat(reference, dim=1)
    return _Part(name, decode(end), Jacobian(decode, start).jvp(end - start), removed)
