"""Explorers: functions that return a figure and its numbers, and `explore`, sliders for them.

An explorer works without sliders too: a page shows its picture, a test walks through its range.
A move should answer in under 0.3 s. Slow parts that a slider does not change are therefore kept,
and photos and maps reach the page as pixels: matplotlib takes longer than the network.
"""

import base64
import contextvars
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import BytesIO
from types import SimpleNamespace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..codec.coding import analyse, encode_prepared, file_bytes, synthesise
from ..codec.images import finish, prepare, to_pixels
from ..codec.weights import available, fingerprint
from ..errors import AINNError
from ..measure.bd_rate import bd_rate
from ..measure.classical import CODECS
from ..measure.curves import ELSEWHERE, TITLES, Curve
from ..measure.figures import LABELS, draw_curve
from ..measure.metrics import psnr
from ..network import coder
from ..network.blocks import Coupling
from ..network.entropy_model import CAUSAL_TAPS, wavefront
from ..network.model import AINN
from ..studies.activations import Coded, FrequencyMaps, decode, denoising, low_pass, psnr_of
from ..studies.figure6 import at_rate
from ..style import LOOK, figure_style, table
from ..theory.jacobian import Prediction, Step, Synthesis, per_channel, predicted_distortion
from .stage import (
    BITS,
    DIFFERENCES,
    ERRORS,
    SMALL,
    Picture,
    Stage,
    coloured,
    frame,
    pictures_of,
    side_by_side,
    static_page,
)

CLAMPS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
DEEPEST = 16  #: coupling layers
DELTAS = [2.0**k for k in range(-5, 6, 2)]
POSITIONS = "AINN_POSITIONS"  #: variable: positions of a slider in a page without a kernel
SIDE, SHORT_SIDE = 160, 96  #: pixels of a photo's middle in such a page; of photos side by side


class Numbers(SimpleNamespace):
    """The numbers of an explorer as attributes; ``str`` gives them in words (Markdown).

    ``bytes`` and ``bpp`` are those of the file, ``psnr`` (dB) is that of the picture shown, and
    ``trained`` (dB) that of the network as it was trained.

    >>> numbers = Numbers("**{bpp:.2f} bpp**", bpp=1.5)
    >>> print(numbers.bpp, numbers)
    1.5 **1.50 bpp**
    """

    def __init__(self, words: str, **values: object):
        super().__init__(words=words.format(**values), **values)

    def __str__(self) -> str:
        return self.words


Explored = tuple[Figure, Numbers]
Wipe = tuple[list[Picture], Numbers]  #: two of the pictures are shown in one place


def default_weights() -> str:
    """The weights to show first: "student", where it is here."""
    names = available()
    return "student" if "student" in names else names[0]


def _need(ok: bool, message: str) -> None:
    if not ok:
        raise AINNError(message)


def bit_map(image: Image.Image, model: AINN, quality: float | None = None) -> np.ndarray:
    """Bits of every 16x16 block of an image, (H/16, W/16), without those of the hyper-latent."""
    y = analyse(prepare(image), model)
    return coder.encode_latent(model, y, quality).y_bits.sum(0).numpy()


class File(NamedTuple):
    """A photo as a file, and what it decodes to."""

    data: bytes
    decoded: Image.Image
    bits: np.ndarray  #: of every 16x16 block, without the hyper-latent's
    original: Image.Image  #: as the codec sees it: upright, RGB


@torch.no_grad()
def as_file(image: Image.Image, model: AINN, quality: float | None, effort: int = 0) -> File:
    """Encode and decode, as `codec.encode` and `codec.decode` do, without reading the file."""
    quality, prepared = model.quality_of(quality), prepare(image)
    latent = encode_prepared(prepared, model, quality, effort)
    height, width, _ = prepared.rgb.shape
    rgb = synthesise(latent.y_hat, model, height, width)
    return File(file_bytes(prepared, model, quality, latent.data),
                finish(rgb, prepared.grey, prepared.alpha, b""),
                latent.y_bits.sum(0).numpy(), Image.fromarray(prepared.rgb))


