"""The amortization gap: what the file of one image gains when its latent is refined for it alone.

The encoder g_a serves all images at once. What it loses by that on one image is its amortization
gap (Cremer, Li and Duvenaud 2018). A refined file of some effort closes a part of it.
"""

import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from ..codec.refine import STEPS, trade_off
from ..codec.weights import load_pretrained
from ..measure.evaluate import as_codec, measure
from ..measure.results import write_results
from ..paths import RESULTS
from ..provenance import provenance
from ..style import LOOK, figure_style

GAP = RESULTS / "amortization.json"
QUALITY = 4.0
TITLES = {"ablation-all": "tied (all modules)", "ablation-untied": "untied baseline",
          "tiny": "tiny", "student": "student"}


def measure_gap(images: dict[str, Image.Image], names: tuple[str, ...] = tuple(TITLES),
                path: Path = GAP) -> Path:
    r"""Code every image at every effort with these weights, and add the rows to the JSON file.

    A row holds bits per pixel of the real file, PSNR of the decoded picture in dB, the cost
    :math:`R + \lambda\,255^2\,\mathrm{MSE}` in bits per pixel, and seconds of CPU to encode.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = [row for row in rows if row["model"] not in names]
    for name in names:
        model = load_pretrained(name)
        for title, image in images.items():
            for effort in range(len(STEPS)):
                began = time.process_time()
                found = measure(as_codec(model, name, effort), image, QUALITY)
                mse = 10 ** (-found["psnr-rgb"] / 10)
                rows.append({
                    "model": name, "image": title, "effort": effort, "bpp": found["bpp"],
                    "psnr": found["psnr-rgb"], "seconds": time.process_time() - began,
                    "cost": found["bpp"] + trade_off(model, QUALITY) * 255**2 * mse})
        write_results(path, {"source": "measured here", "quality": QUALITY, **provenance(),
                             "rows": rows})
    return path


def saved(path: Path = GAP) -> dict[str, dict[int, list[float]]]:
    """Weights -> effort -> percent of the cost R + λD that it saves, of every image."""
    found, before = defaultdict(lambda: defaultdict(list)), {}
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        key = row["model"], row["image"]
        if row["effort"] == 0:
            before[key] = row["cost"]
        else:
            found[row["model"]][row["effort"]].append(100 * (1 - row["cost"] / before[key]))
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean of values, and half of its 95 % interval (Student's t).

    >>> interval([1.0, 3.0])
    (2.0, 12.7)
    """
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), round(float(half), 1)


def gap_figure(path: Path = GAP) -> Figure:
    """Percent of the cost that refinement saves, against its steps: a line for each network."""
    with figure_style():
        figure, ax = plt.subplots(figsize=(5.2, 3), layout="constrained")
        for name, efforts in saved(path).items():
            means, halves = zip(*(interval(values) for values in efforts.values()), strict=True)
            ax.errorbar([STEPS[effort] for effort in efforts], means, yerr=halves, fmt="o-",
                        capsize=3, markersize=4, color=LOOK.get(name, ("", None))[1],
                        label=TITLES[name])
        ax.set(xlabel="steps of refinement", ylabel="saved of R + λD (%)", xscale="log",
               ylim=(0, None))
        ax.set_xticks(STEPS[1:], labels=STEPS[1:])
        ax.legend()
    return figure
