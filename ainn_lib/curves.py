"""Rate-distortion curves and what is made of them: the BD-rate, Figure 5 and the table.

Every curve says where it comes from: *measured here* (`ainn_lib.evaluate`), *published as numbers* (`data/published`). A
curve over a whole data set and one over a part of it never share a BD-rate or a line style.
"""

import csv
import json
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import bjontegaard
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from .data import DATASETS
from .errors import AINNError
from .provenance import ROOT

MEASURED, PUBLISHED = ROOT / "figures" / "data" / "rd", ROOT / "data" / "published"
STYLE = Path(__file__).with_name("ainn.mplstyle")
PANELS = {"kodak": "Kodak", "clic2020-mobile-valid": "CLIC Mobile", "clic2020-professional-valid": "CLIC Professional",
          "tecnick": "Tecnick"}
TITLES = PANELS | {"embedded": "embedded photos"}

# One colour for a codec everywhere (Okabe and Ito's, and Tol's, told apart by colour-blind readers). A measured codec and
# the published numbers of its standard share a colour and differ in line.
BLUE, SKY, GREEN, YELLOW, ORANGE, RED, PURPLE, BLACK = (
    "#0072B2", "#56B4E9", "#009E73", "#C9A800", "#E69F00", "#D55E00", "#CC79A7", "#000000")
LOOK: dict[str, tuple[str, str]] = {  # codec -> title, colour; traditional codecs first, from simple to strong
    "jpeg": ("JPEG", "#999999"), "jpeg444": ("JPEG 4:4:4", "#666666"),
    "jpegbest": ("the better JPEG", "#333333"), "jpeg2000": ("JPEG 2000", YELLOW),
    "jpeg2000rate": ("JPEG 2000, fixed rate", "#8B7500"), "webp": ("WebP", SKY),
    "jpegxl": ("JPEG XL", PURPLE), "avif": ("AVIF 4:4:4", ORANGE), "av1": ("AV1", ORANGE),
    "hevc": ("HEVC intra 4:4:4 (x265)", GREEN), "bpg_444_x265_ycbcr": ("BPG 4:4:4", GREEN), "hm": ("HM", "#117733"),
    "vvc": ("VVC intra 4:2:0 (VVenC)", BLUE), "vtm": ("VTM", BLUE),
    "compressai-bmshj2018-factorized_mse_cuda": ("Factorized (2018)", "#999999"),
    "compressai-bmshj2018-hyperprior_mse_cuda": ("Hyperprior (2018)", SKY),
    "compressai-mbt2018-mean_mse_cuda": ("Mean-scale (2018)", YELLOW),
    "compressai-mbt2018_mse_cuda": ("Joint (2018)", "#7F4F24"),
    "compressai-cheng2020-anchor_mse_cuda": ("Cheng anchor (2020)", GREEN),
    "compressai-cheng2020-attn_mse_cuda": ("Cheng attention (2020)", "#332288"),
    "invcompress2021-mse": ("InvCompress (2021)", PURPLE), "paper-elic2022_mse": ("ELIC (2022)", BLUE),
    "msinn2025-vbr": ("MSINN (2025)", "#882255"),
    "tiny": ("A-INN tiny (ours)", "#F08A6B"), "student": ("A-INN student (ours)", RED),
    "ainn-authors": ("A-INN (authors)", BLACK),
}
for _name in [name for name in LOOK if "_mse" in name]:  # the same network, trained for the other metric
    LOOK[_name.replace("_mse", "_ms-ssim")] = LOOK[_name]
OURS = ("tiny", "student", "ainn-authors")
APART = ("jpeg2000rate",)  # spends its bits by another rule: measured to show that, never drawn or ranked beside the others
TRADITIONAL = tuple(LOOK)[:tuple(LOOK).index("vtm") + 1]
LEARNED = tuple(name for name in LOOK if name not in TRADITIONAL and name not in OURS)