def at_quality(image: Image.Image, model: AINN, quality: float, effort: int = 0) -> Explored:
    """The picture that a file of a quality from 1 to 8 decodes to, and where its bits went.

    Numbers: quality, bytes, bpp, psnr.
    """
    quality = model.quality_of(quality)
    figure, numbers = at_bits(as_file(image, model, quality, effort))
    numbers.quality, numbers.words = quality, f"quality **{quality:g}**: {numbers.words}"
    return figure, numbers


def at_bits(file: File) -> Explored:
    """What a file decodes to, and where its bits went. Numbers: bytes, bpp, psnr."""
    size, original = len(file.data), file.original
    bpp, db = 8 * size / (original.width * original.height), psnr(original, file.decoded)
    figure = _panels({f"{bpp:.3f} bpp, {db:.2f} dB": file.decoded.convert("RGB"),
                      "bits for each 16x16 block": (file.bits, BITS)}, original.size)
    return figure, Numbers("{bytes:,} bytes, **{bpp:.3f} bpp**, **{psnr:.2f} dB**",
                           bytes=size, bpp=bpp, psnr=db)


@torch.no_grad()
def at_rounding(image: Image.Image, model: AINN, quality: float | None, delta: float) -> Explored:
    """The latent rounded with ``delta`` (1/4 to 8) times the trained steps, by the same network.

    Too coarse a step loses detail, too fine a step only costs bits. Numbers: delta, bytes and bpp
    (of the latent's stream, which has no header), zeros (share of the symbols), psnr.
    """
    _need(0.25 <= delta <= 8, f"delta must lie from 0.25 to 8, got {delta}")
    gain, inverse_gain, bias = model.gains(model.quality_of(quality))
    prepared = prepare(image)
    y = analyse(prepared, model) * gain / delta
    z = model.h_a(y)[0].double()
    coded = coder.latent_coder(model).encode(y[0].double(), z, bias, inverse_gain * delta)
    height, width, _ = prepared.rgb.shape
    decoded = synthesise(coded.y_hat, model, height, width)
    error = np.abs(decoded.astype(float) - prepared.rgb).mean(2) / 255
    size, zeros = len(coded.data), (coded.symbols == 0).double().mean().item()
    bpp = 8 * size / (width * height)
    db = psnr(Image.fromarray(prepared.rgb), Image.fromarray(decoded))
    figure = _panels({f"{bpp:.3f} bpp, {db:.2f} dB": decoded,
                      "absolute error": (error, ERRORS)})
    words = ("Δ = **{delta:g}** of the trained step: **{psnr:.2f} dB**; the stream has "
             "{bytes:,} bytes, **{bpp:.3f} bpp**, and {zeros:.1%} of its symbols are 0")
    return figure, Numbers(words, delta=delta, bytes=size, bpp=bpp, zeros=zeros, psnr=db)


def at_wipe(original: Image.Image, others: dict[str, tuple[Image.Image, int]]) -> Wipe:
    """The original and decoded images in one place, a line between any two of them.

    Numbers, of the first of the others: bytes, times (as many as the file is smaller than the
    pixels), bpp, psnr.

    Args:
        others: title -> decoded image, bytes of its file.
    """
    pixels, original = original.width * original.height, original.convert("RGB")
    pictures = [Picture("original", original, f"{3 * pixels:,} bytes, 24 bpp")]
    values = []
    for title, (image, size) in others.items():
        db, bpp = psnr(original, image), 8 * size / pixels
        values.append({"bytes": size, "times": 24 / bpp, "bpp": bpp, "psnr": db})
        words = f"{size:,} bytes, {bpp:.3f} bpp, {db:.2f} dB"
        pictures.append(Picture(title, image.convert("RGB"), words))
    words = ("**{times:.0f} times smaller** than the pixels: {bytes:,} bytes, **{bpp:.3f} bpp**, "
             "**{psnr:.2f} dB**")
    for title, rival in zip(list(others)[1:], values[1:], strict=True):
        words += f"; {title}: **{rival['psnr']:.2f} dB**"
    return pictures, Numbers(words, **values[0])


