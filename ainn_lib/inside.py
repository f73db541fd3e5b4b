"""What FDSM and PDM do to a photo, measured: frequency maps, and the error at every level before and after the denoiser."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from . import codec, curves, entropy
from .errors import AINNError
from .fdsm import average_pool
from .model import AINN
from .stages import Maps

LEVELS = (4, 3, 2)  #: the levels behind whose inverse a PDM stands, in the decoder's order
AMPLIFIED = 10  #: differences that are too faint to see are drawn so many times as strong
REFERENCES = ("encoder", "unquantized")


def as_tensor(image: Image.Image, model: AINN) -> Tensor:
    """A Pillow image as (1, 3, H, W) in [0, 1], in the model's dtype.

    Raises:
        AINNError: when a side is no multiple of 16: maps of padded images would count pixels that no one sees.
    """
    if image.width % 16 or image.height % 16:
        raise AINNError(f"crop the image to multiples of 16 pixels; it has {image.width}x{image.height}")
    return codec.to_tensor(np.asarray(image.convert("RGB"))).to(model.entropy_bottleneck.quantiles)


def picture(v: Tensor) -> np.ndarray:
    """(1, 3, H, W) with values in [0, 1] -> (H, W, 3) uint8, clipped and rounded as the decoder does it."""
    return v[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).to(torch.uint8).cpu().numpy()


def decode(model: AINN, y_hat: Tensor,
           strengths: tuple[float, float, float] = (1, 1, 1)) -> tuple[dict[str, tuple[Maps, Maps]], Tensor]:
    """The synthesis, with what goes into and comes out of each of its stages.

    Args:
        y_hat: (1, M, h, w).
        strengths: of the PDMs of levels 4, 3 and 2; each scales net(v) alone, 1 is the trained module (`PDM.forward`).

    Returns:
        Stage name -> (maps in, maps out), and x̂ (1, 3, 16h, 16w), not clamped.
    """
    seen, maps = {}, (y_hat,)
    for stage in model.synthesis_stages():
        arrived = maps
        if stage.name.startswith("PDM"):
            position = LEVELS.index(int(stage.name.split()[1]))
            maps = tuple(pdm(v, strengths[position]) for pdm, v in zip(model.pdm[position], maps, strict=True))
        else:
            maps = stage.run(*maps)
        seen[stage.name] = (arrived, maps)
    return seen, maps[0]


@dataclass(frozen=True)
class Coded:
    """One image as a file holds it, with what a comparison needs; `coded` makes it once for many decodes."""

    x: Tensor  #: (1, 3, H, W) in [0, 1]
    y_hat: Tensor  #: ŷ, (1, M, h, w)
    unrounded: Tensor  #: the same latent without rounding, y g g'
    step: Tensor  #: Δ of each channel on the scale of ŷ, g', (1, M, 1, 1); (1,) on a fixed-rate network
    bytes: int  #: of the real file

    @property
    def bpp(self) -> float:
        """Bits per pixel of the file."""
        return 8 * self.bytes / self.x[0, 0].numel()


@torch.no_grad()
def coded(model: AINN, image: Image.Image, quality: float | None = None) -> Coded:
    """Codes an image at a quality from 1 to 8; None is the default's, or the one of a fixed-rate network.

    Raises:
        AINNError: for a side that is no multiple of 16, or a quality that the model does not take.
    """
    x, quality = as_tensor(image, model), codec.quality_of(model, quality)
    y = model.g_a(x)
    gain, inverse_gain, _ = model.gains(quality)
    latent = entropy.encode_latent(model, y, quality)
    file = codec.container(codec.prepare(image), model, quality, latent.data)
    return Coded(x, latent.y_hat.to(y), y * gain * inverse_gain, inverse_gain, len(file))


# -- frequencies -------------------------------------------------------------------------------------------------------


def band_errors(error: Tensor, bands: int = 16) -> tuple[np.ndarray, np.ndarray]:
    r"""A mean squared error taken apart by spatial frequency: by Parseval the parts add up to it exactly.

    .. math:: D_b = \frac{1}{C (HW)^2} \sum_c \sum_{f \in b} |\mathrm{FFT}(e_c)(f)|^2, \qquad \sum_b D_b = \mathrm{MSE}

    Args:
        error: (1, C, H, W).
        bands: rings of equal width from 0 to ½ cycle per pixel; the corners of the spectrum beyond belong to the last one.

    Returns:
        The middle of each band in cycles per pixel, and D_b.
    """
    height, width = error.shape[2:]
    power = torch.fft.fft2(error.double()).abs().square().mean((0, 1)).numpy() / (height * width) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    ring = np.minimum((radius * 2 * bands).astype(int), bands - 1)
    return (np.arange(bands) + 0.5) / (2 * bands), np.bincount(ring.ravel(), power.ravel(), minlength=bands)


def low_pass(x: Tensor, cut: float) -> Tensor:
    """x without all spatial frequencies above ``cut`` cycles per pixel, (B, C, H, W) -> the same; x − that is the rest."""
    height, width = x.shape[2:]
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    kept = torch.from_numpy(radius <= cut).to(x.device)
    return torch.fft.irfft2(torch.fft.rfft2(x) * kept, s=(height, width))


def local_energy(x: Tensor, k: int = 7) -> Tensor:
    """High-frequency energy around each pixel: mean over channels and k x k pixels of (x − pool_k x)², borders mirrored.

    Shapes: (B, C, H, W) -> (B, 1, H, W).
    """
    def pool(v: Tensor) -> Tensor:
        inner = k // 2
        return average_pool(F.pad(v, (inner,) * 4, mode="reflect"), k)[:, :, inner:-inner, inner:-inner]

    return pool((x - pool(x)).square().mean(1, keepdim=True)).clamp_min(0)


@dataclass(frozen=True)
class FrequencyMaps:
    """What FDSM makes of one image. Pictures hold values about in [0, 1]; not clamped."""

    x: Tensor  #: (1, 3, H, W)
    low: Tensor  #: x_L, what goes into the low branch, (1, 3, H, W)
    high: Tensor  #: x_H
    low_hat: Tensor  #: x̂_L, what comes out of the low branch, (1, 3, H, W)
    high_hat: Tensor  #: x̂_H
    mask: Tensor  #: m, (1, 1, H, W) in (0, 1)
    energy: Tensor  #: `local_energy` of x, (1, 1, H, W)
    bytes: int  #: of the real file

    @property
    def bpp(self) -> float:
        """Bits per pixel of the file."""
        return 8 * self.bytes / self.x[0, 0].numel()

    @property
    def correlation(self) -> float:
        """Pearson's, of m with log₁₀ of the local high-frequency energy; below 0: detail is taken from the high branch."""
        both = torch.stack([self.mask.flatten(), torch.log10(self.energy.flatten() + 1e-6)])
        return torch.corrcoef(both.double())[0, 1].item()

    def joined(self, m: float | Tensor | None = None) -> Tensor:
        """x̂ = m x̂_L + (1 − m) x̂_H, (1, 3, H, W); with the trained mask where m is None."""
        m = self.mask if m is None else m
        return m * self.low_hat + (1 - m) * self.high_hat

    def psnr(self, m: float | Tensor | None = None) -> float:
        """PSNR in dB of the 8-bit picture that `joined` gives, against x."""
        return psnr_of(self.joined(m), self.x)

    @property
    def best_mask(self) -> float:
        """The constant m of least error: ⟨x − x̂_H, x̂_L − x̂_H⟩ / ‖x̂_L − x̂_H‖². It may lie outside [0, 1]."""
        apart = self.low_hat - self.high_hat
        return ((self.x - self.high_hat) * apart).sum().item() / apart.square().sum().clamp_min(1e-30).item()


