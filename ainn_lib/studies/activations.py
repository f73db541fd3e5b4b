"""What FDSM and PDM do to a photo: frequency maps, and the errors before and after each PDM."""

from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..codec.coding import file_bytes
from ..codec.images import prepare, to_pixels, to_tensor
from ..errors import AINNError
from ..measure.metrics import psnr
from ..network import coder
from ..network.model import AINN
from ..network.tiles import Maps, as_maps
from ..network.transforms import Transform
from ..style import figure_style
from ..theory.error_budget import rho

LEVELS = (4, 3, 2)  #: the levels whose inverse is followed by a PDM, in the decoder's order


def as_tensor(image: Image.Image, model: AINN) -> Tensor:
    """A Pillow image as (1, 3, H, W) in [0, 1], in the model's dtype; no padding.

    Raises AINNError for a side that is no multiple of 16.
    """
    if image.width % 16 or image.height % 16:
        size = f"{image.width}x{image.height}"
        raise AINNError(f"crop the image to multiples of 16 pixels; it has {size}")
    return to_tensor(np.asarray(image.convert("RGB"))).to(model.entropy_bottleneck.quantiles)


def psnr_of(x_hat: Tensor, x: Tensor) -> float:
    """PSNR in dB of the 8-bit pictures of two tensors (1, 3, H, W); inf where they are equal."""
    return psnr(*(Image.fromarray(to_pixels(v)) for v in (x, x_hat)))


@dataclass(frozen=True)
class Coded:
    """One image and its latent, as a file holds it."""

    x: Tensor  #: (1, 3, H, W) in [0, 1]
    y_hat: Tensor  #: ŷ, (1, M, h, w)
    unrounded: Tensor  #: the same latent without rounding, y g g'
    step: Tensor  #: Δ of each channel of ŷ, g', (1, M, 1, 1); (1,) on a fixed-rate network
    bytes: int  #: of the file
    entering: dict[int, Maps]  #: level k = 4, 3, 2 -> v_k in the encoder: two branches (1, C, h, w)

    @property
    def bpp(self) -> float:
        """Bits per pixel of the file."""
        return 8 * self.bytes / self.x[0, 0].numel()


class Analysed(NamedTuple):
    """One image in the encoder, which is the same for every quality."""

    x: Tensor  #: (1, 3, H, W) in [0, 1]
    y: Tensor  #: (1, M, h, w), without a gain
    entering: dict[int, Maps]  #: as in `Coded`


@torch.no_grad()
def analysed(model: AINN, image: Image.Image) -> Analysed:
    """Run the analysis. Raises AINNError as `as_tensor`."""
    x = as_tensor(image, model)
    seen, y = _run(model.g_a, x)
    return Analysed(x, y, {level: seen[f"level{level}"][0] for level in LEVELS})


@torch.no_grad()
def coded(model: AINN, image: Image.Image, quality: float | None = None,
          done: Analysed | None = None) -> Coded:
    """Code an image at a quality, 1 to 8; None: the default. Raises AINNError as `as_tensor`.

    ``done``: its `analysed`, where that is at hand.
    """
    x, y, entering = done or analysed(model, image)
    quality = model.quality_of(quality)
    gain, inverse_gain, _ = model.gains(quality)
    latent = coder.encode_latent(model, y, quality)
    size = len(file_bytes(prepare(image), model, quality, latent.data))
    return Coded(x, latent.y_hat.to(y), y * gain * inverse_gain, inverse_gain, size, entering)


Seen = dict[str, tuple[Maps, Maps]]  #: name of each step -> its inputs and its outputs


def _run(transform: Transform, x: Tensor, options: dict[str, tuple] | None = None
         ) -> tuple[Seen, Tensor]:
    """Run all steps, some with more arguments: what each of them saw, and the last output."""
    seen, maps = {}, (x,)
    for name, step in transform.steps:
        before, maps = maps, as_maps(step(*maps, *(options or {}).get(name, ())))
        seen[name] = before, maps
    return seen, maps[0]


