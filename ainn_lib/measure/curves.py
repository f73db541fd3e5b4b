"""Rate-distortion curves: measured here (`ainn_lib.measure.evaluate`) or published as numbers."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import AINNError
from ..paths import MEASURED, PUBLISHED
from ..style import BLACK, LOOK, NOT_COMPARABLE
from .datasets import DATASETS
from .tables import read_csv, read_points

PANELS = {"kodak": "Kodak", "clic2020-mobile-valid": "CLIC Mobile",
          "clic2020-professional-valid": "CLIC Professional", "tecnick": "Tecnick"}
TITLES = PANELS | {"embedded": "embedded photos"}
HERE, ELSEWHERE = "measured here", "published as numbers"


@dataclass(frozen=True)
class Curve:
    """Points of one codec on one data set, in order of rising rate; NaN or None is not known."""

    codec: str
    dataset: str
    origin: str  #: "measured here" or "published as numbers"
    source: str  #: file or publication
    images: int  #: over which the points are means
    complete: bool  #: whether that is the whole data set
    bpp: tuple[float, ...]
    psnr: tuple[float | None, ...]  #: dB, of RGB
    ms_ssim: tuple[float | None, ...]  #: dB: -10 log₁₀(1 - MS-SSIM)

    @property
    def title(self) -> str:
        return LOOK.get(self.codec, (self.codec, BLACK))[0]

    def part(self, points: slice) -> "Curve":
        """Some of the points only."""
        bpp, psnr, ms_ssim = self.bpp[points], self.psnr[points], self.ms_ssim[points]
        return replace(self, bpp=bpp, psnr=psnr, ms_ssim=ms_ssim)

    def points(self, metric: str = "psnr") -> tuple[np.ndarray, np.ndarray]:
        """Rates (bpp) and qualities (dB) where the metric, "psnr" or "ms-ssim", is known."""
        values = np.array(self.psnr if metric == "psnr" else self.ms_ssim, dtype=float)
        known = ~np.isnan(values)
        return np.array(self.bpp)[known], values[known]


def measured(folder: str | Path = MEASURED) -> list[Curve]:
    """The curves in a folder of the JSON files of `ainn evaluate`.

    Raises AINNError, with the place, for a file that is none.
    """
    curves = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            dataset, images = facts["dataset"], facts["images"]
            complete = dataset not in DATASETS or images == DATASETS[dataset].count
            about = facts["codec"], dataset, facts["source"], path.name, images, complete
            curves.append(from_points(read_results(facts["results"]), about))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AINNError(f"{path} cannot be read as a curve: {error}") from None
    return curves


def read_results(results: dict[str, list]) -> pd.DataFrame:
    """The points of the lists in a JSON file, as `read_points` reads them."""
    rows = [f"value {number}" for number in range(1, len(results["bpp"]) + 1)]
    return read_points(results, rows)


def published(folder: str | Path = PUBLISHED) -> list[Curve]:
    """The curves of all CSV files in a folder: ``rd_points.csv``, and ``authors.csv`` where filled.

    Raises AINNError, with line and column, for a file without the right columns, a value that makes
    no sense, or a row without its source.
    """
    curves, keys = [], ["codec", "dataset", "source"]
    for path in sorted(Path(folder).glob("*.csv")):
        try:
            columns, lines = read_csv(path)
            if missing := [name for name in (*keys, "bpp") if name not in columns]:
                raise ValueError(f"it has no column {', '.join(missing)}")
            table = read_points(columns, lines)
            for key in keys:
                if "" in columns[key]:
                    line = lines[columns[key].index("")]
                    raise ValueError(f"{line}: codec, dataset and source must be given")
                table[key] = columns[key]
        except (OSError, ValueError, csv.Error) as error:
            raise AINNError(f"{path.name} cannot be read: {error}") from None
        for (codec, dataset, source), points in table.groupby(keys, sort=False):
            images = DATASETS[dataset].count if dataset in DATASETS else 0
            curves.append(from_points(points, (codec, dataset, ELSEWHERE, source, images, True)))
    return curves


def from_points(points: pd.DataFrame, about: tuple) -> Curve:
    """A curve of a table whose column ms_ssim has values from 0 to 1; at 1 it is not known."""
    points = points.sort_values("bpp", kind="stable")  # by rate alone: a PSNR may be missing
    lost = 1 - points["ms_ssim"].astype(float)
    ms_ssim = -10 * np.log10(lost.where(lost > 0))
    return Curve(*about, *(tuple(column) for column in (points["bpp"], points["psnr"], ms_ssim)))


def comparable(curves: Iterable[Curve], metric: str) -> list[Curve]:
    """The curves that may share a figure or a table: with points in this metric, no network that
    was trained for the other one (as its name says), and none of `NOT_COMPARABLE`.
    """
    other = "ms-ssim" if metric == "psnr" else "mse"
    curves = [c for c in curves if c.codec not in NOT_COMPARABLE and other not in c.codec]
    return [c for c in curves if len(c.points(metric)[0])]


def per_image(codec: str, dataset: str = "kodak") -> tuple[np.ndarray, np.ndarray]:
    """Bits per pixel and PSNR (dB) of every image at every setting of a measured codec.

    Two arrays (images, settings), in order of rising mean rate. Raises AINNError when the codec
    was not measured.
    """
    path = MEASURED / f"{dataset}-{codec}.json"
    if not path.is_file():
        raise AINNError(f"{codec!r} was not measured on {dataset}")
    rows = json.loads(path.read_text(encoding="utf-8"))["per_image"]
    bpp, psnr = (np.array([row[key] for row in rows], float) for key in ("bpp", "psnr-rgb"))
    order = np.argsort(bpp.mean(0))
    return bpp[:, order], psnr[:, order]


def better_jpeg(curves: Iterable[Curve], metric: str = "psnr") -> dict[str, Curve]:
    """Data set -> JPEG with halved (4:2:0) or whole chroma (4:4:4), the better at each rate.

    Only for data sets on which both were measured. The codec of these curves is "jpegbest": the
    points of both that are not below the other. Who claims to be better than JPEG must be better
    than this.
    """
    here = [curve for curve in comparable(curves, metric) if curve.origin == HERE]
    halved = {curve.dataset: curve for curve in here if curve.codec == "jpeg"}
    whole = {curve.dataset: curve for curve in here if curve.codec == "jpeg444"}
    both = [dataset for dataset in halved if dataset in whole]
    return {dataset: _better(halved[dataset], whole[dataset], metric) for dataset in both}


def _better(a: Curve, b: Curve, metric: str) -> Curve:
    """At each rate the better of two curves."""
    points = []
    for one, other in ((a, b), (b, a)):
        (rates, qualities), (others, rivals) = one.points(metric), other.points(metric)
        rival = np.interp(np.log(rates), np.log(others), rivals, left=-np.inf, right=-np.inf)
        keep = qualities >= rival
        points += zip(rates[keep].tolist(), qualities[keep].tolist(), strict=True)
    rates, qualities = zip(*sorted(points), strict=True)
    known = {"psnr": (None,) * len(rates), "ms_ssim": (None,) * len(rates)}
    known[metric.replace("-", "_")] = qualities
    return replace(a, codec="jpegbest", source=f"{a.source}, {b.source}", bpp=rates, **known)


def gains(anchor: Curve, test: Curve, metric: str = "psnr") -> np.ndarray:
    """How far each point of ``test`` lies above ``anchor`` at the same rate, in dB.

    At rates below the anchor's least: above its point there (with fewer bits it would be worse
    still). NaN above its largest.
    """
    (rates, qualities), (at, values) = anchor.points(metric), test.points(metric)
    return values - np.interp(np.log(at), np.log(rates), qualities, right=np.nan)
