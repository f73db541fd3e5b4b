"""The paper's Figure 2 of any network: the numbers in its boxes follow the configuration.

`here` draws the small map of the codec at the head of each notebook.
Figures 1, 3 and 4, of the paper's own configuration, are drawings in the folder ``figures``.
"""

from itertools import pairwise
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..network.blocks import Level
from ..network.cfrm import CFRM, MSCFRM
from ..network.config import AINNConfig
from ..network.fdsm import FDSMDecomposition, FDSMSynthesis
from ..network.model import AINN
from ..network.pdm import Denoise
from ..network.tiles import as_maps
from ..network.transforms import TITLES, Inverse
from ..style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, figure_style

COLOURS = {FDSMDecomposition: SKY, FDSMSynthesis: SKY, Level: BLUE, Inverse: BLUE,
           CFRM: ORANGE, MSCFRM: ORANGE, Denoise: GREEN}  # other steps have no weights: gray
OPPOSITE = {"fdsm_d": "fdsm_s", "squeeze": "cfrm"}  #: of "level1" it is "inverse_level1"
CODING = ("y encode bits decode y_hat", "y h_a z h_s gaussian encode",
          "y_hat context gaussian decode")  #: chains of arrows
#: What the map shows, with the notebooks about it: the codec's way, and what one asks of it.
MAP = (("$x$", ""), ("FDSM-D", "05"), ("core $F$", "01"), ("rounding", "02"),
       ("entropy\nmodel", "03a"), ("coder", "04"), ("file", "00"), ("CFRM", "07"),
       ("$F^{-1}$", "01"), ("PDM", "06"), ("FDSM-S", "05"), (r"$\hat{x}$", ""))
QUESTIONS = (("loss", "03"), ("training", "08"), ("curves", "09"), ("ablation", "10"),
             ("operations", "11"), ("limits", "12"))
APPENDIX = {"02a": "02"}  #: an appendix stands where its notebook stands
GAPS = 0.3, 0.26  # inches between boxes, from left to right and from top to bottom


class Box(NamedTuple):
    """Text in a cell of a grid whose cells have one size."""

    column: float
    row: int
    colour: str
    text: str