def with_jpeg(original: Image.Image, decoded: Image.Image, size: int) -> Wipe:
    """`at_wipe` with our decoded file of ``size`` bytes and the best JPEG that is no larger."""
    others = {"ours": (decoded, size)}
    try:
        jpeg = at_rate(CODECS["jpeg"], original, 8 * size / (original.width * original.height))
    except AINNError:  # so few bytes: there is none
        pictures, numbers = at_wipe(original, others)
        numbers.words += "; no JPEG is that small"
        return pictures, numbers
    return at_wipe(original, {**others, "JPEG of that size": (jpeg.decoded, len(jpeg.data))})


@torch.no_grad()
def at_mask(maps: FrequencyMaps, mask: float) -> Explored:
    """The picture when FDSM-S joins the branches with one m, from 0 (high) to 1 (low).

    Numbers: mask, bpp, psnr, trained.
    """
    _need(0 <= mask <= 1, f"the mask must lie from 0 to 1, got {mask}")
    joined, db = maps.joined(mask), maps.psnr(mask)
    figure = _panels({f"m = {mask:.2f}: {db:.2f} dB": to_pixels(joined),
                      "absolute error": (_error(joined, maps.x), ERRORS)})
    words = ("m = **{mask:.2f}** everywhere: **{psnr:.2f} dB**; the trained mask gives "
             "**{trained:.2f} dB** from the same {bpp:.3f} bpp")
    return figure, Numbers(words, mask=mask, bpp=maps.bpp, psnr=db, trained=maps.psnr())


def _error(x_hat: Tensor, x: Tensor) -> Tensor:
    return (x_hat - x).abs().mean(1)[0]


@torch.no_grad()
def at_cut(maps: FrequencyMaps, cut: float) -> Explored:
    """An image below and above a spatial frequency, from 0 to ½ cycle per pixel.

    Numbers: cut, energy and error (shares above the cut of the image's variance and of the decoded
    image's squared error), bpp. ``maps`` needs x, bpp and joined(), the decoded image.
    """
    _need(0 <= cut <= 0.5, f"the cut must lie from 0 to 0.5 cycles per pixel, got {cut}")
    error, below = maps.joined() - maps.x, low_pass(maps.x, cut)
    above, error_above = maps.x - below, error - low_pass(error, cut)
    centred = maps.x - maps.x.mean((2, 3), keepdim=True)  # the mean is no variance
    figure = _panels({"below the cut": to_pixels(below),
                      "above the cut (on grey)": to_pixels(0.5 + above),
                      "error above the cut (four times)": to_pixels(0.5 + 4 * error_above)})
    words = ("above **{cut:.3f}** cycles per pixel lie **{energy:.1%}** of the image's variance "
             "and **{error:.1%}** of the decoded image's squared error ({bpp:.3f} bpp)")
    energy = (above.square().sum() / centred.square().sum()).item()
    share = (error_above.square().sum() / error.square().sum()).item()
    return figure, Numbers(words, cut=cut, energy=energy, error=share, bpp=maps.bpp)


_KEPT = WeakKeyDictionary()  # network -> what was computed last, and from what


def _kept(network: torch.nn.Module, key: tuple, make: Callable[[], object]) -> object:
    """The last result of a network while its key is the same; it keeps no network alive."""
    held = _KEPT.get(network)
    if held is None or not all(a is b or (isinstance(a, (str, bytes, float)) and a == b)
                               for a, b in zip(held[0], key, strict=True)):
        held = _KEPT[network] = key, make()
    return held[1]


