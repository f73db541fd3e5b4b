"""Figure 5, the rate-distortion curves of all codecs; and how figures and tables are saved."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from ..paths import FIGURES, ROOT
from ..style import BLACK, LEARNED, LOOK, OURS, TRADITIONAL, figure_style
from .curves import ELSEWHERE, HERE, PANELS, Curve, comparable
from .datasets import DATASETS

LABELS = {"psnr": "PSNR (dB)", "ms-ssim": "MS-SSIM (dB)"}
KODAK_RANGE = (0, 1.5), (26, 40)  #: bpp, and dB of PSNR
LIMITS = {"psnr": (25, 44), "ms-ssim": (8, 26)}
TICKS = {"psnr": range(25, 45, 5), "ms-ssim": range(10, 30, 5)}
LINES = ("solid, dots: measured here    dotted, squares: measured here on a part of the set    "
         "dashed: published as numbers")
# Figure -> what it is drawn from, as patterns of files: code, numbers, weights.
_CURVES = ("ainn_lib/measure/figures.py", "ainn_lib/measure/curves.py", "figures/data/rd/kodak-*",
           "figures/data/rd/clic*", "data/published/*.csv")
DRAWN_FROM = {
    "figure2": ("ainn_lib/ui/drawings.py",),
    "figure5": _CURVES,
    "figure5_ms_ssim": _CURVES,
    "figure5_kodak": _CURVES,
    "figure6": ("ainn_lib/studies/figure6.py", "figures/data/figure6.json"),
    "figure7": ("ainn_lib/studies/activations.py", "data/weights/tiny.safetensors"),
    "figure8": ("ainn_lib/studies/activations.py", "data/weights/tiny.safetensors"),
    "ablation": ("ainn_lib/studies/ablation.py", "figures/data/ablation*.json"),
    "complexity": ("ainn_lib/studies/cost.py",),
}
NO_AUTHORS = ("the authors' own curve is not public as numbers: "
              "its slot, data/published/authors.csv, is empty")


def draw_curve(ax: Axes, curve: Curve, metric: str = "psnr") -> None:
    """One curve in its codec's colour: solid, dotted (measured on a part) or dashed (published)."""
    if curve.origin == ELSEWHERE:
        line = {"linestyle": "--", "dashes": (4, 1.3), "linewidth": 0.9}
    elif curve.complete:
        line = {"linestyle": "-", "marker": "o", "markersize": 2.2, "linewidth": 1.1}
    else:
        line = {"linestyle": ":", "marker": "s", "markersize": 2.2, "linewidth": 1.1}
        line["markerfacecolor"] = "white"
    if curve.codec in OURS:
        line |= {"linewidth": 1.8, "zorder": 5}
    _, colour = LOOK.get(curve.codec, ("", BLACK))
    ax.plot(*curve.points(metric), color=colour, label=curve.title, **line)


def rd_figure(curves: Iterable[Curve], metric: str = "psnr") -> Figure:
    """The comparison in eight panels: traditional codecs above, learned ones below.

    Args:
        curves: measured and published ones together.
        metric: "psnr", or "ms-ssim" (in dB).
    """
    curves = comparable(curves, metric)
    letters = iter("abcdefgh")
    with figure_style():
        figure = plt.figure(figsize=(7.2, 6.6), layout="constrained")
        rows = figure.subfigures(2, 1, height_ratios=(1.06, 1))
        for row, codecs in zip(rows, (TRADITIONAL, LEARNED), strict=True):
            axes = row.subplots(1, len(PANELS), sharex=True, sharey=True)
            for ax, (dataset, title) in zip(axes, PANELS.items(), strict=True):
                here = [c for c in curves if c.dataset == dataset and c.codec in (*codecs, *OURS)]
                _panel(ax, here, dataset, metric)
                ax.set_title(f"({next(letters)}) {title}")
            axes[0].set_ylabel(LABELS[metric])
            _legend(row, axes)
        figure.supxlabel(_caption(curves, metric), fontsize=6.5)
    return figure


def kodak_figure(curves: Iterable[Curve]) -> Figure:
    """The whole of Kodak in one large panel, each curve with its name at its end.

    Of a codec that was measured here, published curves are left out.
    """
    curves = [curve for curve in comparable(curves, "psnr")
              if curve.dataset == "kodak" and curve.complete and curve.codec in LOOK]
    here = {curve.codec for curve in curves if curve.origin == HERE}
    curves = [c for c in curves if c.origin == HERE or c.codec not in here]
    (left, right), (low, high) = KODAK_RANGE
    with figure_style():
        figure, ax = plt.subplots(figsize=(7.2, 6.2), layout="constrained")
        ax.set(xlabel="bits per pixel", ylabel=LABELS["psnr"], xlim=(left, right),
               ylim=(low, high))
        inside, at_edge = [], []
        for curve in curves:
            draw_curve(ax, curve)
            bpp, psnr = curve.points("psnr")
            if bpp[-1] < right and psnr[-1] < high:
                inside.append((psnr[-1], bpp[-1], curve))
            else:
                end = min(right, float(np.interp(high, psnr, bpp)))
                at_edge.append((float(np.interp(end, bpp, psnr)), end, curve))
        _name(ax, inside, lambda end: end + 0.02)
        _name(ax, at_edge, lambda end: right + 0.06)
        ax.text(0.98, 0.02, LINES.replace("    ", "\n"), transform=ax.transAxes, fontsize=6.5,
                ha="right", va="bottom")
    return figure


