"""What the channel squeeze throws away, and how much of it each way brings back: copy, CFRM, and the best linear map.

``python -m ainn_lib.recovery PHOTOS --weights tiny`` fits the linear maps on a folder of training photos and writes
figures/data/recovery.json.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import data, entropy, inside
from .errors import AINNError
from .evaluate import compact_json
from .model import AINN
from .provenance import provenance
from .rate import QUALITIES
from .samples import load_photos
from .stages import Maps
from .weights import identity, load_pretrained

RESULTS = Path(__file__).resolve().parent.parent / "figures" / "data" / "recovery.json"
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 4


@torch.no_grad()
def core_output(model: AINN, x: Tensor, quality: float | None = None) -> tuple[Tensor, Tensor]:
    """u (1, 1536, h, w), before the squeeze, and what the decoder gets for it, (1, M, h, w): y, or ŷ at a quality.

    Raises:
        AINNError: for a network without the squeeze, or with MS-CFRM (its later stages want y too).
    """
    if not model.config.squeeze or model.config.ms_cfrm:
        raise AINNError("recovery is measured on networks with the squeeze and without MS-CFRM")
    maps = model.split(x)
    for level in model.levels:
        maps = level(*maps)
    (y,) = model.channel_squeeze(*maps)
    return torch.cat(maps, dim=1), y if quality is None else entropy.encode_latent(model, y, quality).y_hat.to(y)


def plain_copy(y: Tensor) -> Maps:
    """ŷ copied to all groups of both branches: what stands in for CFRM. Of all û made of equal groups the nearest to u."""
    return (y.repeat(1, 768 // y.shape[1], 1, 1),) * 2


# -- the linear optimum ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearRecovery:
    """The affine map from a neighbourhood of y to u of least squared error: û = A · patch(y) + b."""

    weight: Tensor  #: A, (1536, M, k, k): a convolution, zero padding
    bias: Tensor  #: b, (1536,)
    samples: int  #: latent positions that it was fitted on

    def __call__(self, y: Tensor) -> Maps:
        u = F.conv2d(y, self.weight.to(y), self.bias.to(y), padding=self.weight.shape[-1] // 2)
        return u.chunk(2, dim=1)


@dataclass(frozen=True)
class Moments:
    """All that least squares has to know of some samples: sums over latent positions, in float64. They add and subtract."""

    gram: Tensor  #: P Pᵀ, of k x k patches p with a 1 appended, (M k² + 1, M k² + 1)
    cross: Tensor  #: P (U − CP)ᵀ, (M k² + 1, 1536): what the plain copy leaves to be explained
    energy: float  #: ‖U − CP‖²
    samples: int
    k: int

    def __add__(self, other: "Moments", sign: int = 1) -> "Moments":
        return Moments(self.gram + sign * other.gram, self.cross + sign * other.cross,
                       self.energy + sign * other.energy, self.samples + sign * other.samples, self.k)

    def __sub__(self, other: "Moments") -> "Moments":
        return self.__add__(other, -1)

    def solve(self, ridge: float) -> Tensor:
        """What is to be added to the copy: (P Pᵀ + ε I)⁻¹ P (U − CP)ᵀ, (M k² + 1, 1536), ε in mean diagonals."""
        damping = torch.full((len(self.gram),), ridge * self.gram.diagonal()[:-1].mean().item(), dtype=self.gram.dtype)
        damping[-1] = 0  # the constant is free
        return torch.linalg.solve(self.gram + torch.diag(damping), self.cross)

    def error(self, added: Tensor) -> float:
        """Σ‖û − u‖² over these samples when ``added`` acts, from `solve` of the same samples or of others."""
        return self.energy - 2 * (added * self.cross).sum().item() + (added * (self.gram @ added)).sum().item()


@torch.no_grad()
def moments(pairs: Iterable[tuple[Tensor, Tensor]], k: int = 1) -> Moments:
    """The sums over what `core_output` returns for each image; ``k``: odd side of the neighbourhood.

    Raises:
        AINNError: for no pairs or an even k.
    """
    if k < 1 or k % 2 == 0:
        raise AINNError(f"k must be odd and at least 1, got {k}")
    parts = None
    for u, y in pairs:
        patches = F.unfold(y, k, padding=k // 2)[0]  # (M k², h w)
        patches = torch.cat([patches, torch.ones_like(patches[:1])])
        missing = (u - torch.cat(plain_copy(y), dim=1))[0].flatten(1)
        # each image in the dtype of y, which is fast; the sum over images in float64
        part = Moments((patches @ patches.T).double(), (patches @ missing.T).double(),
                       missing.double().square().sum().item(), patches.shape[1], k)
        parts = part if parts is None else parts + part
    if parts is None:
        raise AINNError("a linear recovery needs images to be fitted on")
    return parts


def linear_recovery(sums: Moments, ridge: float) -> LinearRecovery:
    r"""Fits û = A · patch(y) + b by the normal equations: the yardstick for every recovery of that support.

    .. math:: \min_{A, b} \sum \|A\,p + b - u\|^2 + \epsilon\,\|A - C\|^2, \qquad
              A = C + (U - CP) P^T (P P^T + \epsilon I)^{-1}

    C is the plain copy: what the samples cannot determine stays a copy. There are M k² + 1 unknowns for each of the 1536
    channels; take several times as many latent positions (one for each 16x16 pixels).

    Args:
        ridge: ε over the mean diagonal of P Pᵀ; `cross_validation` chooses it.
    """
    solved, M = sums.solve(ridge).T.float(), (len(sums.gram) - 1) // sums.k**2
    weight, channels = solved[:, :-1].reshape(-1, M, sums.k, sums.k).clone(), torch.arange(len(solved))
    weight[channels, channels % M, sums.k // 2, sums.k // 2] += 1  # C
    return LinearRecovery(weight, solved[:, -1], sums.samples)


def cross_validation(folds: list[Moments], ridges: Iterable[float] = RIDGES) -> dict[float, float]:
    """Ridge -> squared error on folds that were left out of the fit, over that of the plain copy; below 1 it generalises.

    Args:
        folds: `moments` of disjoint groups of photos; a photo and its mirror image belong to one group.

    Raises:
        AINNError: for fewer than two folds.
    """
    if len(folds) < 2:
        raise AINNError("cross-validation needs at least two folds")
    whole = sum(folds[1:], folds[0])
    return {ridge: sum(fold.error((whole - fold).solve(ridge)) for fold in folds) / whole.energy for ridge in ridges}


# -- the comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recovery:
    """How well one way brings the squeezed channels back; means over the images."""

    name: str
    lost: float  #: Σ‖û − u‖² / Σ‖u‖²: the share of u's energy that is missing or wrong
    psnr: float  #: dB, when û goes through the rest of the trained decoder


@torch.no_grad()
def recovery(model: AINN, images: Iterable[Image.Image], ways: dict, quality: float | None = None) -> tuple[Recovery, ...]:
    """Compares ways to get u back from its squeezed latent, on images.

    Args:
        ways: name -> function of y (1, M, h, w) that returns both branches (1, 768, h, w); for instance `plain_copy`,
            ``model.cfrm`` and a `LinearRecovery`.
        quality: as `core_output` takes it.

    Raises:
        AINNError: for no images, and as `core_output`.
    """
    rest, totals, count = model.synthesis_stages()[1:], {name: [0.0, 0.0] for name in ways}, 0
    whole = 0.0
    for image in images:
        x = inside.as_tensor(image, model)
        u, y = core_output(model, x, quality)
        count, whole = count + 1, whole + u.double().square().sum().item()
        for name, way in ways.items():
            maps = way(y)
            totals[name][0] += (torch.cat(maps, dim=1) - u).double().square().sum().item()
            for stage in rest:
                maps = stage.run(*maps)
            totals[name][1] += inside.psnr_of(maps[0], x)
    if not count:
        raise AINNError("there are no images to measure")
    return tuple(Recovery(name, wrong / whole, psnr / count) for name, (wrong, psnr) in totals.items())


def whole_blocks(image: Image.Image, largest: int = 512) -> Image.Image:
    """The middle of an image, no side above ``largest``, cut to multiples of 16."""
    width, height = (min(side, largest) // 16 * 16 for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def trained(model: AINN, quality: float | None = None) -> Callable[[Tensor], Maps]:
    """CFRM as a way to get u back. Without rounding it gets y g g' of the best quality, the scale that it knows."""
    if quality is not None or not model.config.variable_rate:
        return model.cfrm
    gain, inverse_gain, _ = model.gains(QUALITIES[1])
    return lambda y: model.cfrm(y * gain * inverse_gain)