@torch.no_grad()
def at_strength(model: AINN, start: Coded, level4: float, level3: float, level2: float) -> Explored:
    """The decoded picture with each PDM at a strength from 0 (off) to 2; 1 is the trained one.

    Numbers: strengths and rho (of levels 4, 3, 2), bpp, psnr, trained.
    """
    strengths = (level4, level3, level2)
    _need(all(0 <= s <= 2 for s in strengths), f"strengths must lie from 0 to 2, got {strengths}")
    result = denoising(model, start, strengths=strengths)
    trained = _kept(model, (start, fingerprint(model)), lambda: decode(model, start.y_hat)[1])
    error = _error(result.x_hat, start.x)
    figure = _panels({f"{result.psnr:.2f} dB": to_pixels(result.x_hat),
                      "absolute error": (error, ERRORS),
                      "error minus that with all strengths 1":
                          (error - _error(trained, start.x), DIFFERENCES)})
    words = ("strengths {strengths[0]:g}, {strengths[1]:g}, {strengths[2]:g}: **{psnr:.2f} dB** at "
             "{bpp:.3f} bpp (all strengths 1: {trained:.2f} dB); $\\rho_4$ = {rho[0]:+.3f}, "
             "$\\rho_3$ = {rho[1]:+.3f}, $\\rho_2$ = {rho[2]:+.3f}")
    rho = tuple(error.rho for error in result.levels)
    return figure, Numbers(words, strengths=strengths, rho=rho, bpp=start.bpp, psnr=result.psnr,
                           trained=psnr_of(trained, start.x))


def at_step(height: int, width: int, step: int) -> Explored:
    """One step of the wavefront over a height x width latent: what is coded, what it needs.

    Numbers: step, steps, batch (positions coded in this step), done (positions coded before it).
    """
    steps = list(wavefront(height, width))
    _need(0 <= step < len(steps), f"step must lie from 0 to {len(steps) - 1}, got {step}")
    state = np.zeros((height, width))
    for i, j in steps[:step]:
        state[i, j] = 1
    done = int(state.sum())
    rows, columns = steps[step]
    middle = len(rows) // 2
    for dy, dx in CAUSAL_TAPS:
        i, j = rows[middle] + dy - 2, columns[middle] + dx - 2
        if i >= 0 and 0 <= j < width:
            state[i, j] = 2
    state[rows, columns] = 3
    inches = min(6, 4.5 * width / height)
    figure = plt.figure(figsize=(inches, inches * height / width + 0.6), layout="constrained")
    ax = figure.subplots()
    colours = ListedColormap(["#f2f2f2", "#9ecae1", "#fdae61", "#08519c"])
    ax.pcolormesh(state, cmap=colours, vmin=0, vmax=3, edgecolors="white")
    ax.set(aspect="equal", ylim=(height, 0), xticks=(), yticks=())
    ax.set_title("dark: coded now; light: coded before\norange: what one of them needs", fontsize=9)
    words = (f"step **{step + 1}** of {{steps}}: {{batch}} position{'s' * (len(rows) > 1)} at "
             "once, {done} before")
    return figure, Numbers(words, step=step, steps=len(steps), batch=len(rows), done=done)


