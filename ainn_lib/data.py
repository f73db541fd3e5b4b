"""Photographs that need no download: four from scikit-image's wheel, for evaluation only (nothing is trained on them)."""

import numpy as np
from PIL import Image

from .errors import AINNError

EMBEDDED = ("astronaut", "chelsea", "coffee", "rocket")


def photo(name: str) -> Image.Image:
    """One of the `EMBEDDED` photos as an RGB image: astronaut 512x512, chelsea 451x300, coffee 600x400, rocket 320x213.

    They come with scikit-image (free licences; see its ``data`` documentation). The rocket is a JPEG there and is halved,
    so that its blocks do not favour a codec.

    Raises:
        AINNError: for another name.
    """
    if name not in EMBEDDED:
        raise AINNError(f"no photo named {name!r}; there are {', '.join(EMBEDDED)}")
    import skimage.data

    image = Image.fromarray(np.asarray(getattr(skimage.data, name)()))
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS) if name == "rocket" else image
