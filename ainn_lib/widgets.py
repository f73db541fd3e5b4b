"""Explorers: plain functions that return a figure and its numbers, and a thin face of sliders for them.

Each explorer can be called without a kernel's widgets, so a page shows its picture and a test can walk through its whole range.
A move should answer in under 0.3 s: what a slider does not change is kept (latents, references), and pictures stand at fixed
places, since matplotlib's automatic layout takes longer than the network.
"""

import base64
import io
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from . import codec, curves, entropy, inside, theory
from .errors import UNREADABLE, AINNError
from .invertible import Coupling
from .metrics import psnr
from .model import AINN
from .weights import identity

SMALLEST = 16  #: pixels a side of a photo of one's own


@dataclass(frozen=True)
class QualityNumbers:
    """Numbers of `at_quality`."""

    quality: float
    bytes: int  #: of the real file
    bpp: float
    psnr: float  #: dB

    def __str__(self) -> str:
        return f"quality **{self.quality:g}**: {self.bytes:,} bytes, **{self.bpp:.3f} bpp**, **{self.psnr:.2f} dB**"


@dataclass(frozen=True)
class WavefrontNumbers:
    """Numbers of `at_step`."""

    step: int
    steps: int
    batch: int  #: positions coded in this step
    done: int  #: positions coded before it

    def __str__(self) -> str:
        return f"step **{self.step + 1}** of {self.steps}: {self.batch} positions at once, {self.done} before them"


CLAMPS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
DEEPEST = 16


@dataclass(frozen=True)
class DepthNumbers:
    """Numbers of `at_depth`."""

    clamp: float
    depth: int
    float32: float  #: RMS error of the round trip; the input has deviation 1
    float64: float

    def __str__(self) -> str:
        return (f"{self.depth} couplings, clamp {self.clamp:g}: the round trip is off by **{self.float32:.1e}** in float32 "
                f"and by **{self.float64:.1e}** in float64")


@dataclass(frozen=True)
class CurveNumbers:
    """Numbers of `at_curves`."""

    anchor: str  #: title of the first chosen codec; empty: nothing chosen
    rows: tuple[tuple[str, str, str], ...]  #: of every curve drawn: title, origin, BD-rate against the anchor in words
    absent: tuple[str, ...]  #: chosen codecs that have no points there

    def __str__(self) -> str:
        gone = f"\n\nno points here: {', '.join(self.absent)}" if self.absent else ""
        if not self.rows:
            return "nothing to draw: choose a codec" + gone
        lines = [f"| {title} | {origin} | {words} |" for title, origin, words in self.rows]
        return f"| codec | source | BD-rate against {self.anchor} |\n|---|---|---|\n" + "\n".join(lines) + gone


@dataclass(frozen=True)
class DeltaNumbers:
    """Numbers of `at_delta`; mean squared errors."""

    delta: float
    zero: float  #: D₀
    predicted: float  #: D₀ + linear term
    standard_error: float  #: of ``predicted``
    measured: float

    def __str__(self) -> str:
        return (f"Δ = **{self.delta:.3g}** of the trained step: predicted MSE **{self.predicted:.3e}** ± {self.standard_error:.1e}"
                f" ($D_0$ = {self.zero:.1e}), measured **{self.measured:.3e}**,"
                f" ratio **{self.predicted / self.measured:.3f}**")


@lru_cache(maxsize=8)
def _analysed(pixels: bytes, height: int, width: int, model: AINN, weights: str) -> torch.Tensor:
    # the weights' identity is there because a model may be trained on between two calls
    rgb = np.frombuffer(bytearray(pixels), np.uint8).reshape(height, width, 3)
    return codec.analyse(codec.Prepared(rgb, False, None, b"", ()), model)


def latent(image: Image.Image, model: AINN) -> torch.Tensor:
    """y = g_a(x) of an image, (1, M, H/16, W/16), edges repeated to multiples of 16; kept for the last few images."""
    rgb = codec.prepare(image).rgb
    return _analysed(rgb.tobytes(), *rgb.shape[:2], model, identity(model))


def bit_map(image: Image.Image, model: AINN, quality: float | None = None) -> np.ndarray:
    """Bits spent on every 16x16 block of an image, (H/16, W/16), without those of the hyper-latent."""
    return entropy.encode_latent(model, latent(image, model), quality).y_bits.sum(0).numpy()