@torch.no_grad()
def decode(
    model: AINN, y_hat: Tensor, strengths: tuple[float, float, float] = (1, 1, 1)
) -> tuple[Seen, Tensor]:
    """Decode ŷ (1, M, h, w): name of each step -> its (inputs, outputs), and x̂ (1, 3, 16h, 16w).

    ``strengths`` of the PDMs of levels 4, 3 and 2 scale net(v); 1 is the trained module.
    """
    options = {f"pdm{level}": (value,) for level, value in zip(LEVELS, strengths, strict=True)}
    return _run(model.g_s, y_hat, options)


def band_errors(error: Tensor, bands: int = 16) -> tuple[np.ndarray, np.ndarray]:
    r"""A mean squared error by spatial frequency; the parts add up to it (Parseval).

    .. math:: D_b = \frac{1}{C (HW)^2} \sum_c \sum_{f \in b} |\mathrm{FFT}(e_c)(f)|^2

    The error is (1, C, H, W). Bands are rings of equal width from 0 to ½ cycle per pixel; the last
    one has the corners too. Returns the middle of each band in cycles per pixel, and D_b.
    """
    power = torch.fft.fft2(error.double(), norm="forward").abs().square().mean((0, 1)).numpy()
    ring = np.minimum((_frequencies(error) * 2 * bands).astype(int), bands - 1)
    parts = np.bincount(ring.ravel(), power.ravel(), minlength=bands)
    return (np.arange(bands) + 0.5) / (2 * bands), parts


def low_pass(x: Tensor, cut: float) -> Tensor:
    """x (B, C, H, W) without the spatial frequencies above ``cut`` cycles per pixel."""
    kept = torch.from_numpy(_frequencies(x) <= cut).to(x.device)
    return torch.fft.ifft2(torch.fft.fft2(x) * kept).real


def _frequencies(x: Tensor) -> np.ndarray:
    """Cycles per pixel of each entry of ``fft2(x)``, (H, W)."""
    vertical, horizontal = (np.fft.fftfreq(side) for side in x.shape[2:])
    return np.hypot(vertical[:, None], horizontal)


@dataclass(frozen=True)
class FrequencyMaps(Coded):
    """What FDSM makes of one image: branches (1, 3, H, W) about in [0, 1], and the mask."""

    low: Tensor  #: x_L
    high: Tensor  #: x_H
    low_hat: Tensor  #: x̂_L
    high_hat: Tensor  #: x̂_H
    mask: Tensor  #: m, (1, 1, H, W) in (0, 1)

    def joined(self, m: float | Tensor | None = None) -> Tensor:
        """x̂ = m x̂_L + (1 − m) x̂_H, (1, 3, H, W); None: with the trained mask."""
        m = self.mask if m is None else m
        return m * self.low_hat + (1 - m) * self.high_hat

    def psnr(self, m: float | Tensor | None = None) -> float:
        """PSNR in dB of the 8-bit picture of `joined`."""
        return psnr_of(self.joined(m), self.x)


@torch.no_grad()
def frequency_maps(model: AINN, image: Image.Image, quality: float | None = None,
                   done: Analysed | None = None) -> FrequencyMaps:
    """`FrequencyMaps` of an image. Raises AINNError for a network without FDSM, and as `coded`."""
    if not model.config.fdsm:
        raise AINNError("this network has no FDSM: its branches both receive the image")
    start, join = coded(model, image, quality, done), model.g_s.fdsm_s
    branches = model.g_a.run((start.x,), stop="level1")
    decoded = model.g_s.run((start.y_hat,), stop="fdsm_s")
    mask = torch.full_like(start.x[:, :1], 0.5)
    if hasattr(join, "mask"):  # `without(model, "FDSM-S")` puts a plain mean there
        mask = join.mask(*decoded)
    low, high, low_hat, high_hat = (v + model.config.input_offset for v in (*branches, *decoded))
    return FrequencyMaps(**vars(start), low=low, high=high, low_hat=low_hat, high_hat=high_hat,
                         mask=mask)