def study(weights: str, photos: list[Image.Image], quality: float | None) -> dict:
    """Linear maps fitted on ``photos``, ridge by cross-validation among them; all ways measured on the embedded photos."""
    model = load_pretrained(weights)
    ways, fits = {"plain copy": plain_copy, "CFRM": trained(model, quality)}, {}
    folds: dict[int, list[Moments]] = {1: [], 3: []}
    for i in range(FOLDS):
        pairs = [core_output(model, inside.as_tensor(whole_blocks(photo), model), quality) for photo in photos[i::FOLDS]]
        for k in folds:
            folds[k].append(moments(pairs, k))
    for k, parts in folds.items():
        errors, whole, name = cross_validation(parts, RIDGES), sum(parts[1:], parts[0]), f"linear, {k}×{k}"
        ridge = min(errors, key=errors.get)
        ways[name] = linear_recovery(whole, ridge)
        fits[name] = {"ridge": ridge, "samples": whole.samples, "unknowns": len(whole.gram),
                      "held_out": {str(r): error for r, error in errors.items()}}
    images = [whole_blocks(data.photo(name)) for name in data.EMBEDDED]
    return {"weights": weights, "identity": identity(model), "quality": quality, "fitted_on": len(photos), "folds": FOLDS,
            "linear": fits, "measured": [asdict(r) for r in recovery(model, images, ways, quality)]}


def main(arguments: list[str] | None = None) -> int:
    """Fit, measure and write `RESULTS`."""
    parser = argparse.ArgumentParser(prog="python -m ainn_lib.recovery", description=__doc__.split("\n\n")[0])
    parser.add_argument("photos", help="data set or folder to fit on")
    parser.add_argument("--weights", nargs="+", default=["tiny"])
    parser.add_argument("--count", type=int, default=64, help="photos to fit on, evenly spaced by name (default 64)")
    given = parser.parse_args(arguments)
    try:
        if given.count < 1:
            raise AINNError(f"the number of photos must be at least 1, got {given.count}")
        names, tensors = load_photos(given.photos, smallest=256)
        step = max(1, len(names) // given.count)
        photos = [Image.fromarray(t.permute(1, 2, 0).numpy()) for t in tensors[::step][: given.count]]
        del tensors
        results = [study(weights, photos, quality) for weights in given.weights for quality in (None, 4.0)]
    except AINNError as error:
        print(f"recovery: {error}", file=sys.stderr)
        return 2
    RESULTS.write_text(compact_json({"source": "measured here", "fitted": names[::step][: given.count],
                                     "evaluated": list(data.EMBEDDED), **provenance(), "results": results}))
    print(f"{RESULTS.name}: {', '.join(given.weights)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