def _panels(pictures: dict[str, object], width: float = 8, vmax: float | None = None,
            size: tuple[int, int] | None = None) -> Figure:
    """Pictures of one size side by side under their titles; maps (two dimensions) share the colour bar of the last of them.

    Args:
        width: inches.
        vmax: upper end of the colours; None: the largest value.
        size: columns and rows that each picture is drawn as, for maps with fewer values; None: those of the first.
    """
    arrays = [np.asarray(picture) for picture in pictures.values()]
    columns, rows = size or arrays[0].shape[1::-1]
    with_bar = any(a.ndim == 2 for a in arrays)
    side = (width - 0.6 * with_bar) / len(arrays)
    tall = side * rows / columns
    high = tall + 0.3
    figure = plt.figure(figsize=(width, high), layout="none")
    for number, (title, array) in enumerate(zip(pictures, arrays, strict=True)):
        ax = figure.add_axes(((number * side + 0.03) / width, 0, (side - 0.06) / width, tall / high))
        drawn = ax.imshow(array, cmap="magma", vmin=0, vmax=vmax, extent=(0, columns, rows, 0))
        ax.set_title(title, fontsize=10)
        ax.set_axis_off()
    if with_bar:
        place = figure.add_axes((1 - 0.55 / width, 0.1 * tall / high, 0.12 / width, 0.8 * tall / high))
        figure.colorbar(drawn, cax=place, ticks=MaxNLocator(4)).ax.tick_params(labelsize=8)
    return figure


@torch.no_grad()
def at_quality(image: Image.Image, model: AINN, quality: float) -> tuple[Figure, QualityNumbers]:
    """The reconstruction at a quality from 1 to 8 beside the map of where its bits went.

    The picture is the encoder's own reconstruction, which `codec.decode` gives for the same file.
    """
    quality, prepared = codec.quality_of(model, quality), codec.prepare(image)
    coded = entropy.encode_latent(model, latent(image, model), quality)
    size = len(codec.container(prepared, model, quality, coded.data))
    original = Image.fromarray(prepared.rgb)  # turned as EXIF says
    rgb = codec.synthesise(coded.y_hat, model, original.height, original.width)
    decoded = codec.finish(rgb, prepared.grey, prepared.alpha, b"")
    numbers = QualityNumbers(quality, size, 8 * size / (original.width * original.height), psnr(original, decoded))
    return _panels({f"{numbers.bpp:.3f} bpp, {numbers.psnr:.2f} dB": decoded.convert("RGB"),
                    "bits for each 16x16 block": coded.y_bits.sum(0).numpy()}, size=original.size), numbers


@dataclass(frozen=True)
class RoundingNumbers:
    """Numbers of `at_rounding`."""

    delta: float
    bytes: int  #: of the real stream of the latent, which decodes with this step; a file's header has no place for it
    bpp: float  #: of that stream
    zeros: float  #: share of the symbols that are 0
    psnr: float  #: dB

    def __str__(self) -> str:
        return (f"Δ = **{self.delta:g}** of the trained step: **{self.psnr:.2f} dB**; the stream has {self.bytes:,} bytes, "
                f"**{self.bpp:.3f} bpp**, and {100 * self.zeros:.1f} % of its symbols are 0")


@torch.no_grad()
def at_rounding(image: Image.Image, model: AINN, quality: float | None, delta: float) -> tuple[Figure, RoundingNumbers]:
    """The latent rounded with ``delta`` times the steps trained for a quality, coded, and decoded by a network that was not
    told: too coarse a step loses detail, too fine a one only costs bits.

    Args:
        delta: from 1/4 to 8; 1 is the trained step.
    """
    if not 0.25 <= delta <= 8:
        raise AINNError(f"delta must lie from 0.25 to 8, got {delta}")
    gain, inverse_gain, bias = model.gains(codec.quality_of(model, quality))
    y = latent(image, model) * gain / delta
    coded = entropy.latent_coder(model).encode(y[0].double(), model.h_a(y)[0].double(), bias, inverse_gain * delta)
    original = codec.prepare(image).rgb
    height, width, _ = original.shape
    decoded = codec.synthesise(coded.y_hat, model, height, width)
    numbers = RoundingNumbers(delta, len(coded.data), 8 * len(coded.data) / (width * height),
                              (coded.symbols == 0).double().mean().item(),
                              psnr(Image.fromarray(original), Image.fromarray(decoded)))
    error = np.abs(decoded.astype(float) - original).mean(2) / 255
    return _panels({f"{numbers.bpp:.3f} bpp, {numbers.psnr:.2f} dB": decoded, "absolute error": error}, vmax=0.15), numbers