@torch.no_grad()
def frequency_maps(model: AINN, image: Image.Image, quality: float | None = None) -> FrequencyMaps:
    """The branches before and behind the codec, and the attention map, for one image at one quality (None: the default).

    Raises:
        AINNError: for a network without FDSM, a side that is no multiple of 16, or a quality that the model does not take.
    """
    if not model.config.fdsm:
        raise AINNError("this network has no FDSM: its branches both receive the image")
    start, offset = coded(model, image, quality), model.config.input_offset
    x, (seen, _) = start.x, decode(model, start.y_hat)
    low_hat, high_hat = seen["FDSM-S"][0]
    # without(model, "FDSM-S") puts a plain mean there
    mask = model.fdsm_s.mask(low_hat, high_hat) if hasattr(model.fdsm_s, "mask") else torch.full_like(x[:, :1], 0.5)
    low, high = (v + offset for v in model.split(x))
    return FrequencyMaps(x, low, high, low_hat + offset, high_hat + offset, mask, local_energy(x), start.bytes)


def psnr_of(x_hat: Tensor, x: Tensor) -> float:
    """PSNR in dB of the 8-bit pictures of two tensors (1, 3, H, W); inf where they are equal."""
    mse = np.mean((picture(x_hat).astype(float) - picture(x)) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


# -- denoising ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LevelError:
    """The error at one level of the decoder before and after its PDM; both branches, one behind the other."""

    level: int
    reference: Tensor  #: v_k, (1, 2C, h, w)
    before: Tensor  #: v̂_k − v_k
    after: Tensor  #: PDM(v̂_k)/γ − v_k
    gain: float  #: γ, for which ``after`` is least

    @property
    def rho(self) -> float:
        """ρ_k = 1 − ‖after‖ / ‖before‖: the part of the error that the PDM removes; below 0 it adds to it."""
        return 1 - (self.after.norm() / self.before.norm()).item()

    @property
    def rho_of_gain(self) -> float:
        """ρ_k if the PDM did nothing and γ alone acted: shrinking a noisy signal lessens its error without any denoising.

        With least squares 1/γ = ⟨v̂, v⟩ / ‖v̂‖². Of ``rho`` only what exceeds this is the work of the net.
        """
        arrived = self.reference + self.before
        shrink = (arrived * self.reference).sum() / arrived.square().sum().clamp_min(1e-30)
        return 1 - ((shrink * arrived - self.reference).norm() / self.before.norm()).item()

    def size(self, which: str = "before") -> float:
        """‖before‖ or ‖after‖ over ‖v_k‖."""
        return (getattr(self, which).norm() / self.reference.norm()).item()

    def map(self, which: str = "before") -> Tensor:
        """Root mean square over channels and branches of ``before`` or ``after``, (h, w)."""
        return getattr(self, which)[0].square().mean(0).sqrt()


def level_error(level: int, reference: Maps, arrived: Maps, left: Maps) -> LevelError:
    r"""Compares a PDM's input v̂ and output with a reference v: 1/γ = ⟨PDM(v̂), v⟩ / ‖PDM(v̂)‖².

    The gain is there because the authors' PDM starts as 1.2 v: a mere change of scale is no error, later stages undo it.

    Shapes: each a tuple of two branches (1, C, h, w).
    """
    v, before, after = (torch.cat(maps[:2], dim=1) for maps in (reference, arrived, left))
    inverse_gamma = (after * v).sum() / after.square().sum().clamp_min(1e-30)
    return LevelError(level, v, before - v, inverse_gamma * after - v, 1 / inverse_gamma.item())


@dataclass(frozen=True)
class Denoising:
    """One image decoded, with the errors at levels 4, 3 and 2."""

    levels: tuple[LevelError, ...]
    x: Tensor  #: (1, 3, H, W)
    x_hat: Tensor  #: (1, 3, H, W), not clamped

    @property
    def psnr(self) -> float:
        """PSNR in dB of the 8-bit picture."""
        return psnr_of(self.x_hat, self.x)


@torch.no_grad()
def activations(model: AINN, x: Tensor) -> dict[int, Maps]:
    """The encoder's own v_k at the place behind inverse level k: level 4, 3, 2 -> two branches (1, C, h, w).

    Inverse level k undoes level k, so behind it the decoder stands where the encoder stood *before* level k.
    """
    maps, kept = model.split(x), {}
    for number, level in enumerate(model.levels, start=1):
        kept[number] = maps
        maps = level(*maps)
    return {number: kept[number] for number in LEVELS}


@torch.no_grad()
def denoising(model: AINN, start: Coded, reference: str = "encoder", strengths: tuple[float, float, float] = (1, 1, 1),
              delta: float | None = None, seed: int = 0) -> Denoising:
    """Decodes an image and compares what goes into and comes out of each PDM with a reference.

    Args:
        start: from `coded`, with the same model.
        reference: "encoder": the encoder's own activation v_k, so that the error holds all that the decoder does not know
            (rounding, squeeze, what earlier PDMs did). "unquantized": what the same decoder hands to that PDM when it starts
            from y g g' without rounding: *quantization only*.
        strengths: of the PDMs of levels 4, 3, 2; the reference is decoded with the same.
        delta: None decodes ŷ. A number decodes y g g' with uniform noise of so many trained steps.

    Raises:
        AINNError: for a network without PDM or tied levels, or an unknown reference.
    """
    if reference not in REFERENCES:
        raise AINNError(f"no reference {reference!r}; there are {', '.join(REFERENCES)}")
    _need_pdm(model)
    y_hat = start.y_hat
    if delta is not None:
        noise = torch.rand(y_hat.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(y_hat) - 0.5
        y_hat = start.unrounded + delta * start.step * noise
    seen, x_hat = decode(model, y_hat, strengths)
    if reference == "encoder":
        true = activations(model, start.x)
    else:
        clean, _ = decode(model, start.unrounded, strengths)
        true = {level: clean[f"PDM {level}"][0] for level in LEVELS}
    levels = (level_error(level, true[level], *seen[f"PDM {level}"]) for level in LEVELS)
    return Denoising(tuple(levels), start.x, x_hat)


@torch.no_grad()
def gaussian_denoising(model: AINN, image: Image.Image, size: float, seed: int = 0) -> tuple[LevelError, ...]:
    """White Gaussian noise on the encoder's own v_k, straight into the PDM: a noise that it never saw in training.

    Args:
        size: deviation of the noise over the root mean square of v_k; above 0.
    """
    _need_pdm(model)
    if not size > 0:
        raise AINNError(f"size must be above 0, got {size}")
    result, generator = [], torch.Generator().manual_seed(seed)
    for position, (level, true) in enumerate(activations(model, as_tensor(image, model)).items()):
        scale = size * torch.cat(true, dim=1).square().mean().sqrt()
        noisy = tuple(v + scale * torch.randn(v.shape, generator=generator).to(v) for v in true)
        cleaned = tuple(pdm(v) for pdm, v in zip(model.pdm[position], noisy, strict=True))
        result.append(level_error(level, true, noisy, cleaned))
    return tuple(result)


def _need_pdm(model: AINN) -> None:
    if model.config.pdm == "none" or not model.config.tied:
        raise AINNError("this network has no PDM behind the inverse of its encoder")


# -- figures -----------------------------------------------------------------------------------------------------------


def pdm_figure(result: Denoising) -> Figure:
    """Figure 7 in our numbering: the error before and after each PDM, by level; one colour scale for each level."""
    with plt.style.context(curves.STYLE):
        figure, axes = plt.subplots(2, len(LEVELS) + 1, figsize=(7.16, 3.7), layout="constrained")
        axes[0, 0].imshow(picture(result.x))
        axes[0, 0].set_title("original")
        axes[1, 0].imshow(picture(result.x_hat))
        axes[1, 0].set_title(f"decoded, {result.psnr:.2f} dB")
        for column, error in zip(axes.T[1:], result.levels, strict=True):
            top = float(np.quantile(error.map("before").numpy(), 0.995))
            for ax, which in zip(column, ("before", "after"), strict=True):
                drawn = ax.imshow(error.map(which).numpy(), vmin=0, vmax=top, interpolation="nearest")
                ax.set_title(f"{which} PDM {error.level}: {100 * error.size(which):.1f} %"
                             + (f"\n$\\rho_{error.level}$ = {error.rho:+.3f}" if which == "after" else ""))
            figure.colorbar(drawn, ax=column, shrink=0.7)
        for ax in axes.flat:
            ax.set_axis_off()
    return figure


def fdsm_figure(maps: FrequencyMaps) -> Figure:
    """Figure 8 in our numbering: what FDSM-D adds to each branch, the branches behind the codec, the attention map."""
    with plt.style.context(curves.STYLE):
        figure, axes = plt.subplots(2, 4, figsize=(7.16, 3.9), layout="constrained")
        panels = ((maps.x, "$x$"), (0.5 + AMPLIFIED * (maps.low - maps.x), f"{AMPLIFIED} ($x_L - x$)"),
                  (0.5 + AMPLIFIED * (maps.high - maps.x), f"{AMPLIFIED} ($x_H - x$)"), (maps.mask, "$m$"),
                  (maps.joined(), f"$\\hat x$, {maps.psnr():.2f} dB"), (maps.low_hat, "$\\hat x_L$"),
                  (maps.high_hat, "$\\hat x_H$"), (torch.log10(maps.energy + 1e-6), "local energy, log$_{10}$"))
        for ax, (values, title) in zip(axes.flat, panels, strict=True):
            drawn = ax.imshow(picture(values) if values.shape[1] == 3 else values[0, 0].numpy(), interpolation="nearest")
            ax.set_title(title)
            ax.set_axis_off()
            if values.shape[1] == 1:
                figure.colorbar(drawn, ax=ax, shrink=0.7)
    return figure
