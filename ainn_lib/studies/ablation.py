"""The ablation: every network starts as the same linear codec and sees the same samples.

``tools/ablation.py`` trains and measures; here are its variants, and what follows from its files.
"""

import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

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


def against(rows: list[Row], anchor: str = ANCHOR) -> dict[str, list[float]]:
    """Variant -> BD-rates of its runs against the mean of ``anchor``'s, in percent.

    NaN: no common range of PSNR.
    """
    runs = [row for row in rows if row.variant == anchor]
    bpp, psnr = np.mean([(row.bpp, row.psnr) for row in runs], axis=0)
    reference, rates = replace(runs[0], bpp=bpp, psnr=psnr).curve(), defaultdict(list)
    for row in rows:
        if row.variant not in CHOICES:
            percent = bd_rate(reference, row.curve()).percent
            rates[row.variant].append(math.nan if percent is None else percent)
    return dict(rates)


def verdict(runs: list[float], reference: list[float]) -> str:
    """What the seeds allow to say of a variant and its anchor.

    >>> verdict([-3.0, -2.0], [-0.5, 0.5]), verdict([-1.0, 0.0], [-0.5, 0.5])
    ('better', 'no difference measured')
    >>> verdict([-3.0], [-0.5, 0.5]), verdict([], [-0.5, 0.5])
    ('one seed only', '-')
    """
    if any(map(math.isnan, runs)):
        return "no common range of PSNR"
    if len(runs) < 2:
        return "one seed only" if runs else "-"
    if max(runs) < min(reference):
        return "better"
    return "worse" if min(runs) > max(reference) else "no difference measured"


def _spread(runs: list[float]) -> str:
    """Mean and range over the seeds."""
    if not runs or any(map(math.isnan, runs)):
        return "-"
    return f"{statistics.fmean(runs):+.1f} % ({min(runs):+.1f} to {max(runs):+.1f})"


def ablation_table(rows: list[Row], short: list[Row]) -> pd.DataFrame:
    """One line a variant: size, cost, BD-rates against the plain INN, and the verdict of ``rows``.

    ``short``: runs of fewer steps, against the plain INN of their own length. A dash: no such run,
    or no common range of PSNR.
    """
    first = {row.variant: row for row in reversed([*rows, *short])}
    final, before = against(rows), against(short)
    names = [name for name in TITLES if name in final or name in before]
    verdicts = {name: verdict(final.get(name, []), final[ANCHOR]) for name in names}
    table = {
        "parameters (M)": [f"{first[name].parameters / 1e6:.2f}" for name in names],
        "trained (M)": [f"{first[name].trained / 1e6:.2f}" for name in names],
        "kMAC/px": [f"{first[name].kmac:.1f}" for name in names],
        f"BD-rate, {short[0].steps:,} steps": [_spread(before.get(name, [])) for name in names],
        f"BD-rate, {rows[0].steps:,} steps": [_spread(final.get(name, [])) for name in names],
        f"against {TITLES[ANCHOR]}": (verdicts | {ANCHOR: "anchor"}).values(),
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
