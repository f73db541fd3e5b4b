"""Two rate-distortion files against each other: what ``ainn bd-rate`` says.

A file is one of ours, one of CompressAI's (JSON), or a table (CSV) with a header: bpp, and psnr or
ms-ssim.
"""

import csv
import json
import statistics
import warnings
from dataclasses import replace
from pathlib import Path

import bjontegaard
import numpy as np

from ..errors import AINNError
from .bd_rate import bd_rate, rising
from .curves import Curve, from_points, read_results
from .tables import read_csv, read_points


def read_curve(path: str | Path) -> tuple[Curve, dict[str, Curve]]:
    """The curve of a file, and those of its images, if it has them.

    Raises AINNError, with row and column, for what is no curve.
    """
    path, facts = Path(path), {}
    try:
        if path.suffix.lower() == ".json":
            facts = json.loads(path.read_text(encoding="utf-8-sig"))
            points = read_results(facts["results"])
        else:
            points = read_points(*read_csv(path))
        if points["bpp"].isna().all() or points[["psnr", "ms_ssim"]].isna().all(axis=None):
            raise ValueError("it needs a column bpp, and psnr or ms-ssim")
        codec, dataset = facts.get("name", path.stem), facts.get("dataset", "")
        about = codec, dataset, "", path.name, facts.get("images", 0), True
        images = {row["image"]: from_points(read_results(row), about)
                  for row in facts.get("per_image", ())}
        return from_points(points, about), images
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise AINNError(f"{path} cannot be read as a curve: {error}") from None


def compare(anchor: str | Path, test: str | Path, metric: str = "psnr") -> list[str]:
    """Sentences about the second file against the first: BD-rate, BD-quality, and warnings.

    Args:
        metric: "psnr", or "ms-ssim" (in dB, -10 log₁₀(1 - MS-SSIM)).

    Raises:
        AINNError: as `read_curve` does.
    """
    (a, images_a), (b, images_b) = read_curve(anchor), read_curve(test)
    words = [f"anchor {_described(a, metric)}", f"test   {_described(b, metric)}"]
    result = bd_rate(a, replace(b, dataset=a.dataset, images=a.images), metric)
    if result.percent is None:
        words.append(f"BD-rate: {result}")
    else:
        words.append(f"BD-rate: {result}; Akima interpolation of the logarithm of the rate")
        words.append(f"BD-{metric.upper()}: {_bd_quality(a, b, metric):+.2f} dB")
    both = [name for name in images_a if name in images_b]
    each = [bd_rate(images_a[name], replace(images_b[name], dataset=a.dataset, images=a.images),
                    metric).percent for name in both]
    known = [percent for percent in each if percent is not None]
    if known:
        words.append(f"mean of the BD-rates of {len(known)} of {len(both)} images: "
                     f"{statistics.fmean(known):+.1f} %")
    return words + [f"warning: {text}" for text in _doubts(a, b, metric)]


def _described(curve: Curve, metric: str) -> str:
    rates, qualities = curve.points(metric)
    span = ""
    if len(rates):
        span = (f", {rates[0]:.3f} to {rates[-1]:.3f} bpp, "
                f"{qualities[0]:.2f} to {qualities[-1]:.2f} dB")
    where = f" on {curve.dataset}" if curve.dataset else ""
    images = f", {curve.images} images" if curve.images else ""
    return f"{curve.codec}{where}{images}: {len(rates)} points{span}"


def _bd_quality(a: Curve, b: Curve, metric: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `_doubts` says what there is to say
        return float(bjontegaard.bd_psnr(*rising(a, metric), *rising(b, metric), method="akima",
                                         require_matching_points=False))


def _doubts(a: Curve, b: Curve, metric: str) -> list[str]:
    """What makes a BD-rate mean little."""
    doubts = []
    if (a.dataset, a.images) != (b.dataset, b.images):
        doubts.append("the files name different images: a BD-rate compares equal ones only")
    for curve in (a, b):
        points, (rates, qualities) = curve.points(metric), rising(curve, metric)
        if len(rates) < len(points[0]):
            doubts.append(f"{curve.codec}: {len(points[0]) - len(rates)} points cost more than "
                          "another and are no better; they are left out")
        slopes = np.diff(qualities) / np.diff(np.log2(rates))
        if len(slopes) > 2 and slopes[-1] < np.median(slopes) / 2:
            doubts.append(f"{curve.codec} saturates: {slopes[-1]:.1f} dB for the last doubling of "
                          f"the rate, {np.median(slopes):.1f} dB in the middle")
    (rates_a, quality_a), (rates_b, quality_b) = rising(a, metric), rising(b, metric)
    if not len(rates_a) or not len(rates_b):
        return doubts
    low, high = max(quality_a[0], quality_b[0]), min(quality_a[-1], quality_b[-1])
    if low < high:
        at = np.linspace(low, high, 50)
        apart = (np.interp(at, quality_b, np.log(rates_b))
                 - np.interp(at, quality_a, np.log(rates_a)))
        if apart.min() < -0.005 and apart.max() > 0.005:
            doubts.append("the curves cross: who needs fewer bits depends on the quality")
    return doubts