def overview(model: AINN) -> Figure:
    """Figure 2: the codec. A size is channels x height x width of each branch, behind the box."""
    c = model.config
    with torch.device("meta"):  # for the sizes alone
        net, maps = AINN(c).eval(), (torch.empty(1, 3, 64, 64),)
    rows = {name: row for row, name in enumerate(reversed(net.g_s.names), start=1)}
    rows |= {name: rows[OPPOSITE.get(name, f"inverse_{name}")] for name in net.g_a.names}
    boxes = {"x": Box(0, 0, "white", _size("$x$: ", 3, 1)),
             "x_hat": Box(2, 0, "white", _size(r"$\hat{x}$: ", 3, 1))}
    for column, transform in ((0, net.g_a), (2, net.g_s)):
        for name, step in transform.steps:
            maps = as_maps(step(*maps))
            text = _size(f"{TITLES[name]}: ", maps[0].shape[1], 64 // maps[0].shape[2])
            if type(step) in COLOURS:
                text += _details(c).get(name, "")
            boxes[name] = Box(column, rows[name], COLOURS.get(type(step), "gray"), text)
    boxes |= _entropy_model(c, len(net.g_s.names) + 1)
    analysis, synthesis = " ".join(net.g_a.names), " ".join(net.g_s.names)
    return _draw(boxes, [f"x {analysis} y", f"y_hat {synthesis} x_hat", *CODING])


def _size(words: str, channels: int, scale: int) -> str:
    side = f"/{scale}" if scale > 1 else ""
    return f"{words}{channels} × H{side} × W{side}"


def _details(c: AINNConfig) -> dict[str, str]:
    """Step -> what its box says after the size."""
    details = {"cfrm": f"\n{c.cfrm_layers} × conv 3×3, growth {c.cfrm_growth}"}
    for k, widths in zip((4, 3, 2), c.pdm_widths, strict=True):
        details[f"pdm{k}"] = f"\n{c.pdm}, widths {', '.join(map(str, widths))}"
    for k in range(4):
        nets = f"kernel {c.kernels[k]}, width {c.hidden[k]}"
        details[f"level{k + 1}"] = f"\n1×1 conv, {c.couplings[k]} × coupling: {nets}"
        details[f"inverse_level{k + 1}"] = "\nthe same weights" if c.tied else "\nits own weights"
    return details


def _entropy_model(c: AINNConfig, row: int) -> dict[str, Box]:
    """The boxes from the latent on."""
    M, gain = c.latent_channels, ", gain" if c.variable_rate else ""
    widths = (c.hyper_out + c.context_out, *c.parameter_widths, 2 * M)
    return {
        "y": Box(0, row, "white", _size("$y$: ", M, 16)),
        "encode": Box(0.65, row, PURPLE, f"$Q$, AE{gain}"),
        "bits": Box(1, row, "white", "bits"),
        "decode": Box(1.35, row, PURPLE, f"AD{gain}"),
        "y_hat": Box(2, row, "white", _size(r"$\hat{y}$: ", M, 16)),
        "h_a": Box(0, row + 1, PURPLE, f"hyper-analysis $h_a$\n{M} → {c.N}"),
        "gaussian": Box(1, row + 1, PURPLE, f"mean, scale\n{' → '.join(map(str, widths))}"),
        "context": Box(2, row + 1, PURPLE, f"context, masked conv 5×5\n{M} → {c.context_out}"),
        "z": Box(0, row + 2, PURPLE, _size("$Q$, AE, AD\n$z$: ", c.N, 64)),
        "h_s": Box(1, row + 2, PURPLE, f"hyper-synthesis $h_s$\n{c.N} → {c.hyper_out}"),
    }


def here(notebook: str) -> Figure:
    """The map at the head of a notebook ("03a"), with its own stations in colour."""
    notebook = APPENDIX.get(notebook, notebook)
    with figure_style():
        figure = plt.figure(figsize=(9, 1.25))
        figure.set_layout_engine("none")
        ax = figure.add_axes((0, 0, 1, 1), xlim=(-0.5, len(MAP) - 0.5), ylim=(1.6, -0.6))
        ax.axis("off")
        for column, (words, number) in enumerate(MAP):
            _station(ax, column, 0, words, number, notebook)
            if column:
                ax.annotate("", (column - 0.36, 0), (column - 0.64, 0),
                            arrowprops={"arrowstyle": "-|>", "linewidth": 0.7, "color": "0.4"})
        for column, (words, number) in enumerate(QUESTIONS):
            _station(ax, 3 + column, 1.05, words, number, notebook)
    return figure


def _station(ax: Axes, column: float, row: float, words: str, number: str, notebook: str) -> None:
    colour = RED if number == notebook else "0.9"
    frame = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "none"}
    ax.text(column, row, f"{words}\n{number}" if number else words, bbox=frame, fontsize=8,
            color="white" if number == notebook else "black", ha="center", va="center")


def _draw(boxes: dict[str, Box], chains: list[str]) -> Figure:
    """Paint boxes, and arrows along chains of their names: "a b c" is two arrows.

    A cell of the grid is as large as the largest box, and a gap.
    """
    with figure_style():
        figure = plt.figure()
        figure.set_layout_engine("none")
        ax = figure.add_axes((0, 0, 1, 1))
        ax.axis("off")
        texts = {name: _text(ax, box) for name, box in boxes.items()}
        sizes = [text.get_window_extent().size / figure.dpi for text in texts.values()]
        columns, rows = (max(text.get_position()[k] for text in texts.values()) for k in (0, 1))
        figure.set_size_inches((np.max(sizes, axis=0) + GAPS) * (columns + 1, rows + 1))
        ax.set(xlim=(-0.5, columns + 0.5), ylim=(rows + 0.5, -0.5))
        for chain in chains:
            for a, b in pairwise(texts[name] for name in chain.split()):
                ax.annotate("", b.get_position(), a.get_position(), arrowprops=dict(
                    arrowstyle="-|>", mutation_scale=6, linewidth=0.7, color="#222222", shrinkA=0,
                    shrinkB=0, patchA=a.get_bbox_patch(), patchB=b.get_bbox_patch()))
    return figure


def _text(ax: Axes, box: Box) -> Text:
    frame = {"boxstyle": "round,pad=0.6", "facecolor": to_rgba(box.colour, 0.3),
             "edgecolor": "gray" if box.colour == "white" else box.colour}
    place = {"ha": "center", "va": "center", "fontsize": 6.8}
    return ax.text(box.column, box.row, box.text, bbox=frame, **place)
