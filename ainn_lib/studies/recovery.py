"""What the channel squeeze loses, and how much of it copies, CFRM and the best linear map recover.

``tools/recovery.py`` does it once with the training photos.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .. import paths
from ..errors import AINNError
from ..network import coder
from ..network.entropy_model import QUALITIES
from ..network.model import AINN
from ..network.tiles import Maps
from .activations import as_tensor, psnr_of

RESULTS = paths.RESULTS / "recovery.json"
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
Way = Callable[[Tensor], Maps]  # y or ŷ (1, M, h, w) -> both branches of û (1, 768, h, w)


@torch.no_grad()
def core_output(model: AINN, x: Tensor, quality: float | None = None) -> tuple[Tensor, Tensor]:
    """u (1, 1536, h, w), before the squeeze, and y (1, M, h, w), or ŷ at a quality.

    Raises AINNError for a network without the squeeze, or with MS-CFRM, which needs y again.
    """
    if not model.config.squeeze or model.config.ms_cfrm:
        raise AINNError("recovery is measured on networks with the squeeze and without MS-CFRM")
    maps = model.g_a.run((x,), stop="squeeze")
    y = model.g_a.squeeze(*maps)
    if quality is not None:
        y = coder.encode_latent(model, y, quality).y_hat.to(y)
    return torch.cat(maps, dim=1), y


def plain_copy(y: Tensor) -> Maps:
    """ŷ in all groups of both branches: of all û with equal groups the nearest to u."""
    return (y.repeat(1, 768 // y.shape[1], 1, 1),) * 2


def cfrm_recovery(model: AINN, quality: float | None = None) -> Way:
    """CFRM as a way to recover u; None: from y without rounding, times g g' of quality 8."""
    if quality is not None or not model.config.variable_rate:
        return model.g_s.cfrm
    gain, inverse_gain, _ = model.gains(QUALITIES[1])
    return lambda y: model.g_s.cfrm(y * gain * inverse_gain)


@dataclass(frozen=True)
class LinearRecovery:
    """The affine map û = A · patch(y) + b."""

    weight: Tensor  #: A, (1536, M, k, k): a convolution with zero padding
    bias: Tensor  #: b, (1536,)

    def __call__(self, y: Tensor) -> Maps:
        u_hat = F.conv2d(y, self.weight.to(y), self.bias.to(y), padding="same")
        return u_hat.chunk(2, dim=1)


@dataclass(frozen=True)
class Moments:
    """Sums over latent positions that least squares needs, in float64; they add and subtract.

    P holds k x k patches of y with a 1 appended, n = M k² + 1 values; CP is the plain copy.
    """

    gram: Tensor  #: P Pᵀ, (n, n); its last entry is the number of positions
    cross: Tensor  #: P (U − CP)ᵀ, (n, 1536)
    energy: float  #: ‖U − CP‖²
    k: int

    def __add__(self, other: "Moments") -> "Moments":
        energy = self.energy + other.energy
        return Moments(self.gram + other.gram, self.cross + other.cross, energy, self.k)

    def __sub__(self, other: "Moments") -> "Moments":
        return self + Moments(-other.gram, -other.cross, -other.energy, self.k)

    def solve(self, ridge: float) -> Tensor:
        """(P Pᵀ + ε I)⁻¹ P (U − CP)ᵀ, (n, 1536): what to add to the copy."""
        damping = torch.full_like(self.gram[0], ridge * self.gram.diagonal()[:-1].mean().item())
        damping[-1] = 0  # the constant is free
        return torch.linalg.solve(self.gram + torch.diag(damping), self.cross)

    def error(self, added: Tensor) -> float:
        """Σ‖û − u‖² over these samples; ``added`` is from `solve` of these or other samples."""
        linear = 2 * (added * self.cross).sum().item()
        return self.energy - linear + (added * (self.gram @ added)).sum().item()


@torch.no_grad()
def moments(pairs: Iterable[tuple[Tensor, Tensor]], k: int = 1) -> Moments:
    """The sums over pairs (u, y) from `core_output`, for patches of an odd side k."""
    total = None
    for u, y in pairs:
        patches = F.unfold(y, k, padding=k // 2)[0]  # (M k², h w)
        patches = torch.cat([patches, torch.ones_like(patches[:1])])
        missing = (u - torch.cat(plain_copy(y), dim=1))[0].flatten(1)
        # products in the dtype of y, which is fast; the sum over images in float64
        gram, cross = (patches @ patches.T).double(), (patches @ missing.T).double()
        part = Moments(gram, cross, missing.double().square().sum().item(), k)
        total = part if total is None else total + part
    return total


def linear_recovery(sums: Moments, ridge: float) -> LinearRecovery:
    r"""The affine map of least squared error, a plain copy C where the samples say nothing:

    .. math:: \min_{A, b} \sum \|A\,p + b - u\|^2 + \epsilon\,\|A - C\|^2

    ``ridge`` is ε over the mean diagonal of P Pᵀ; `cross_validation` compares values of it. Each
    of the 1536 channels has M k² + 1 unknowns: take several times as many positions.
    """
    solution, k = sums.solve(ridge).T.float(), sums.k
    weight = solution[:, :-1].unflatten(1, (-1, k, k)).clone()
    channels = torch.arange(len(weight))
    weight[channels, channels % weight.shape[1], k // 2, k // 2] += 1  # C
    return LinearRecovery(weight, solution[:, -1])


def cross_validation(folds: list[Moments], ridges: Iterable[float] = RIDGES) -> dict[float, float]:
    """Ridge -> squared error on folds that were left out of the fit, over that of the plain copy.

    ``folds`` are `moments` of disjoint photos; a photo and its mirror image belong to one.
    """
    whole, errors = sum(folds[1:], folds[0]), {}
    for ridge in ridges:
        left_out = [fold.error((whole - fold).solve(ridge)) for fold in folds]
        errors[ridge] = sum(left_out) / whole.energy
    return errors


@dataclass(frozen=True)
class Recovery:
    """How well one way recovers u, over all images."""

    name: str
    lost: float  #: Σ‖û − u‖² / Σ‖u‖²
    psnr: float  #: dB, mean, when û goes through the rest of the decoder


@torch.no_grad()
def recovery(model: AINN, images: Iterable[Image.Image], ways: dict[str, Way],
             quality: float | None = None) -> tuple[Recovery, ...]:
    """Compare ways to recover u from y, or ŷ at a quality."""
    wrong, decibels, energy = dict.fromkeys(ways, 0.0), {name: [] for name in ways}, 0.0
    for image in images:
        x = as_tensor(image, model)
        u, y = core_output(model, x, quality)
        energy += u.double().square().sum().item()
        for name, way in ways.items():
            maps = way(y)
            wrong[name] += (torch.cat(maps, dim=1) - u).double().square().sum().item()
            (x_hat,) = model.g_s.run(maps, start="inverse_level4")
            decibels[name].append(psnr_of(x_hat, x))
    return tuple(Recovery(name, wrong[name] / energy, sum(values) / len(values))
                 for name, values in decibels.items())


def whole_blocks(image: Image.Image, largest: int = 512) -> Image.Image:
    """The middle of an image, no side above ``largest``, cut to multiples of 16."""
    width, height = (min(side, largest) // 16 * 16 for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