def at_step(height: int, width: int, step: int) -> tuple[Figure, WavefrontNumbers]:
    """One step of the wavefront over a height x width latent: coded before, coded now, and what the first of them looks at."""
    steps = list(entropy.wavefront(height, width))
    if not 0 <= step < len(steps):
        raise AINNError(f"step must lie from 0 to {len(steps) - 1}, got {step}")
    state = np.zeros((height, width))
    for i, j in steps[:step]:
        state[i, j] = 1
    rows, columns = steps[step]
    middle = len(rows) // 2
    for dy, dx in entropy.PAST:
        i, j = rows[middle] + dy - 2, columns[middle] + dx - 2
        if i >= 0 and 0 <= j < width:
            state[i, j] = 2
    state[rows, columns] = 3
    inches = min(6, 4.5 * width / height)
    figure, ax = plt.subplots(figsize=(inches, inches * height / width + 0.6), layout="constrained")
    colours = plt.matplotlib.colors.ListedColormap(["#f2f2f2", "#9ecae1", "#fdae61", "#08519c"])
    ax.imshow(state, cmap=colours, vmin=0, vmax=3)
    ax.set_xticks(np.arange(-0.5, width), minor=True)
    ax.set_yticks(np.arange(-0.5, height), minor=True)
    ax.grid(which="minor", color="white", linewidth=1)
    ax.tick_params(which="both", length=0, labelleft=False, labelbottom=False)
    ax.set_title("dark: coded now; light: coded before; orange: what one of them needs", fontsize=9)
    return figure, WavefrontNumbers(step, len(steps), len(rows), int(sum(len(i) for i, _ in steps[:step])))


