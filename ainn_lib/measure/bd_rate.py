"""BD-rate: the mean difference in rate of two curves at equal quality, and tables of it."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import bjontegaard
import numpy as np
import pandas as pd

from ..errors import AINNError
from ..style import LOOK
from .curves import HERE, TITLES, Curve, better_jpeg, comparable

SMALLEST_OVERLAP = 1.0  #: dB: a mean over less says little about the curves
FEWEST_POINTS = 4


@dataclass(frozen=True)
class BDRate:
    """A BD-rate over the qualities that both curves reach, or the reason why there is none."""

    percent: float | None = None  #: negative: the tested codec needs fewer bits
    low: float = np.nan  #: dB, the overlap's ends
    high: float = np.nan
    reason: str = ""  #: why there is no BD-rate

    def __str__(self) -> str:
        return self.reason or f"{self.percent:+.1f} % ({self.low:.1f} to {self.high:.1f} dB)"


def bd_rate(anchor: Curve, test: Curve, metric: str = "psnr") -> BDRate:
    """BD-rate of ``test`` against ``anchor``: Akima interpolation of the logarithm of the rate.

    Nothing is extrapolated. There is no BD-rate where the curves overlap by less than 1 dB, where
    one has fewer than four points of rising quality, or where they are over different images.
    """
    (rates_a, quality_a), (rates_b, quality_b) = (rising(c, metric) for c in (anchor, test))
    fewest = min(len(rates_a), len(rates_b))
    if (anchor.dataset, anchor.images) != (test.dataset, test.images):
        return BDRate(reason="not measured on the same images")
    if fewest < FEWEST_POINTS:
        return BDRate(reason=f"no BD-rate: a curve of {fewest} points")
    low = float(max(quality_a[0], quality_b[0]))
    high = float(min(quality_a[-1], quality_b[-1]))
    if low >= high:
        return BDRate(reason="no overlap")
    if high - low < SMALLEST_OVERLAP:
        return BDRate(reason=f"no BD-rate: overlap of {high - low:.2g} dB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a small overlap: the text says its ends
        percent = bjontegaard.bd_rate(rates_a, quality_a, rates_b, quality_b, method="akima",
                                      require_matching_points=False)
    return BDRate(float(percent), low, high)


def rising(curve: Curve, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The points without those that cost more than an earlier one and are no better."""
    rates, qualities = curve.points(metric)
    best_before = np.maximum.accumulate([-np.inf, *qualities])[:-1]
    keep = qualities > best_before
    return rates[keep], qualities[keep]


def bd_table(curves: Iterable[Curve], anchor: str, metric: str = "psnr") -> pd.DataFrame:
    """BD-rate of every codec against ``anchor``: a row a codec and origin, a column a data set.

    The anchor is the curve that was measured on the same images, or else the published one;
    "jpegbest" is `better_jpeg`. A part of a data set has its own column. Raises AINNError when
    there is no curve of the anchor.
    """
    curves = comparable(curves, metric)
    if anchor == "jpegbest":
        curves += better_jpeg(curves, metric).values()
    published_first = sorted(curves, key=lambda curve: curve.origin == HERE)
    anchors = {(c.dataset, c.images): c for c in published_first if c.codec == anchor}
    if not anchors:
        raise AINNError(f"there is no curve of {anchor!r} to compare with")
    rows = []
    for curve in curves:
        base = anchors.get((curve.dataset, curve.images))
        if base and curve.codec in LOOK and curve.codec != anchor:
            codec = list(LOOK).index(curve.codec), curve.title, curve.origin
            rows.append((*codec, *_column(curve), str(bd_rate(base, curve, metric))))
    index, columns = ["order", "codec", "source"], ["place", "complete", "data set"]
    table = pd.DataFrame(rows, columns=[*index, *columns, "rate"])
    table = table.pivot_table("rate", index, columns, aggfunc="last")
    return table.droplevel("order").droplevel(["place", "complete"], axis=1).fillna("-")


def _column(curve: Curve) -> tuple[int, bool, str]:
    """The column of a data set: its place, whether all images were measured, and its title."""
    title = TITLES.get(curve.dataset, curve.dataset)
    place = [*TITLES, curve.dataset].index(curve.dataset)
    return place, curve.complete, title if curve.complete else f"{title} ({curve.images} images)"
