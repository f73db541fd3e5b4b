"""Explorers: plain functions that return a figure and its numbers, and a thin face of sliders for them.

Each explorer can be called without a kernel's widgets, so a page shows its picture and a test can walk through its whole range.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Markdown, clear_output, display
from matplotlib.figure import Figure
from PIL import Image

from . import codec, entropy
from .errors import AINNError
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