@lru_cache
@torch.no_grad()
def round_trip_errors(clamp: float, dtype: torch.dtype = torch.float32) -> tuple[float, ...]:
    """RMS error of the way there and back through 1, 2, ... `DEEPEST` coupling layers with random nets (Xavier normal).

    Nets and input (standard normal) are the same for every clamp and dtype. What overflows is infinite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [Coupling(12, 16, 3, clamp, shared=True) for _ in range(DEEPEST)]
        for conv in (m for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Conv2d)):
            torch.nn.init.xavier_normal_(conv.weight)
        x = torch.randn(2, 1, 12, 16, 16).to(dtype)
    errors, there = [], tuple(x)
    for depth, layer in enumerate(layers, start=1):
        back = there = layer.to(dtype)(*there)
        for previous in reversed(layers[:depth]):
            back = previous.inverse(*back)
        error = (torch.stack(back) - x).double().square().mean().sqrt().item()
        errors.append(error if error == error else float("inf"))
    return tuple(errors)


def at_depth(clamp: float, depth: int) -> tuple[Figure, DepthNumbers]:
    """How exactly couplings invert: error against depth at one of `CLAMPS`, and against clamp at a depth up to `DEEPEST`."""
    if clamp not in CLAMPS or not 1 <= depth <= DEEPEST:
        raise AINNError(f"clamp must be one of {CLAMPS} and depth lie from 1 to {DEEPEST}, got {clamp} and {depth}")
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    numbers = {}
    for dtype, marker in ((torch.float32, "o-"), (torch.float64, "s-")):
        name = str(dtype).removeprefix("torch.")
        axes[0].semilogy(range(1, DEEPEST + 1), round_trip_errors(clamp, dtype), marker, markersize=4, label=name)
        axes[1].semilogy(CLAMPS, [round_trip_errors(c, dtype)[depth - 1] for c in CLAMPS], marker, markersize=4, label=name)
        numbers[name] = round_trip_errors(clamp, dtype)[depth - 1]
    for ax, here, title, label in ((axes[0], depth, f"clamp {clamp:g}", "coupling layers"),
                                   (axes[1], clamp, f"{depth} coupling layers", "clamp")):
        ax.axhline(1, color="black", linestyle=":", linewidth=1)
        ax.axvline(here, color="grey", linewidth=6, alpha=0.25)
        ax.set(title=title, xlabel=label, ylim=(1e-17, 1e6))
    axes[0].set(ylabel="error of the round trip", xticks=range(2, DEEPEST + 1, 2))
    axes[0].legend()
    return figure, DepthNumbers(clamp, depth, **numbers)


@torch.no_grad()
def at_delta(g: theory.Synthesis, y: torch.Tensor, x: torch.Tensor, step: float | torch.Tensor,
             delta: float) -> tuple[Figure, DeltaNumbers]:
    """Uniform noise of ``delta`` times the steps ``step`` on y: the distortion that J predicts beside the measured one.

    Args:
        g, y, step: as `theory.predicted_distortion` takes them.
        x: the original, (1, 3, H, W) in [0, 1].
        delta: from 2⁻⁵ to 2⁵.
    """
    if not 2**-5 <= delta <= 2**5:
        raise AINNError(f"delta must lie from 1/32 to 32, got {delta}")
    prediction, decoded = _prediction(g, y, x, step), _with_noise(g, y, step, delta)
    measured = {d: (_with_noise(g, y, step, d) - x).square().mean().item() for d in (2.0**k for k in range(-5, 6, 2))}
    measured[delta] = (decoded - x).square().mean().item()
    line = np.geomspace(2**-5, 2**5, 61)
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained", width_ratios=(3, 2))
    axes[0].loglog(line, prediction.zero + prediction.linear * line**2, "-", label="predicted: $D_0$ + linear term")
    axes[0].loglog(*zip(*sorted(measured.items()), strict=True), "o", label="measured")
    axes[0].axvline(delta, color="grey", linewidth=6, alpha=0.25)
    axes[0].set(xlabel="Δ / trained step", ylabel="MSE")
    axes[0].legend()
    axes[1].imshow(decoded[0].clamp(0, 1).permute(1, 2, 0))
    axes[1].set_title(f"decoded at Δ = {delta:.3g}")
    axes[1].axis("off")
    return figure, DeltaNumbers(delta, prediction.zero, prediction.zero + prediction.linear * delta**2,
                                prediction.standard_error * delta**2, measured[delta])


@lru_cache(maxsize=8)
def _prediction(g: theory.Synthesis, y: torch.Tensor, x: torch.Tensor, step: float | torch.Tensor) -> theory.Prediction:
    return theory.predicted_distortion(g, y, step, probes=8, x=x)


@lru_cache(maxsize=128)
def _with_noise(g: theory.Synthesis, y: torch.Tensor, step: float | torch.Tensor, delta: float) -> torch.Tensor:
    noise = torch.rand(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(y) - 0.5
    return g(y + delta * theory.per_channel(step, y) * noise)


def at_curves(of: Iterable[curves.Curve], dataset: str, metric: str, codecs: Iterable[str],
              axis: str) -> tuple[Figure, CurveNumbers]:
    """Chosen codecs on one data set, and each one's BD-rate against the first of them that is there.

    Args:
        of: curves, measured and published.
        metric: "psnr" or "ms-ssim".
        codecs: names as in `curves.LOOK`.
        axis: "linear" or "log", of the rate.
    """
    codecs = tuple(codecs)
    here = [c for c in of if c.dataset == dataset and c.codec in codecs and len(c.points(metric)[0])]
    here.sort(key=lambda c: codecs.index(c.codec))
    with plt.style.context(curves.STYLE):
        figure, ax = plt.subplots(figsize=(6.4, 3.4), dpi=85, layout="constrained")
        for curve in here:
            curves.draw_curve(ax, curve, metric)
            ax.get_lines()[-1].set_label(curve.title + (" (published)" if curve.origin == "published as numbers" else ""))
        ax.set(xlabel="bits per pixel", ylabel="PSNR (dB)" if metric == "psnr" else "MS-SSIM (dB)", xscale=axis,
               title=curves.TITLES.get(dataset, dataset))
        if axis == "linear":
            ax.set_xlim(left=0)
        else:
            ax.set_xticks((0.05, 0.1, 0.2, 0.5, 1, 2, 4), labels=("0.05", "0.1", "0.2", "0.5", "1", "2", "4"))
            ax.minorticks_off()
            ax.set_xlim(*_reach(here, metric))
        if here:
            ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    rows = [(c.title, _origin(c), _against(here[0], c, metric)) for c in here]
    absent = [curves.LOOK[name][0] for name in codecs if name not in {c.codec for c in here}]
    return figure, CurveNumbers(here[0].title if here else "", tuple(rows), tuple(absent))


def _reach(here: Iterable[curves.Curve], metric: str) -> tuple[float, float]:
    rates = np.concatenate([c.points(metric)[0] for c in here] or [np.array([0.1, 2.0])])
    return 0.9 * rates.min(), 1.1 * rates.max()


def _origin(curve: curves.Curve) -> str:
    return curve.origin if curve.complete else f"{curve.origin}, {curve.images} images of the set"


def _against(anchor: curves.Curve, curve: curves.Curve, metric: str) -> str:
    try:
        return "-" if curve is anchor else str(curves.bd_rate(anchor, curve, metric))
    except AINNError as error:
        return f"none: {error}"


@dataclass(frozen=True)
class MaskNumbers:
    """Numbers of `at_mask`."""

    mask: float
    bpp: float  #: of the real file
    psnr: float  #: dB, with the mask forced to that value everywhere
    trained: float  #: dB, with the trained mask

    def __str__(self) -> str:
        return (f"m = **{self.mask:.2f}** everywhere: **{self.psnr:.2f} dB**; the trained mask gives "
                f"**{self.trained:.2f} dB** from the same {self.bpp:.3f} bpp")


@dataclass(frozen=True)
class CutNumbers:
    """Numbers of `at_cut`."""

    cut: float  #: cycles per pixel
    energy: float  #: share of the image's variance above the cut
    error: float  #: share of the reconstruction's squared error above the cut
    bpp: float  #: of the real file

    def __str__(self) -> str:
        return (f"above **{self.cut:.3f}** cycles per pixel lie **{100 * self.energy:.1f} %** of the image's variance and "
                f"**{100 * self.error:.1f} %** of the decoded image's squared error ({self.bpp:.3f} bpp)")


@dataclass(frozen=True)
class StrengthNumbers:
    """Numbers of `at_strength`."""

    strengths: tuple[float, float, float]  #: of levels 4, 3, 2
    bpp: float  #: of the real file; the strengths act in the decoder alone
    psnr: float  #: dB
    trained: float  #: dB, with all strengths 1
    rho: tuple[float, float, float]  #: ρ_k at levels 4, 3, 2

    def __str__(self) -> str:
        rho = ", ".join(f"$\\rho_{level}$ = {value:+.3f}" for level, value in zip(inside.LEVELS, self.rho, strict=True))
        strengths = ", ".join(f"{value:g}" for value in self.strengths)
        return (f"strengths {strengths}: **{self.psnr:.2f} dB** at {self.bpp:.3f} bpp "
                f"(all strengths 1: {self.trained:.2f} dB); {rho}")


@dataclass(frozen=True)
class WipeNumbers:
    """Numbers of `at_wipe`."""

    position: float
    zoom: int
    box: tuple[int, int, int, int]  #: the part that is shown: left, top, right, bottom
    bpp: float  #: of the real file
    psnr: float  #: dB, of the whole image

    def __str__(self) -> str:
        left, top, right, bottom = self.box
        return (f"left of the line ({100 * self.position:.0f} % of the width) the original, right of it the file of "
                f"**{self.bpp:.3f} bpp**, **{self.psnr:.2f} dB**; columns {left} to {right}, rows {top} to {bottom}")


@torch.no_grad()
def at_mask(maps: inside.FrequencyMaps, mask: float) -> tuple[Figure, MaskNumbers]:
    """The picture when FDSM-S joins the branches with one m, from 0 (high branch) to 1 (low branch), and its error."""
    if not 0 <= mask <= 1:
        raise AINNError(f"the mask must lie from 0 to 1, got {mask}")
    numbers, joined = MaskNumbers(mask, maps.bpp, maps.psnr(mask), maps.psnr()), maps.joined(mask)
    return _panels({f"m = {mask:.2f}: {numbers.psnr:.2f} dB": inside.picture(joined),
                    "absolute error": (joined - maps.x).abs().mean(1)[0]}, vmax=0.15), numbers


@torch.no_grad()
def at_cut(maps: inside.FrequencyMaps, cut: float) -> tuple[Figure, CutNumbers]:
    """An image parted at a spatial frequency (from 0 to ½ cycle per pixel): what lies below, what above, the error above."""
    if not 0 <= cut <= 0.5:
        raise AINNError(f"the cut must lie from 0 to 0.5 cycles per pixel, got {cut}")
    error, below = maps.joined() - maps.x, inside.low_pass(maps.x, cut)
    above, error_above = maps.x - below, error - inside.low_pass(error, cut)
    centred = maps.x - maps.x.mean((2, 3), keepdim=True)
    # the mean is no variance: at a cut of 0 everything but it lies above
    numbers = CutNumbers(cut, (above.square().sum() / centred.square().sum()).item(),
                         (error_above.square().sum() / error.square().sum()).item(), maps.bpp)
    return _panels({"below the cut": inside.picture(below), "above the cut (on grey)": inside.picture(0.5 + above),
                    "error above the cut (four times)": inside.picture(0.5 + 4 * error_above)}), numbers


@lru_cache(maxsize=4)
def _undisturbed(model: AINN, start: inside.Coded, weights: str) -> tuple[inside.Denoising, dict[int, inside.Maps]]:
    inside._need_pdm(model)
    return _decoded(model, start, (1, 1, 1), truth := inside.activations(model, start.x)), truth


def _decoded(model: AINN, start: inside.Coded, strengths: tuple[float, float, float],
             truth: dict[int, inside.Maps]) -> inside.Denoising:
    seen, x_hat = inside.decode(model, start.y_hat, strengths)
    levels = (inside.level_error(level, truth[level], *seen[f"PDM {level}"]) for level in inside.LEVELS)
    return inside.Denoising(tuple(levels), start.x, x_hat)


@torch.no_grad()
def at_strength(model: AINN, start: inside.Coded, level4: float, level3: float,
                level2: float) -> tuple[Figure, StrengthNumbers]:
    """The decoded picture and its error with each PDM at a strength from 0 (off) to 2; 1 is the trained one."""
    strengths = (level4, level3, level2)
    if not all(0 <= s <= 2 for s in strengths):
        raise AINNError(f"strengths must lie from 0 to 2, got {strengths}")
    trained, truth = _undisturbed(model, start, identity(model))
    result = _decoded(model, start, strengths, truth)
    numbers = StrengthNumbers(strengths, start.bpp, result.psnr, trained.psnr, tuple(error.rho for error in result.levels))
    error, error_trained = ((r.x_hat - r.x).abs().mean(1)[0] for r in (result, trained))
    return _panels({f"{numbers.psnr:.2f} dB": inside.picture(result.x_hat), "absolute error": error,
                    "with all strengths 1": error_trained}, vmax=0.15), numbers


def at_wipe(before: Image.Image, after: Image.Image, size: int, position: float, zoom: int,
            middle: float = 0.5) -> tuple[Figure, WipeNumbers]:
    """The original left of a line, the decoded image right of it.

    Args:
        size: bytes of the real file.
        position: of the line, from 0 to 1 of the width.
        zoom: 1 shows all; 2, 4 or 8 the part around the line that is so many times smaller.
        middle: of that part, from 0 (top) to 1 of the height.
    """
    if not (0 <= position <= 1 and 0 <= middle <= 1) or zoom not in (1, 2, 4, 8):
        raise AINNError("position and middle must lie from 0 to 1 and zoom be 1, 2, 4 or 8, "
                        f"got {position}, {middle} and {zoom}")
    line = round(position * before.width)
    joined = after.convert("RGB")
    joined.paste(before.convert("RGB").crop((0, 0, line, before.height)), (0, 0))
    width, height = before.width // zoom, before.height // zoom
    left, top = min(max(0, line - width // 2), before.width - width), round(middle * (before.height - height))
    box = (left, top, left + width, top + height)
    figure = plt.figure(figsize=(5, 5 * height / width), layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(joined.crop(box), extent=(left, left + width, top + height, top), interpolation="nearest")
    ax.axvline(min(max(line, left), left + width), color="white", linewidth=1)
    ax.set_axis_off()
    return figure, WipeNumbers(position, zoom, box, 8 * size / (before.width * before.height), psnr(before, after))


def own_photo(data: bytes, side: int = 256) -> tuple[Image.Image, str]:
    """A user's own image file, made fit for the explorers: RGB, at most ``side`` x ``side`` pixels, multiples of 16.

    A larger one is shrunk until its shorter side fits, then its middle is kept. Returns it, and one line of what was done.

    Raises:
        AINNError: with one sentence, when it is no image, damaged, or too large or too small.
    """
    try:
        image = Image.open(io.BytesIO(data))
        prepared = codec.prepare(image)
    except UNREADABLE as error:
        bomb = isinstance(error, Image.DecompressionBombError)
        raise AINNError("this image has far too many pixels" if bomb else "this file is no image that can be read") from None
    notes, picture = list(prepared.notes), Image.fromarray(prepared.rgb)
    if prepared.alpha is not None:
        notes.append("what is transparent is laid on white")
        picture = Image.composite(picture, Image.new("RGB", picture.size, "white"), Image.fromarray(prepared.alpha))
    width, height = picture.size
    if min(width, height) < SMALLEST:
        raise AINNError(f"this image has {width}x{height} pixels; each side needs {SMALLEST} at least")
    done = f"{width}x{height} pixels"
    if min(width, height) > side:
        scale = side / min(width, height)
        smaller = (max(side, round(scale * length)) for length in picture.size)
        picture = picture.resize(tuple(smaller), Image.Resampling.LANCZOS)
        done += ", shrunk"
    size = tuple(min(side, length) // 16 * 16 for length in picture.size)
    if size != picture.size:
        left, top = ((a - b) // 2 for a, b in zip(picture.size, size, strict=True))
        picture = picture.crop((left, top, left + size[0], top + size[1]))
        done += f", the middle {size[0]}x{size[1]} kept"
    return picture, "; ".join([done, *notes])


def rendered(figure: Figure, fine: bool = False) -> bytes:
    """A figure as JPEG: small, for a notebook keeps it; or ``fine``, so that only the codec's own errors are to be seen."""
    buffer = io.BytesIO()
    settings = {"quality": 95, "subsampling": 0} if fine else {"quality": 75}
    figure.savefig(buffer, format="jpeg", dpi="figure", pil_kwargs=settings)
    return buffer.getvalue()