def _name(ax: Axes, ends: list[tuple[float, float, Curve]],
          beside: Callable[[float], float]) -> None:
    """Write each curve's title beside its end (PSNR, bpp), so that no title covers another."""
    ends = sorted(ends, key=lambda end: (end[0], -end[1]))
    low, high = ax.get_ylim()
    places = _apart([psnr for psnr, *_ in ends], (high - low) / 40, high)
    arrow = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.6", "relpos": (0, 0.5)}
    for (psnr, bpp, curve), place in zip(ends, places, strict=True):
        ax.annotate(curve.title, (bpp, psnr), (beside(bpp), place), color=LOOK[curve.codec][1],
                    fontsize=7, va="center", annotation_clip=False, arrowprops=arrow,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, zorder=6)


def _apart(values: list[float], gap: float, top: float) -> list[float]:
    """Rising values, moved down until each lies at least ``gap`` below the next one, and below top.

    >>> _apart([1.0, 2.0, 2.1], 0.5, 3.0)
    [1.0, 1.6, 2.1]
    """
    places, limit = [], top
    for value in reversed(values):
        places.append(min(value, limit))
        limit = places[-1] - gap
    return places[::-1]


def two_curves(curves: Iterable[Curve], metric: str = "psnr") -> Figure:
    """A few curves in one panel, each with its own name."""
    with figure_style():
        figure, ax = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
        for curve in curves:
            ax.plot(*curve.points(metric), "o-", markersize=3, label=curve.codec)
        ax.set(xlabel="bits per pixel", ylabel=LABELS[metric], xlim=(0, None))
        ax.legend()
    return figure


def _panel(ax: Axes, curves: list[Curve], dataset: str, metric: str) -> None:
    for curve in curves:
        draw_curve(ax, curve, metric)
    ax.set(xlabel="bits per pixel", xlim=(0, 2), ylim=LIMITS[metric], yticks=TICKS[metric])
    place = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
    ax.text(0.98, 0.02, _missing(curves, dataset), fontsize=6, color="0.25", **place)


def _missing(curves: list[Curve], dataset: str) -> str:
    """What a panel does not show."""
    if not curves:
        return "nothing measured,\nno published numbers to draw"
    own = [c for c in curves if c.origin == HERE]
    if not own:
        return "nothing measured here:\npublished numbers alone"
    parts = [c.images for c in own if not c.complete]
    return f"measured: {parts[0]} of {DATASETS[dataset].count} images" if parts else ""


def _caption(curves: list[Curve], metric: str) -> str:
    filled = any(curve.codec == "ainn-authors" for curve in curves)
    caption = "A-INN (authors): see data/published/authors.csv" if filled else NO_AUTHORS
    if metric != "psnr":
        caption += "\nlearned codecs here were trained for MS-SSIM, ours for squared error"
    return f"{LINES}\n{caption}"


def _legend(row: SubFigure, axes: Iterable[Axes]) -> None:
    """One legend below a row of panels, each title once; dashed where it is only published."""
    lines = [line for ax in axes for line in ax.get_lines()]
    lines.sort(key=lambda line: ["--", ":", "-"].index(line.get_linestyle()))
    by_title = {line.get_label(): line for line in lines}  # of one title, the last line stays
    titles = [title for title, _ in LOOK.values()]
    labels = sorted(by_title, key=titles.index)
    if labels:
        row.legend([by_title[label] for label in labels], labels, loc="outside lower center",
                   ncols=min(7, (len(labels) + 1) // 2), fontsize=6.2, columnspacing=1.1)


def origin(name: str, figures: Path = FIGURES) -> dict[str, str]:
    """Pattern of `DRAWN_FROM` -> hash of the files that it names, for a figure."""
    hashes = {}
    for pattern in DRAWN_FROM.get(name, ()):
        root = figures.parent if pattern.startswith("figures/") else ROOT
        digest = hashlib.sha256()
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
        hashes[pattern] = digest.hexdigest()[:12]
    return hashes


def outdated(name: str, figures: Path = FIGURES) -> list[str]:
    """What has changed since a figure's PNG was drawn: patterns of `DRAWN_FROM`."""
    with Image.open(figures / f"{name}.png") as image:
        drawn = json.loads(image.info.get("Source", "{}"))
    return [pattern for pattern, now in origin(name, figures).items() if drawn.get(pattern) != now]


def save(item: Figure | pd.DataFrame, name: str, folder: str | Path = FIGURES,
         caption: str = "") -> list[Path]:
    """A figure as PNG and PDF, a table as CSV and LaTeX (for booktabs); returns the files.

    Figures keep the hashes of what they are drawn from (`origin`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(item, Figure):
        paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
        source = json.dumps(origin(name, folder))
        item.savefig(paths[0], dpi=200, metadata={"Software": None, "Source": source},
                     pil_kwargs={"optimize": True})
        item.savefig(paths[1], metadata={"CreationDate": None, "Keywords": source})
    else:
        paths = [folder / f"{name}.csv", folder / f"{name}.tex"]
        item.to_csv(paths[0], lineterminator="\n")
        latex = item.reset_index().to_latex(index=False, escape=True)
        paths[1].write_text(f"% {caption}\n{latex}", encoding="utf-8")
    return paths