@dataclass(frozen=True)
class Curve:
    """Points of one codec on one data set, in order of rising rate."""

    codec: str
    dataset: str
    origin: str  #: "measured here" or "published as numbers"
    source: str  #: file or publication
    images: int  #: over which the points are means
    complete: bool  #: whether that is the whole data set
    bpp: tuple[float, ...]
    psnr: tuple[float | None, ...]  #: dB, of RGB
    ms_ssim: tuple[float | None, ...]  #: 0 to 1

    @property
    def title(self) -> str:
        return LOOK.get(self.codec, (self.codec, BLACK))[0]

    def part(self, points: slice) -> "Curve":
        """Some of the points only."""
        return replace(self, bpp=self.bpp[points], psnr=self.psnr[points], ms_ssim=self.ms_ssim[points])

    def points(self, metric: str = "psnr") -> tuple[np.ndarray, np.ndarray]:
        r"""Rates and qualities in dB where the metric is known; MS-SSIM as :math:`-10\log_{10}(1 - \text{MS-SSIM})`."""
        values = self.psnr if metric == "psnr" else [None if v is None or v >= 1 else -10 * math.log10(1 - v)
                                                             for v in self.ms_ssim]
        known = [(rate, value) for rate, value in zip(self.bpp, values, strict=True) if value is not None]
        return tuple(np.array(known).reshape(-1, 2).T)


def measured(folder: str | Path = MEASURED) -> list[Curve]:
    """The curves in a folder of `evaluate`'s JSON files."""
    curves = []
    for path in sorted(Path(folder).glob("*.json")):
        facts = json.loads(path.read_text())
        lists = [facts["results"][key] for key in ("bpp", "psnr-rgb", "ms-ssim-rgb")]
        rows = sorted(zip(*lists, strict=True))
        whole = DATASETS[facts["dataset"]].count if facts["dataset"] in DATASETS else facts["images"]
        curves.append(Curve(facts["codec"], facts["dataset"], facts["source"], path.name, facts["images"],
                            facts["images"] == whole, *zip(*rows, strict=True)))
    return curves


def published(folder: str | Path = PUBLISHED) -> list[Curve]:
    """The curves of all CSV files in a folder: ``rd_points.csv``, and ``authors.csv`` once somebody has filled it.

    Raises:
        AINNError: for a file without the right columns, a row without its source or with something that is no number.
    """
    groups: dict[tuple, list[tuple]] = {}
    for path in sorted(Path(folder).glob("*.csv")):
        with path.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                try:
                    point = (float(row["bpp"]), *(float(row[key]) if row[key] else None for key in ("psnr_db", "ms_ssim")))
                    key = (row["codec"], row["dataset"], row["source"])
                except (KeyError, TypeError, ValueError) as error:
                    raise AINNError(f"{path.name}, line {number}: {error}") from None
                if not all(key):
                    raise AINNError(f"{path.name}, line {number}: codec, dataset and source must be given")
                groups.setdefault(key, []).append(point)
    counts = {name: known.count for name, known in DATASETS.items()}
    return [Curve(codec, dataset, "published as numbers", source, counts.get(dataset, 0), True,
                  *zip(*sorted(points, key=lambda p: p[0]), strict=True))
            for (codec, dataset, source), points in groups.items()]


def per_image(codec: str, dataset: str = "kodak", folder: str | Path = MEASURED) -> tuple[np.ndarray, np.ndarray]:
    """Bits per pixel and PSNR of every image at every setting of a measured codec, each (images, settings), rates rising.

    Raises:
        AINNError: when it was not measured.
    """
    path = Path(folder) / f"{dataset}-{codec}.json"
    if not path.is_file():
        raise AINNError(f"{codec!r} was not measured on {dataset}")
    rows = json.loads(path.read_text())["per_image"]
    bpp, psnr = (np.array([row[key] for row in rows], dtype=float) for key in ("bpp", "psnr-rgb"))
    order = np.argsort(bpp.mean(0))
    return bpp[:, order], psnr[:, order]