@lru_cache
@torch.no_grad()
def round_trip_errors(clamp: float, dtype: torch.dtype = torch.float32) -> tuple[float, ...]:
    """RMS error of the round trip through 1, 2, ... `DEEPEST` random couplings; inf: overflow.

    Nets (Xavier normal) and input (standard normal) are the same for every clamp and dtype.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [Coupling(12, 16, 3, clamp, shared=True) for _ in range(DEEPEST)]
        for module in torch.nn.ModuleList(layers).modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.xavier_normal_(module.weight)
        x = torch.randn(2, 1, 12, 16, 16).to(dtype)
    errors, there = [], tuple(x)
    for depth, layer in enumerate(layers, start=1):
        back = there = layer.to(dtype)(*there)
        for previous in reversed(layers[:depth]):
            back = previous.inverse(*back)
        error = (torch.stack(back) - x).double().square().mean().sqrt().item()
        errors.append(math.inf if math.isnan(error) else error)
    return tuple(errors)


def at_depth(clamp: float, depth: int) -> Explored:
    """How exactly couplings invert, against depth (1 to `DEEPEST`) and clamp (one of `CLAMPS`).

    Numbers: clamp, depth, float32 and float64 (errors as `round_trip_errors` gives them).
    """
    _need(clamp in CLAMPS, f"clamp must be one of {CLAMPS}, got {clamp}")
    _need(1 <= depth <= DEEPEST, f"depth must lie from 1 to {DEEPEST}, got {depth}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    errors = {}
    for name, line in (("float32", "o-"), ("float64", "s-")):
        by_clamp = {c: round_trip_errors(c, getattr(torch, name)) for c in CLAMPS}
        errors[name] = by_clamp[clamp][depth - 1]
        left.semilogy(range(1, DEEPEST + 1), by_clamp[clamp], line, markersize=4, label=name)
        right.semilogy(CLAMPS, [e[depth - 1] for e in by_clamp.values()], line, markersize=4)
    for ax, here in ((left, depth), (right, clamp)):
        ax.axhline(1, color="black", linestyle=":", linewidth=1)
        ax.axvline(here, color="grey", linewidth=6, alpha=0.25)
    left.set(title=f"clamp {clamp:g}", xlabel="coupling layers", ylim=(1e-17, 1e6),
             ylabel="error of the round trip", xticks=range(2, DEEPEST + 1, 2))
    left.legend()
    right.set(title=f"{depth} coupling layers", xlabel="clamp")
    off = [f"by **{e:.1e}**" if math.isfinite(e) else "**beyond all numbers**"
           for e in errors.values()]
    words = f"{{depth}} couplings, clamp {{clamp:g}}: off {off[0]} in float32, {off[1]} in float64"
    return figure, Numbers(words, clamp=clamp, depth=depth, **errors)


def _decoded(g: Synthesis, y: Tensor, step: Step, delta: float) -> Tensor:
    """g of y with uniform noise of ``delta`` steps, the same noise at every call."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(y.shape, generator=generator, dtype=torch.float64).to(y) - 0.5
    return g(y + delta * per_channel(step, y) * noise)


def _response(g: Synthesis, y: Tensor, x: Tensor, step: Step) -> tuple[Prediction, list[float]]:
    """Prediction, and errors at `DELTAS`."""
    measured = [(_decoded(g, y, step, d) - x).square().mean().item() for d in DELTAS]
    return predicted_distortion(g, y, step, probes=8, x=x), measured


@torch.no_grad()
def at_delta(g: Synthesis, y: Tensor, x: Tensor, step: Step, delta: float) -> Explored:
    """Uniform noise of ``delta`` (1/32 to 32) steps on y: the predicted and the measured error.

    Numbers: delta; zero (D₀), predicted (D₀ + linear term), its standard_error and measured, all
    mean squared errors.

    Args:
        g, y, step: as `predicted_distortion` takes them.
        x: the original, (1, 3, H, W) in [0, 1].
    """
    _need(2**-5 <= delta <= 2**5, f"delta must lie from 1/32 to 32, got {delta}")
    clean = g(y).cpu().numpy().tobytes()  # changes with g's weights
    prediction, others = _kept(g, (y, x, step, clean), lambda: _response(g, y, x, step))
    decoded = _decoded(g, y, step, delta)
    measured = (decoded - x).square().mean().item()
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained",
                                         width_ratios=(3, 2))
    line = np.geomspace(2**-5, 2**5, 61)
    left.loglog(line, prediction.zero + prediction.linear * line**2,
                label="predicted: $D_0$ + linear term")
    left.loglog([*DELTAS, delta], [*others, measured], "o", label="measured")
    left.axvline(delta, color="grey", linewidth=6, alpha=0.25)
    left.set(xlabel="Δ / trained step", ylabel="MSE")
    left.legend()
    right.imshow(to_pixels(decoded))
    right.set_title(f"decoded at Δ = {delta:.3g}")
    right.axis("off")
    predicted = prediction.zero + prediction.linear * delta**2
    words = ("Δ = **{delta:.3g}** of the trained step: predicted MSE **{predicted:.3e}** ± "
             "{standard_error:.1e} ($D_0$ = {zero:.1e}), measured **{measured:.3e}**, ratio "
             f"**{predicted / measured:.3f}**")
    return figure, Numbers(words, delta=delta, zero=prediction.zero, predicted=predicted,
                           standard_error=prediction.standard_error * delta**2, measured=measured)