@dataclass(frozen=True)
class LevelError:
    """The error around the PDM of one level, both branches concatenated."""

    level: int
    rho: float  #: ρ_k = 1 − ‖after‖ / ‖before‖
    rho_of_gain: float  #: ρ_k of γ alone: shrinking a noisy signal lessens its error too
    gain: float  #: γ
    reference: Tensor  #: v_k, (1, 2C, h, w)
    before: Tensor  #: v̂_k − v_k
    after: Tensor  #: PDM(v̂_k)/γ − v_k

    def size(self, which: str = "before") -> float:
        """‖before‖ or ‖after‖ over ‖v_k‖."""
        return (getattr(self, which).norm() / self.reference.norm()).item()

    def map(self, which: str = "before") -> Tensor:
        """Root mean square over channels of ``before`` or ``after``, (h, w)."""
        return getattr(self, which)[0].square().mean(0).sqrt()


def level_error(level: int, reference: Maps, before: Maps, after: Maps) -> LevelError:
    """Compare a PDM's input and output with a reference; each a tuple of maps (1, C, h, w)."""
    v, before, after = (torch.cat(maps, dim=1) for maps in (reference, before, after))
    (removed, gain), (by_gain, _) = rho(v, before, after), rho(v, before, before)
    return LevelError(level, removed, by_gain, gain, v, before - v, after / gain - v)


@dataclass(frozen=True)
class Denoising:
    """One decoded image, with the errors at levels 4, 3 and 2."""

    levels: tuple[LevelError, ...]
    x_hat: Tensor  #: (1, 3, H, W), not clamped
    psnr: float  #: dB, of the 8-bit picture


@torch.no_grad()
def denoising(
    model: AINN, start: Coded, reference: str = "encoder",
    strengths: tuple[float, float, float] = (1, 1, 1), delta: float | None = None,
) -> Denoising:
    """Decode an image and compare each PDM's input and output with a reference.

    Args:
        reference: "encoder": its own v_k. "unquantized": what the same decoder makes of y g g'
            without rounding, so that the error is that of rounding only.
        strengths: of the PDMs of levels 4, 3 and 2, in the reference too.
        delta: None decodes ŷ; a number, y g g' with uniform noise of so many trained steps.

    Raises AINNError for a network without PDM or tied levels.
    """
    if model.config.pdm == "none" or not model.config.tied:
        raise AINNError("this network has no PDM behind the inverse of its encoder")
    y_hat = start.y_hat
    if delta is not None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(y_hat.shape, generator=generator, dtype=torch.float64) - 0.5
        y_hat = start.unrounded + delta * start.step * noise.to(y_hat)
    seen, x_hat = decode(model, y_hat, strengths)
    if reference == "encoder":
        true = start.entering
    else:
        clean, _ = decode(model, start.unrounded, strengths)
        true = {level: clean[f"pdm{level}"][0] for level in LEVELS}
    levels = [level_error(level, true[level], *seen[f"pdm{level}"]) for level in LEVELS]
    return Denoising(tuple(levels), x_hat, psnr_of(x_hat, start.x))


def panels(pictures: dict[str, Tensor], tops: dict[str, float] | None = None) -> Figure:
    """Pictures (1, 3, H, W) and maps (h, w) by their titles, in two rows of four.

    ``tops``: title -> upper end of a map's colours, which begin at 0; others have their own range.
    """
    tops = tops or {}
    with figure_style():
        figure, axes = plt.subplots(2, 4, figsize=(7.16, 3.8), layout="constrained")
        for ax, (title, values) in zip(axes.flat, pictures.items(), strict=True):
            shown = to_pixels(values) if values.dim() == 4 else values
            limits = {"vmin": 0, "vmax": tops[title]} if title in tops else {}
            drawn = ax.imshow(shown, interpolation="nearest", **limits)
            ax.set_title(title)
            ax.set_axis_off()
            if values.dim() == 2:
                figure.colorbar(drawn, ax=ax, shrink=0.7)
    return figure