def spent(codec: str, rate: float, each: bool = False, dataset: str = "kodak",
          folder: str | Path = MEASURED) -> tuple[np.ndarray, np.ndarray]:
    """Bits per pixel and PSNR of every image, (images,) each, when a measured codec may spend ``rate`` on average.

    Args:
        each: False: one setting for all images, and their *mean* rate is ``rate``; True: every image has that rate.

    Raises:
        AINNError: when its measured settings do not reach that rate, for the mean or for every image.
    """
    bpp, psnr = per_image(codec, dataset, folder)
    rates = bpp if each else np.tile(bpp.mean(0), (len(bpp), 1))
    if not rates[:, 0].max() <= rate <= rates[:, -1].min():
        raise AINNError(f"the settings of {codec!r} do not bring {'every image' if each else 'the mean'} to {rate:g} bpp")
    steps = np.arange(bpp.shape[1])
    where = [np.interp(np.log(rate), np.log(row), steps) for row in rates]
    at = [np.array([np.interp(step, steps, row) for step, row in zip(where, table, strict=True)]) for table in (bpp, psnr)]
    return at[0], at[1]


def better_of(a: Curve, b: Curve, name: str, metric: str = "psnr") -> Curve:
    """At each rate the better of two curves: of both the points that do not lie below the other one."""
    points = []
    for one, other in ((a, b), (b, a)):
        rate, quality = one.points(metric)
        other_rate, other_quality = other.points(metric)
        inside = (rate >= other_rate[0]) & (rate <= other_rate[-1])
        rival = np.interp(np.log(rate), np.log(other_rate), other_quality)
        points += [(r, q) for r, q, lost in zip(rate, quality, inside & (rival > quality), strict=True) if not lost]
    rates, qualities = zip(*sorted(points), strict=True)
    linear = tuple(1 - 10 ** (-q / 10) for q in qualities)
    none = (None,) * len(rates)
    psnr, ms_ssim = (qualities, none) if metric == "psnr" else (none, linear)
    return Curve(name, a.dataset, a.origin, f"{a.source}, {b.source}", a.images, a.complete, rates, psnr, ms_ssim)


def better_jpeg(curves: Iterable[Curve], metric: str = "psnr") -> dict[str, Curve]:
    """JPEG with halved (4:2:0) or whole chroma (4:4:4), the better at each rate, by data set, where both were measured.

    Whoever claims to be better than JPEG must be better than this: its codec is called "jpegbest".
    """
    found = {(c.codec, c.dataset): c for c in curves if c.origin == "measured here"}
    both = [dataset for codec, dataset in found if codec == "jpeg" and ("jpeg444", dataset) in found]
    return {d: better_of(found["jpeg", d], found["jpeg444", d], "jpegbest", metric) for d in both}


def gains(anchor: Curve, test: Curve, metric: str = "psnr") -> np.ndarray:
    """How far each point of ``test`` lies above ``anchor`` at the same rate, in dB.

    At rates below the anchor's least: above its point there (it would be worse still with fewer bits). NaN above its largest.
    """
    (rates, qualities), (at, values) = anchor.points(metric), test.points(metric)
    return values - np.interp(np.log(at), np.log(rates), qualities, right=np.nan)


@dataclass(frozen=True)
class BDRate:
    """Mean difference in rate at equal quality, over the qualities that both curves reach."""

    percent: float | None  #: negative: the tested codec needs fewer bits; None: the curves do not overlap
    low: float  #: dB, the overlap's ends
    high: float

    def __str__(self) -> str:
        return "no overlap" if self.percent is None else f"{self.percent:+.1f} % ({self.low:.1f} to {self.high:.1f} dB)"


def bd_rate(anchor: Curve, test: Curve, metric: str = "psnr") -> BDRate:
    """BD-rate of ``test`` against ``anchor`` (Akima interpolation of the logarithm of the rate); nothing is extrapolated.

    Raises:
        AINNError: for curves over different images, or with fewer than four points.
    """
    if anchor.dataset != test.dataset or anchor.images != test.images or anchor.complete != test.complete:
        raise AINNError(f"{anchor.title} and {test.title} were not measured on the same images")
    curves = [_rising(*curve.points(metric)) for curve in (anchor, test)]
    if min(len(rates) for rates, _ in curves) < 4:
        raise AINNError(f"a BD-rate needs four points of each curve: {anchor.title}, {test.title}")
    low, high = max(q[0] for _, q in curves), min(q[-1] for _, q in curves)
    if low >= high:
        return BDRate(None, low, high)
    (rate_a, quality_a), (rate_b, quality_b) = curves
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a small overlap: it is stated
        percent = bjontegaard.bd_rate(rate_a, quality_a, rate_b, quality_b, method="akima", require_matching_points=False)
    return BDRate(float(percent), float(low), float(high))


