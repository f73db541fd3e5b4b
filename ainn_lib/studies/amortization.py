"""The amortization gap: what the file of one image gains when its latent is refined for it alone.

The encoder g_a serves all images at once. What it loses by that on one image is its amortization
gap (Cremer, Li and Duvenaud 2018). A refined file of some effort closes a part of it.
``tools/amortization.py`` measures it; a row of its file holds bits per pixel of the real file, PSNR
of the decoded picture in dB, the cost R + λD in bits per pixel, and seconds of CPU to code it.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from scipy import stats

from ..codec.refine import STEPS
from ..paths import RESULTS
from ..style import LOOK, figure_style

GAP = RESULTS / "amortization.json"
QUALITY = 4.0
TITLES = {"ablation-all": "tied (all modules)", "ablation-untied": "untied baseline",
          "tiny": "tiny", "student": "student"}


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
