"""The running account of the notebooks: where bits and decibels go, one entry after another.

`measure_account` measures it on pieces of the embedded photos, `account` shows it with the entries
of one notebook in colour.
"""

import json
import statistics
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.distributions import Normal
from torchvision.transforms.functional import center_crop

from ..measure.datasets import EMBEDDED, photo
from ..measure.evaluate import without
from ..measure.results import write_results
from ..network import coder
from ..network.model import AINN
from ..paths import RESULTS
from ..provenance import provenance
from ..style import RED, figure_style
from .activations import Coded, coded, psnr_of

ACCOUNT = RESULTS / "account.json"
WHAT = ("means over the middle 256 x 256 pixels of the embedded photos; bits of real files; "
        "decibels that the picture gains when a stage is put in its place, in this order")
SIDE, QUALITY = 256, 4.0
FORMS = {"bpp": ".3f", "dB": ".2f"}
MODULES = ("CFRM", "PDM", "FDSM-S")  #: put back in this order
GAUSSIAN, PREDICTED = "a Gaussian for each channel", "context and hyper-latent predict"
REST, INVERSE, UNROUNDED = "hyper-latent and header", "the core's inverse alone", "no rounding"
WHOLE = "the file"  #: the sum of the entries above it
#: Entry -> the notebook that is about it; the others are about the whole file.
NOTEBOOK = {GAUSSIAN: "03a", PREDICTED: "03a", REST: "04", INVERSE: "01", "CFRM": "07", "PDM": "06",
            "FDSM-S": "05", UNROUNDED: "02"}


@torch.no_grad()
def measure_account(model: AINN, path: Path = ACCOUNT) -> Path:
    """Measure every entry at quality 4, write them as JSON, and return its path.

    See `WHAT` for the protocol. Another order of the stages would share the gain otherwise.
    """
    photos = [center_crop(photo(name), SIDE) for name in EMBEDDED]
    starts = [coded(model, image, QUALITY) for image in photos]
    bits = zip(*(_bits(model, image, start) for image, start in zip(photos, starts, strict=True)),
               strict=True)
    gaussian, predicted, whole = map(statistics.fmean, bits)
    levels = [_psnr(without(model, *MODULES[k:]), starts, "y_hat") for k in range(len(MODULES) + 1)]
    levels.append(_psnr(model, starts, "unrounded"))
    alone = {name: _psnr(without(model, *(m for m in MODULES if m != name)), starts, "y_hat")
             for name in MODULES}
    gains = {name: b - a for name, (a, b) in zip(MODULES, pairwise(levels), strict=False)}
    return write_results(path, {
        "source": "measured here", "what": WHAT, "quality": QUALITY, "images": len(photos),
        **provenance(),
        "bpp": {GAUSSIAN: gaussian, PREDICTED: predicted - gaussian, REST: whole - predicted,
                WHOLE: whole},
        "dB": {INVERSE: levels[0], **gains, WHOLE: levels[-2], UNROUNDED: levels[-1] - levels[-2]},
        "alone": {name: psnr - levels[0] for name, psnr in alone.items()}})


def _psnr(model: AINN, starts: Iterable[Coded], latent: str) -> float:
    return statistics.fmean(psnr_of(model.g_s(getattr(s, latent)), s.x) for s in starts)


def _bits(model: AINN, image: Image.Image, start: Coded) -> tuple[float, float, float]:
    """Bits per pixel of the latent under one Gaussian a channel, as it is coded, and of the file.

    Mean and deviation of a channel are those of its values in this image.
    """
    y = model.g_a(start.x)
    latent = coder.encode_latent(model, y, QUALITY)
    symbols = torch.round(y[0] * model.gains(QUALITY)[0][0]).flatten(1)
    pixels = image.width * image.height
    return _one_gaussian(symbols) / pixels, latent.y_bits.sum().item() / pixels, start.bpp


def _one_gaussian(symbols: Tensor) -> float:
    """Bits of whole numbers (channels, positions): a discretised Gaussian for each channel.

    >>> _one_gaussian(torch.zeros(3, 100))
    0.0
    """
    mean = symbols.mean(1, keepdim=True)
    deviation = symbols.std(1, keepdim=True).clamp_min(0.05)
    gaussian = Normal(mean.double(), deviation.double())
    probability = gaussian.cdf(symbols + 0.5) - gaussian.cdf(symbols - 0.5)
    return abs(-torch.log2(probability.clamp_min(2**-32)).sum().item())


def entries(notebook: str, path: Path = ACCOUNT) -> str:
    """The entries of a notebook ("03a"), or else the sums, in one line.

    Of a module, also what it gains alone, where the others are not in their places.
    """
    facts = json.loads(path.read_text(encoding="utf-8"))
    words = [f"{name}: {facts[unit][name]:{_sign(name)}{form}} {unit}"
             for unit, form in FORMS.items() for name in _of(notebook) if name in facts[unit]]
    words += [f"{name} alone: {facts['alone'][name]:+.2f} dB"
              for name in _of(notebook) if name in facts["alone"]]
    return "; ".join(words)


def _sign(name: str) -> str:
    """A sign where the entry is added to what stands above it."""
    return "" if name in (GAUSSIAN, INVERSE, WHOLE) else "+"


def _of(notebook: str) -> list[str]:
    return [name for name, where in NOTEBOOK.items() if where == notebook] or [WHOLE]


def account(notebook: str, path: Path = ACCOUNT) -> Figure:
    """The account as two waterfalls, with what `entries` names in colour."""
    facts, ours = json.loads(path.read_text(encoding="utf-8")), _of(notebook)
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(9, 2.1), layout="constrained")
        for ax, (unit, form) in zip(axes, FORMS.items(), strict=True):
            _waterfall(ax, facts[unit], ours, form)
        axes[0].set(title="bits per pixel", xlim=(0, 1.2 * max(facts["bpp"].values())))
        first, last = (facts["dB"][name] for name in (INVERSE, WHOLE))
        axes[1].set(title="PSNR in dB", xlim=(first - 1, last + facts["dB"][UNROUNDED] + 2))
    return figure


def _waterfall(ax: Axes, rows: dict[str, float], ours: list[str], form: str) -> None:
    level = 0.0
    for place, (name, amount) in enumerate(rows.items()):
        start = 0.0 if name == WHOLE else level  # a sum begins again
        level = start + amount
        ax.barh(place, amount, left=start, color=RED if name in ours else "0.75")
        ax.text(max(start, level), place, f" {amount:{_sign(name)}{form}}", va="center", fontsize=8)
    names = [f"{name}  [{NOTEBOOK[name]}]" if name in NOTEBOOK else name for name in rows]
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.invert_yaxis()