def _rising(rates: np.ndarray, qualities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points without those that cost more than an earlier one and are no better."""
    keep = [i for i in range(len(rates)) if i == 0 or qualities[i] > qualities[:i].max()]
    return rates[keep], qualities[keep]


def bd_table(curves: Iterable[Curve], anchor: str, metric: str = "psnr") -> pd.DataFrame:
    """BD-rate of every codec against ``anchor``, one row a codec and origin, one column for each data set or part of one.

    The anchor is the one that is measured on the same images, else the published one; "jpegbest" stands for `better_jpeg`.

    Raises:
        AINNError: when no curve of the anchor is there.
    """
    curves = _comparable(curves, metric)
    if anchor == "jpegbest":
        curves += better_jpeg(curves, metric).values()
    anchors = {(c.dataset, c.images): c for c in sorted(curves, key=lambda c: c.origin, reverse=True) if c.codec == anchor}
    if not anchors:
        raise AINNError(f"there is no curve of {anchor!r} to compare with")
    rows: dict[tuple[str, str], dict[str, str]] = {}
    order = {name: i for i, name in enumerate(LOOK)}
    for curve in sorted(curves, key=lambda c: (order.get(c.codec, 99), c.codec, c.origin)):
        if curve.codec != anchor and (curve.dataset, curve.images) in anchors and curve.codec in LOOK:
            column = TITLES.get(curve.dataset, curve.dataset) + ("" if curve.complete else f" ({curve.images} images)")
            entry = rows.setdefault((curve.title, curve.origin), {})
            entry[column] = str(bd_rate(anchors[curve.dataset, curve.images], curve, metric))
    index = pd.MultiIndex.from_tuples(rows, names=["codec", "source"])
    table = pd.DataFrame(list(rows.values()), index=index).fillna("-")
    places = {title: i for i, title in enumerate(TITLES.values())}
    return table[sorted(table.columns, key=lambda name: places.get(name.split(" (")[0], 9))]


def _comparable(curves: Iterable[Curve], metric: str) -> list[Curve]:
    return [c for c in curves if (_trained_for(c) or metric) == metric and c.codec not in APART and len(c.points(metric)[0])]


def draw_curve(ax: Axes, curve: Curve, metric: str = "psnr") -> None:
    """One curve in its codec's colour: measured solid with dots, a measured part of a set dotted, published dashed."""
    rates, qualities = curve.points(metric)
    if curve.origin == "published as numbers":
        line = dict(linestyle="--", linewidth=0.9, dashes=(4, 1.3))
    elif curve.complete:
        line = dict(linestyle="-", marker="o", markersize=2.2, linewidth=1.1)
    else:
        line = dict(linestyle=":", marker="s", markersize=2.2, linewidth=1.1, markerfacecolor="white")
    if curve.codec in OURS:
        line["linewidth"], line["zorder"] = 1.8, 5
    ax.plot(rates, qualities, color=LOOK.get(curve.codec, ("", BLACK))[1], label=curve.title, **line)


def rd_figure(curves: Iterable[Curve], metric: str = "psnr", max_bpp: float = 2.0) -> Figure:
    """The comparison in eight panels: traditional codecs above, learned ones below, one column a data set.

    Args:
        curves: measured and published ones together.
        metric: "psnr", or "ms-ssim" (in dB); networks trained for one are drawn in its panels only.
    """
    curves = _comparable(curves, metric)
    with plt.style.context(STYLE):
        figure = plt.figure(figsize=(7.2, 6.6), layout="constrained")
        rows = figure.subfigures(2, 1, height_ratios=(1.06, 1))
        for row, (part, kinds) in enumerate(zip(rows, (TRADITIONAL, LEARNED), strict=True)):
            axes = part.subplots(1, len(PANELS), sharex=True, sharey=True)
            for letter, ax, (dataset, title) in zip("abcdefgh"[4 * row:], axes, PANELS.items(), strict=False):
                here = [c for c in curves if c.dataset == dataset and c.codec in (*kinds, *OURS)]
                for curve in here:
                    draw_curve(ax, curve, metric)
                ax.set(title=f"({letter}) {title}", xlabel="bits per pixel", xlim=(0, max_bpp),
                       ylim=(25, 44) if metric == "psnr" else (8, 26),
                       yticks=range(25, 45, 5) if metric == "psnr" else range(10, 30, 5))
                ax.text(0.98, 0.02, _missing(here, dataset), transform=ax.transAxes, ha="right", va="bottom", fontsize=6,
                        color="0.25", linespacing=1.3)
            axes[0].set_ylabel("PSNR (dB)" if metric == "psnr" else "MS-SSIM (dB)")
            _legend(part, axes)
        figure.supxlabel("solid, dots: measured here    dotted, squares: measured here on a part of the set    "
                         "dashed: published as numbers\n" + _authors(curves) + _training(metric), fontsize=6.5)
    return figure


def _legend(part: SubFigure, axes: Iterable[Axes]) -> None:
    """One legend below a row of panels, each title once, in the order of `LOOK`; dashed: only published numbers."""
    lines = sorted((line for ax in axes for line in ax.get_lines()), key=lambda line: line.get_linestyle() != "--")
    handles = {str(line.get_label()): line for line in lines}  # the last one stays: a measured one, if there is any
    order = [title for title, _ in LOOK.values()]
    labels = sorted(handles, key=lambda label: order.index(label) if label in order else len(order))
    keys = [Line2D([], [], color=line.get_color(), linewidth=line.get_linewidth() + 0.5,
                   linestyle=(0, (2.2, 0.9)) if line.get_linestyle() == "--" else "-") for line in map(handles.get, labels)]
    if labels:
        part.legend(keys, labels, loc="outside lower center", ncols=min(7, -(-len(labels) // 2)), fontsize=6.2,
                    handlelength=1.7, columnspacing=1.1, handletextpad=0.5)


def _authors(curves: Iterable[Curve]) -> str:
    filled = any(curve.codec == "ainn-authors" for curve in curves)
    return "A-INN (authors): see data/published/authors.csv" if filled else \
        "the authors' own curve is not public as numbers: its slot, data/published/authors.csv, is empty"


def _training(metric: str) -> str:
    return "" if metric == "psnr" else "\nlearned codecs here were trained for MS-SSIM, ours for squared error"


def _trained_for(curve: Curve) -> str | None:
    """The metric that a network was trained for, by its name; None for the other codecs and ours: they go in all panels."""
    for metric, word in (("psnr", "mse"), ("ms-ssim", "ms-ssim")):
        if curve.codec.endswith(word) or f"_{word}_" in curve.codec:
            return metric
    return None


def _missing(curves: list[Curve], dataset: str) -> str:
    own = [c for c in curves if c.origin == "measured here"]
    if not own:
        words = "nothing measured here:\npublished numbers alone", "nothing measured,\nno published numbers to draw"
        return words[not curves]
    part = next((c.images for c in own if not c.complete), None)
    return f"measured: {part} of {DATASETS[dataset].count} images" if part else ""


def save(item: Figure | pd.DataFrame, name: str, folder: str | Path = ROOT / "figures", caption: str = "") -> list[Path]:
    """A figure as PNG and PDF, a table as CSV and LaTeX; returns the files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(item, Figure):
        paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
        item.savefig(paths[0], dpi=200, metadata={"Software": None})
        item.savefig(paths[1], metadata={"CreationDate": None})
        return paths
    paths = [folder / f"{name}.csv", folder / f"{name}.tex"]
    item.to_csv(paths[0], lineterminator="\n")
    paths[1].write_text(f"% {caption}\n" + item.reset_index().to_latex(index=False, escape=True))  # needs booktabs
    return paths