def at_curves(of: Iterable[Curve], dataset: str, metric: str, codecs: Iterable[str],
              axis: str) -> Explored:
    """Chosen codecs on one data set, and their BD-rates against the first of them.

    Numbers: anchor (title; empty: no curve), rows (title, origin and BD-rate in words of each
    curve), absent (titles of the chosen codecs without points there).

    Args:
        metric: "psnr" or "ms-ssim".
        codecs: keys of `LOOK`.
        axis: "linear" or "log", of the rate.
    """
    codecs = tuple(codecs)
    chosen = [curve for curve in of if curve.dataset == dataset and curve.codec in codecs]
    here = [curve for curve in chosen if len(curve.points(metric)[0])]
    here.sort(key=lambda curve: codecs.index(curve.codec))
    rows = tuple(_row(here[0], curve, metric) for curve in here)
    drawn = {LOOK[curve.codec][0] for curve in here}
    titles = dict.fromkeys(LOOK[name][0] for name in codecs)  # some networks have two, by their aim
    absent = tuple(title for title in titles if title not in drawn)
    words, anchor = "nothing to draw: choose a codec", here[0].title if here else ""
    if here:
        words = table(["codec", "source", f"BD-rate against {anchor}"], rows, fold=False)
    if absent:
        words += f"\n\nno points here: {', '.join(absent)}"
    numbers = Numbers(words, anchor=anchor, rows=rows, absent=absent)
    return _curve_figure(here, dataset, metric, axis), numbers


def _row(anchor: Curve, curve: Curve, metric: str) -> tuple[str, str, str]:
    origin = curve.origin
    if not curve.complete:
        origin += f", {curve.images} images of the set"
    try:
        words = "-" if curve is anchor else str(bd_rate(anchor, curve, metric))
    except AINNError as error:
        words = f"none: {error}"
    return curve.title, origin, words


def _curve_figure(here: list[Curve], dataset: str, metric: str, axis: str) -> Figure:
    with figure_style():
        figure, ax = plt.subplots(figsize=(6.4, 3.4), dpi=85, layout="constrained")
        for curve in here:
            draw_curve(ax, curve, metric)
            if curve.origin == ELSEWHERE:
                ax.get_lines()[-1].set_label(f"{curve.title} (published)")
        ax.set(xlabel="bits per pixel", ylabel=LABELS[metric], xscale=axis,
               title=TITLES.get(dataset, dataset))
        if axis == "log":
            ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 4)
            ax.set_xticks(ticks, labels=ticks)
            ax.minorticks_off()
        else:
            ax.set_xlim(left=0)
        if here:
            ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _panels(pictures: dict[str, object], size: tuple[int, int] | None = None) -> Figure:
    """Pictures side by side under their titles, also as pixels in the figure's ``pictures``.

    Args:
        pictures: title -> image, or a map (h, w) and its `Scale`.
        size: columns and rows that each picture is drawn as; None: those of the first, an image.
    """
    size = size or np.asarray(next(iter(pictures.values()))).shape[1::-1]
    panels = [_panel(title, shown, size) for title, shown in pictures.items()]
    above = 0.45 if any(panel.scale for panel in panels) else 0.3  # inches, of the titles
    height = 8 / len(panels) * size[1] / size[0] + above
    figure = plt.figure(figsize=(8, height), layout="none")
    figure.pictures = panels
    for number, panel in enumerate(panels):
        place = number / len(panels), 0, 0.98 / len(panels), 1 - above / height
        ax = figure.add_axes(place)
        ax.imshow(panel.image, interpolation="nearest")
        unit = f"\n({panel.scale.low} to {panel.scale.high})" if panel.scale else ""
        ax.set_title(panel.title + unit, fontsize=9)
        ax.set_axis_off()
    return figure


