"""The ablation: every network starts as the same linear codec and sees the same samples.

``tools/ablation.py`` trains and measures; here are its variants, and what follows from its files.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ..measure.bd_rate import bd_rate
from ..measure.curves import HERE, Curve, gains
from ..paths import RESULTS as FOLDER

RESULTS = FOLDER / "ablation.json"
SHORT = FOLDER / "ablation_short.json"  #: the same after a tenth of the steps
PRESET, SEEDS, ANCHOR = "tiny", (0, 1), "plain"
PLAIN = {"fdsm": False, "cfrm": False, "pdm": "none"}
VARIANTS: dict[str, tuple[str, dict]] = {  #: name -> title, changes to the preset
    "plain": ("the plain INN", PLAIN),
    "cfrm": ("plain + CFRM", {**PLAIN, "cfrm": True}),
    "pdm-residual": ("plain + PDM (residual)", {**PLAIN, "pdm": "residual"}),
    "pdm-dense": ("plain + PDM (dense)", {**PLAIN, "pdm": "dense"}),
    "pdm-unet": ("plain + PDM (U-Net)", {**PLAIN, "pdm": "unet"}),
    "fdsm": ("plain + FDSM", {**PLAIN, "fdsm": True}),
    "all": ("all modules", {}),
    "all-residual": ("all modules, PDM (residual)", {"pdm": "residual"}),
    "all-ms-cfrm": ("all modules + MS-CFRM", {"ms_cfrm": True}),
    "untied-macs": ("untied baseline, equal MACs", {"tied": False}),
    "untied-parameters": ("untied baseline, equal parameters",
                          {"tied": False, "hidden": (12, 12, 16, 20)}),
}
HYPERPRIOR, ON_LEAVES, FIXED = "mbt2018-mean", "dead-leaves", "fixed-rate"
TITLES = {name: title for name, (title, _) in VARIANTS.items()} | {
    HYPERPRIOR: "CompressAI's mbt2018-mean (64, 96)",
    ON_LEAVES: "all modules, trained on dead leaves",
    FIXED: "all modules, one network for each of two rates",
}
CHOICES = {ON_LEAVES: "Dead leaves in place of photos:",
           FIXED: "One network for one rate, in place of one for all:"}


@dataclass(frozen=True)
class Row:
    """One trained variant, measured on the images of a data set."""

    variant: str
    seed: int
    dataset: str
    images: int
    parameters: int
    trained: int  #: parameters that training changes: not the fixed 1x1 matrices
    kmac: float  #: kMAC per pixel of analysis and synthesis
    steps: int
    minutes: float
    bpp: list[float]
    psnr: list[float]  #: dB, of 8-bit pictures

    def curve(self) -> Curve:
        """The points as a curve, for a BD-rate."""
        return Curve(self.variant, self.dataset, HERE, RESULTS.name, self.images, True,
                     tuple(self.bpp), tuple(self.psnr), (None,) * len(self.bpp))


def read_rows(path: Path = RESULTS) -> list[Row]:
    """The rows of a file of ``tools/ablation.py``."""
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


class Difference(NamedTuple):
    """The BD-rate of a variant against an anchor, in percent, each run paired by its seed."""

    runs: list[float]  #: NaN: no common range of PSNR
    half: float  #: of the width of the mean's 95 % interval; NaN: too few runs

    @property
    def mean(self) -> float:
        return statistics.fmean(self.runs)

    @property
    def verdict(self) -> str:
        """What the runs allow to say.

        >>> Difference([-3.0, -2.0], 1.0).verdict, Difference([-3.0, -2.0], 4.0).verdict
        ('better', 'no difference measured')
        """
        if math.isnan(self.mean):
            return "no common range of PSNR"
        if len(self.runs) < 2:
            return "one seed only"
        if self.mean + self.half < 0:
            return "better"
        return "worse" if self.mean - self.half > 0 else "no difference measured"

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:+.1f} %" + (f" ± {self.half:.1f}" if len(self.runs) > 1 else "")


def against(rows: list[Row], anchor: str = ANCHOR) -> dict[str, Difference]:
    r"""Variant -> its difference from ``anchor``.

    Two runs of a seed see the same samples, so each run is compared with the anchor's run of its
    seed. All variants are taken to scatter alike, with one deviation s pooled over them:

    .. math:: s^2 = \frac{\sum_v \sum_i (d_{vi} - \bar d_v)^2}{\nu}, \quad
              \nu = \sum_v (n_v - 1), \quad \bar d_v \pm t_{0.975,\nu}\, s / \sqrt{n_v}
    """
    reference = {row.seed: row.curve() for row in rows if row.variant == anchor}
    runs = defaultdict(list)
    for row in rows:
        if row.variant not in (anchor, *CHOICES) and row.seed in reference:
            percent = bd_rate(reference[row.seed], row.curve()).percent
            runs[row.variant].append(math.nan if percent is None else percent)
    deviation, freedom = _pooled(runs.values())
    factor = float(stats.t.ppf(0.975, freedom)) * deviation if freedom else math.nan
    return {name: Difference(found, factor / math.sqrt(len(found)))
            for name, found in runs.items()}


def _pooled(groups: Iterable[list[float]]) -> tuple[float, int]:
    """The standard deviation within groups, and its degrees of freedom."""
    groups = [np.array(group) for group in groups if not np.isnan(group).any()]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(((group - group.mean()) ** 2).sum() for group in groups)
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def ablation_table(rows: list[Row], short: list[Row]) -> pd.DataFrame:
    """One line a variant: size, cost, BD-rates against the plain INN, and the verdict of ``rows``.

    ``short``: runs of fewer steps, against the plain INN of their own length. A dash: no such run,
    or no common range of PSNR.
    """
    first = {row.variant: row for row in reversed([*rows, *short])}
    final, before = against(rows), against(short)
    names = [name for name in TITLES if name == ANCHOR or name in final or name in before]
    words = {name: (str(before.get(name, "-")), str(final.get(name, "-")),
                    final[name].verdict if name in final else "-") for name in names}
    words[ANCHOR] = "0", "0", "anchor"
    earlier, later, verdicts = zip(*words.values(), strict=True)
    table = {
        "parameters (M)": [f"{first[name].parameters / 1e6:.2f}" for name in names],
        "trained (M)": [f"{first[name].trained / 1e6:.2f}" for name in names],
        "kMAC/px": [f"{first[name].kmac:.1f}" for name in names],
        f"BD-rate, {short[0].steps:,} steps": earlier,
        f"BD-rate, {rows[0].steps:,} steps": later,
        f"against {TITLES[ANCHOR]}": verdicts,
    }
    titles = [TITLES[name] for name in names]
    return pd.DataFrame(table, index=pd.Index(titles, name="network"))


def above(anchor: Row, test: Row) -> list[float]:
    """PSNR of the points of ``test`` minus that of ``anchor`` at the same rate, in dB.

    Points outside the anchor's range of rates are left out.
    """
    decibels = gains(anchor.curve(), test.curve()).tolist()
    return [gain for bpp, gain in zip(test.bpp, decibels, strict=True)
            if anchor.bpp[0] <= bpp <= anchor.bpp[-1]]


class Choice(NamedTuple):
    """What a choice costs or gains, in dB of PSNR at equal rate, at each measured point."""

    question: str
    answer: str  #: one sentence
    decibels: list[float]
    steps: int


def choices(*trainings: list[Row]) -> list[Choice]:
    """Dead leaves in place of photos, and one network for each rate in place of one for all.

    ``trainings``: rows of one length each; the default are both committed files.
    """
    trainings, result = trainings or (read_rows(SHORT), read_rows()), []
    for name, question in CHOICES.items():
        for rows in trainings:
            first = {row.variant: row for row in rows if row.seed == SEEDS[0]}
            if name not in first:
                continue
            row, decibels = first[name], above(first["all"], first[name])
            minutes = row.minutes / (len(row.bpp) if name == FIXED else 1)
            values = ", ".join(f"{value:+.2f}" for value in decibels)
            answer = (f"{statistics.fmean(decibels):+.2f} dB at equal rate, after {row.steps:,} "
                      f"steps ({minutes:.0f} minutes; from low to high rate {values} dB).")
            result.append(Choice(question, answer, decibels, row.steps))
    return result