class Explorer(ipywidgets.VBox):
    """The face of an explorer: controls above a picture and the words of its numbers; see `explore`."""

    fine = False  #: see `rendered`

    def __init__(self, function: Callable[..., tuple[Figure, object]], controls: dict[str, ipywidgets.Widget]):
        self.function, self.controls, self.output = function, controls, ipywidgets.Output()
        for name, control in controls.items():
            control.description = control.description or name.replace("_", " ")
            control.style.description_width = "7em"
            control.layout.width = control.layout.width or "28em"
            control.observe(self.update, names="value")
        super().__init__([ipywidgets.Box(tuple(controls.values()), layout={"flex_flow": "row wrap"}), self.output])
        self.add_class("ainn-explorer")

    def update(self, change: object = None) -> None:
        """Draw again. An error becomes one line of words for the user, stored as an error for the tests to find."""
        try:
            figure, numbers = self.function(**{name: control.value for name, control in self.controls.items()})
            try:
                picture = base64.b64encode(rendered(figure, self.fine)).decode()
            finally:
                plt.close(figure)
            # one message for all of it: the page neither flickers nor jumps
            self.output.outputs = tuple({"output_type": "display_data", "data": data, "metadata": {}} for data in (
                {"image/jpeg": picture, "text/plain": str(figure)},
                {"text/markdown": str(numbers), "text/plain": str(numbers)}))
        except Exception as error:
            if not isinstance(error, AINNError):
                logging.getLogger(__name__).exception("an explorer failed")  # the traceback is for the log
            self.output.outputs = ({"output_type": "error", "ename": type(error).__name__, "evalue": str(error),
                                    "traceback": [f"This could not be drawn: {error or type(error).__name__}"]},)


def explore(function: Callable[..., tuple[Figure, object]], **controls: ipywidgets.Widget) -> Explorer:
    """A face for an explorer: its controls above its figure and the words of its numbers.

    Args:
        function: takes one keyword for each control and returns a figure and its numbers.
        controls: ipywidgets; a slow explorer wants ``continuous_update=False``.

    An error is shown to the user in words; it also stays in the widget's stored output, where the tests look for it.
    """
    explorer = Explorer(function, controls)
    explorer.update()
    return explorer
