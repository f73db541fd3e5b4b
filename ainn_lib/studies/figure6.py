"""For Figure 6 in our numbering: photos as files of equal size, codec beside codec."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from ..codec.coding import largest_within
from ..errors import AINNError
from ..measure.classical import CODECS, Codec
from ..measure.datasets import photo
from ..measure.evaluate import as_codec
from ..measure.metrics import psnr
from ..network.entropy_model import GRID
from ..network.model import AINN

GRIDS = {"jpeg2000": 16, "jpegxl": 16}  #: settings in one unit, where they need not be whole
RIVALS = ("jpeg", "jpeg2000", "webp", "hevc")
PHOTOS = ("astronaut", "chelsea", "coffee")


class Sized(NamedTuple):
    """A photo as a file of a wanted size."""

    codec: str
    setting: float
    data: bytes
    bpp: float  #: of the file
    psnr: float  #: dB, of the decoded 8-bit image
    decoded: Image.Image


def at_rate(subject: Codec, image: Image.Image, bpp: float) -> Sized:
    """The largest file of at most ``bpp`` bits per pixel, by bisection over the settings.

    A network with one rate has one file, whatever ``bpp`` is. Raises AINNError when the file of
    the codec's lowest setting is larger.
    """
    first, last = subject.settings[0], subject.settings[-1]
    grid = GRIDS.get(subject.name, 1) if subject.name in CODECS else GRID
    settings = np.linspace(first, last, round(abs(last - first) * grid) + 1).tolist()
    pixels = image.width * image.height
    # 1 + 1e-9: a file's own rate is rounded
    limit = bpp * pixels / 8 * (1 + 1e-9) if len(settings) > 1 else float("inf")
    best = largest_within(lambda step: subject.encode(image, settings[step]),
                          0, len(settings) - 1, limit)
    if best is None:
        raise AINNError(f"{subject.title} has no file of {bpp:g} bits per pixel for this image")
    step, data = best
    decoded = subject.decode(data)
    return Sized(subject.name, settings[step], data, 8 * len(data) / pixels,
                 psnr(image, decoded), decoded)


def comparison(model: AINN, name: str, bpp: float = 0.4) -> dict[str, list[Sized]]:
    """Photos as files of at most ``bpp``: photo -> our file, then those of `RIVALS`."""
    subjects = [as_codec(model, name), *(CODECS[rival] for rival in RIVALS)]
    return {key: [at_rate(subject, photo(key), bpp) for subject in subjects] for key in PHOTOS}