def _panel(title: str, shown: object, size: tuple[int, int]) -> Picture:
    if isinstance(shown, tuple):
        values, scale = shown
        return Picture(title, coloured(values, scale, size), scale=scale)
    return Picture(title, Image.fromarray(np.asarray(shown)))


class Explorer(ipywidgets.VBox):
    """Controls above the pictures and the words of a function; see `explore`.

    While it is paused, a control that moves only makes it stale.

    Args:
        slow: whether values of the controls take so long that one may want to stop: they are drawn
            beside the other work, and a control that moves ends that.
    """

    def __init__(self, function: Callable[..., tuple[object, object]],
                 controls: dict[str, ipywidgets.Widget],
                 slow: Callable[[dict], bool] = lambda values: False):
        self.function, self.controls, self.stage = function, controls, Stage()
        self.slow, self.work, self.stopped = slow, None, threading.Event()
        self.paused = self.stale = False
        for name, control in controls.items():
            control.description = control.description or name.replace("_", " ")
            if control.has_trait("style"):
                control.style.description_width = "7em"
                control.layout.width = control.layout.width or "28em"
            control.layout.max_width = "100%"
            if control.has_trait("continuous_update"):
                control.continuous_update = True  # ipywidgets waits while the kernel is busy
            control.observe(self.update, names="value")
        row = ipywidgets.Box(tuple(controls.values()), layout={"flex_flow": "row wrap"})
        super().__init__([row, self.stage])
        self.add_class("ainn-explorer")

    def __repr__(self) -> str:
        return "An explorer: run this cell to move its sliders."  # where no widget is shown

    def update(self, change: object = None) -> None:
        """Draw again. An error becomes one line for the user, until something can be drawn."""
        self.stop()
        self.stale = self.paused
        if self.stale or self.function is None:
            return
        values = {name: control.value for name, control in self.controls.items()}
        if not self.slow(values):
            self._draw(values)
            return
        self.stage.stoppable = True
        context = contextvars.copy_context()  # Jupyter keeps in it whose output this is
        self.work = threading.Thread(target=context.run, args=(self._draw, values), daemon=True)
        self.work.start()

    def stop(self) -> None:
        """End what is drawn beside the other work, if anything is."""
        if self.work:
            self.stopped.set()
            self.work.join()
            self.work = None
            self.stopped.clear()
        self.stage.stoppable = False

    def progress(self, words: str) -> None:
        """Say what is being done. Raises AINNError where the user has stopped it."""
        if self.stopped.is_set():
            raise AINNError("it was stopped")
        self.stage.busy = words

    def _draw(self, values: dict) -> None:
        self.stage.busy = "drawing"
        try:
            shown = _call(self.function, values)
            self.stage.view = {"wipe": shown.wipe, "frames": [shown.frame()],
                               "files": shown.files}
        except Exception as error:
            if not isinstance(error, AINNError):
                logging.getLogger(__name__).exception("an explorer failed")
            words = f"This could not be drawn: {error or type(error).__name__}"
            self.stage.view = {"frames": [], "error": words}
        self.stage.busy, self.stage.stoppable = "", False

    def close(self) -> None:
        """Take it from the page, with its controls; what its function held can be freed."""
        self.stop()
        for widget in (*self.controls.values(), self.stage):
            widget.unobserve_all()
            widget.close()
        self.function, self.controls = None, {}
        super().close()


class Shown(NamedTuple):
    """What a function returned, ready for a page."""

    wipe: bool
    pictures: list[Picture]
    words: str
    files: list[dict] = []  #: to be saved, as ``stage.js`` takes them

    def frame(self, label: str = "", **options: object) -> dict:
        """One position of a slider, as `stage.frame` makes it."""
        return frame(self.pictures, self.words, label, **options)


