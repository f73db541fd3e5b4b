"""Explorers: plain functions that return a figure and its numbers, and a thin face of sliders for them.

Each explorer can be called without a kernel's widgets, so a page shows its picture and a test can walk through its whole range.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML, Markdown, clear_output, display
from matplotlib.figure import Figure
from PIL import Image

from . import codec, entropy, theory
from .errors import AINNError
from .invertible import Coupling
from .metrics import psnr
from .model import AINN


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


def bit_map(image: Image.Image, model: AINN, quality: float | None = None) -> np.ndarray:
    """Bits spent on every 16x16 block of an image, (H/16, W/16), without those of the hyper-latent."""
    y = codec._analyse(codec.prepare(image), model)
    return entropy.encode_latent(model, y, quality).y_bits.sum(0).numpy()


def at_quality(image: Image.Image, model: AINN, quality: float) -> tuple[Figure, QualityNumbers]:
    """The reconstruction at a quality from 1 to 8 beside the map of where its bits went."""
    stream = codec.encode(image, model, quality)
    decoded = codec.decode(stream, model)
    numbers = QualityNumbers(quality, len(stream), 8 * len(stream) / (image.width * image.height), psnr(image, decoded))
    figure, axes = plt.subplots(1, 2, figsize=(8, 8 / 2 * image.height / image.width + 0.5), layout="constrained")
    axes[0].imshow(decoded)
    axes[0].set_title(f"{numbers.bpp:.3f} bpp, {numbers.psnr:.2f} dB")
    bits = axes[1].imshow(bit_map(image, model, quality), cmap="magma", extent=(0, image.width, image.height, 0))
    axes[1].set_title("bits for each 16x16 block")
    figure.colorbar(bits, ax=axes[1], shrink=0.8)
    for ax in axes:
        ax.axis("off")
    return figure, numbers


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
    for dy, dx in entropy._PAST:
        i, j = rows[middle] + dy - 2, columns[middle] + dx - 2
        if i >= 0 and 0 <= j < width:
            state[i, j] = 2
    state[rows, columns] = 3
    figure, ax = plt.subplots(figsize=(6, 6 * height / width + 0.6), layout="constrained")
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
    prediction, steps = theory.predicted_distortion(g, y, step, probes=8, x=x), theory.per_channel(step, y)
    noise = torch.rand(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(y) - 0.5
    grid = sorted({*(2.0**k for k in range(-5, 6, 2)), delta})
    decoded = {d: g(y + d * steps * noise) for d in grid}
    measured = [(decoded[d] - x).square().mean().item() for d in grid]
    line = np.geomspace(2**-5, 2**5, 61)
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained", width_ratios=(3, 2))
    axes[0].loglog(line, prediction.zero + prediction.linear * line**2, "-", label="predicted: $D_0$ + linear term")
    axes[0].loglog(grid, measured, "o", label="measured")
    axes[0].axvline(delta, color="grey", linewidth=6, alpha=0.25)
    axes[0].set(xlabel="Δ / trained step", ylabel="MSE")
    axes[0].legend()
    axes[1].imshow(decoded[delta][0].clamp(0, 1).permute(1, 2, 0))
    axes[1].set_title(f"decoded at Δ = {delta:.3g}")
    axes[1].axis("off")
    return figure, DeltaNumbers(delta, prediction.zero, prediction.zero + prediction.linear * delta**2,
                                prediction.standard_error * delta**2, measured[grid.index(delta)])


def explore(function: Callable[..., tuple[Figure, object]], **controls: ipywidgets.Widget) -> ipywidgets.VBox:
    """A face for an explorer: its controls above its figure and the words of its numbers.

    Args:
        function: takes one keyword for each control and returns a figure and its numbers.
        controls: ipywidgets; a slow explorer wants ``continuous_update=False``.

    An error is shown to the user in words; it also stays in the widget's stored output, where the tests look for it.
    """
    output = ipywidgets.Output()

    def update(change: object = None) -> None:
        with output:
            clear_output(wait=True)
            try:
                figure, numbers = function(**{name: control.value for name, control in controls.items()})
            except Exception as error:
                display(HTML(f"<b>This could not be drawn:</b> {error}"))
                raise
            display(figure, Markdown(str(numbers)))
            plt.close(figure)

    for control in controls.values():
        control.observe(update, names="value")
    update()
    return ipywidgets.VBox([*controls.values(), output])
