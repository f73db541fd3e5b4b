"""Figure 6 in our numbering: details of photos from files of equal size, codec beside codec."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from .codecs import CODECS, Codec
from .curves import BLACK, LOOK, STYLE
from .data import photo
from .errors import AINNError
from .evaluate import as_codec, compact_json
from .metrics import psnr
from .model import AINN
from .provenance import provenance
from .rate import GRID

SETTINGS = {"jpeg2000": 16, "jpegxl": 16}  #: steps in one unit of a setting that need not be whole
RIVALS = ("jpeg", "jpeg2000", "webp", "hevc")
DETAILS = {"astronaut": (182, 64), "chelsea": (136, 94), "coffee": (336, 136)}  #: left and upper edge of what is shown
SIDE = 84  #: pixels


@dataclass(frozen=True)
class Sized:
    """A photo as a file of a wanted size."""

    codec: str
    setting: float
    data: bytes
    bpp: float  #: of the file
    psnr: float  #: dB, of the decoded 8-bit image
    decoded: Image.Image


def at_rate(subject: Codec, image: Image.Image, bpp: float) -> Sized:
    """The largest file of at most ``bpp`` bits per pixel, by bisection over the codec's settings, and what it decodes to.

    A network with one rate has one file, whatever ``bpp`` is.

    Raises:
        AINNError: when the file of the codec's lowest setting is larger.
    """
    first, last = subject.settings[0], subject.settings[-1]
    grid = SETTINGS.get(subject.name, 1) if subject.name in CODECS else GRID
    low, high, best = 0, round(abs(last - first) * grid), None
    room = bpp * image.width * image.height * (1 + 1e-9)  # a file's own bpp must not fail on rounding
    while low <= high:
        middle = (low + high) // 2 if best else low  # the smallest file first: is there one at all?
        setting = first + middle / grid * (1 if last >= first else -1)
        data = subject.encode(image, setting)
        if 8 * len(data) <= room or first == last:
            best, low = (setting, data), middle + 1
        elif best is None:
            raise AINNError(f"{subject.title} has no file of {bpp:g} bits per pixel for this image")
        else:
            high = middle - 1
    decoded = subject.decode(best[1])
    return Sized(subject.name, *best, 8 * len(best[1]) / (image.width * image.height), psnr(image, decoded), decoded)


def comparison(model: AINN, name: str, bpp: float = 0.4, photos: Iterable[str] = tuple(DETAILS)) -> dict[str, list[Sized]]:
    """Whole photos as files of at most ``bpp``: photo -> our file, then those of `RIVALS`."""
    subjects = [as_codec(model, name), *(CODECS[rival] for rival in RIVALS)]
    return {key: [at_rate(subject, photo(key), bpp) for subject in subjects] for key in photos}


def record(files: dict[str, list[Sized]]) -> str:
    """The figure's numbers as JSON: codec, setting, bytes, bpp and PSNR of every file, and where they come from."""
    rows = [{"photo": name, "codec": f.codec, "setting": f.setting, "bytes": len(f.data), "bpp": f.bpp, "psnr-rgb": f.psnr}
            for name, sized in files.items() for f in sized]
    return compact_json({"source": "measured here", **provenance(), "files": rows})


def figure6(files: dict[str, list[Sized]]) -> Figure:
    """One row a photo: the original's detail, then each codec's, framed in its colour; below: the *whole* file's numbers."""
    columns = 1 + len(next(iter(files.values())))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(len(files), columns, figsize=(7.16, 1.4 * len(files) + 0.25), squeeze=False)
        for row, (name, sized) in zip(axes, files.items(), strict=True):
            left, top = DETAILS[name]
            box = (left, top, left + SIDE, top + SIDE)
            row[0].imshow(photo(name).crop(box), interpolation="nearest")
            row[0].set_xlabel(name, fontsize=6.5)
            row[0].spines[:].set_visible(True)
            for ax, file in zip(row[1:], sized, strict=True):
                ax.imshow(file.decoded.crop(box), interpolation="nearest")
                ax.set_xlabel(f"{file.bpp:.3f} bpp, {file.psnr:.2f} dB", fontsize=6.5)
                ax.spines[:].set(visible=True, color=_look(file.codec)[1], linewidth=2.5)
        for ax, title in zip(axes[0], ["original", *(_look(file.codec)[0] for file in sized)], strict=True):
            ax.set_title(textwrap.fill(title, 14), fontsize=7)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    return figure


def _look(name: str) -> tuple[str, str]:
    return LOOK.get(name, (name, BLACK))