def _call(function: Callable[..., tuple[object, object]], values: dict) -> Shown:
    shown, words = function(**values)
    try:
        files = getattr(words, "files", [])
        return Shown(not isinstance(shown, Figure), pictures_of(shown), str(words), files)
    finally:
        if isinstance(shown, Figure):
            plt.close(shown)


def _middle(picture: Picture, most: int) -> Picture:
    """The middle of a photo or of a map of one, at most ``most`` pixels wide and high."""
    if not picture.pixels:
        return picture
    left, top = (max(0, side - most) // 32 * 16 for side in picture.image.size)
    right, bottom = (min(side, most) for side in picture.image.size)
    box = left, top, left + right, top + bottom
    return picture._replace(image=picture.image.crop(box))


def values_of(control: ipywidgets.Widget) -> list[tuple[str, object]]:
    """All values that a control can take, with their names; of several at once, each alone."""
    if hasattr(control, "options"):
        pairs = [option if isinstance(option, tuple) else (str(option), option)
                 for option in control.options]
        if isinstance(control.value, (list, tuple)):
            return [(name, type(control.value)([value])) for name, value in pairs]
        return pairs
    count = round((control.max - control.min) / control.step)
    values = [min(control.max, control.min + k * control.step) for k in range(count + 1)]
    if isinstance(control, ipywidgets.FloatLogSlider):
        values = [control.base**value for value in values]
    return [(f"{value:.4g}", value) for value in values]


def prepared(function: Callable[..., tuple[object, object]],
             controls: dict[str, ipywidgets.Widget], count: int) -> tuple[dict, Shown]:
    """A view with ``count`` positions of the first slider, and what it shows at the start.

    Where there is no slider, the first control of any kind is taken; the others stay at their
    values. Errors of the function are not caught.
    """
    values = {name: control.value for name, control in controls.items()}
    sliders = [name for name, control in controls.items() if "Slider" in type(control).__name__]
    main = next(iter(sliders or controls), None)
    steps, own, title = [("", None)], 0, ""
    if main:
        steps, title = values_of(controls[main]), controls[main].description or main
        own = next((k for k, (_, value) in enumerate(steps) if _same(value, values[main])), 0)
    chosen = np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int)
    start = int(abs(chosen - own).argmin())
    chosen[start] = own
    frames, all_shown = [], []
    for label, value in (steps[k] for k in chosen):
        shown = _call(function, {**values, **({main: value} if main else {})})
        most = SIDE if shown.wipe or len(shown.pictures) == 1 else SHORT_SIDE
        small = shown._replace(pictures=[_middle(picture, most) for picture in shown.pictures])
        frames.append(small.frame(label, effort=SMALL))
        all_shown.append(small)
    first = all_shown[start]
    view = {"name": title.replace("_", " "), "start": start, "wipe": first.wipe, "frames": frames}
    return view, first


def _same(a: object, b: object) -> bool:
    return a == b or (isinstance(a, float) and math.isclose(a, b))


def explore(function: Callable[..., tuple[object, object]],
            **controls: ipywidgets.Widget) -> Explorer | None:
    """Sliders for a function that returns pictures and their numbers (or words).

    Where the variable `POSITIONS` is set, as it is when a notebook is executed to be committed, the
    cell gets two outputs that need no kernel: the first position as a PNG, and a page with as many
    prepared positions of the first slider.

    Args:
        function: takes one keyword for each control, and returns a figure, or a list of `Picture`
            to be wiped.
        controls: ipywidgets.

    A live explorer shows an error in words; in a prepared one the cell fails.
    """
    count = int(os.environ.get(POSITIONS, 0))
    if not count:
        explorer = Explorer(function, controls)
        explorer.update()
        return explorer
    view, first = prepared(function, controls, count)
    png, words = BytesIO(), first.words.replace("**", "")
    side_by_side(first.pictures).save(png, "PNG", optimize=True)
    picture = base64.b64encode(png.getvalue()).decode()
    display({"image/png": picture, "text/plain": words}, raw=True)
    display({"text/html": static_page(view, first.words), "text/plain": words}, raw=True)
    return None
