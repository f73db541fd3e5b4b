"""Photos for the dashboard: pieces of the embedded ones, and a user's own."""

import io

from PIL import Image, ImageOps

from ..codec.images import plug_in, prepare
from ..errors import UNREADABLE, AINNError
from ..measure.datasets import photo

CORNERS = {"astronaut": (150, 0), "chelsea": (96, 22), "coffee": (180, 100), "rocket": (20, 0)}
SIDE, SMALLEST = 256, 16  # pixels


def embedded_crop(name: str) -> Image.Image:
    """The dashboard's piece of an embedded photo: 256 x 256, of the rocket 256 x 208."""
    left, top = CORNERS[name]
    image = photo(name)
    return image.crop((left, top, left + SIDE, top + min(SIDE, image.height // 16 * 16)))


def own_photo(data: bytes) -> tuple[Image.Image, str]:
    """A user's image file as the explorers take it, and one line that says what was done.

    It becomes RGB, at most 256 x 256 pixels, multiples of 16. A larger one is shrunk until its
    shorter side fits, then its middle is kept.

    Raises:
        AINNError: when it is no image, damaged, too large or too small.
    """
    plug_in()
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise AINNError("this image has far too many pixels") from None
    except UNREADABLE:
        raise AINNError("this file is no image that can be read") from None
    prepared = prepare(image)
    picture = Image.fromarray(prepared.rgb)
    width, height = picture.size
    if min(width, height) < SMALLEST:
        raise AINNError(f"this image has {width}x{height} pixels; each side needs {SMALLEST}")
    words = [f"{width}x{height} pixels", *prepared.notes]
    if prepared.alpha is not None:
        words.append("what is transparent is laid on white")
        white = Image.new("RGB", picture.size, "white")
        picture = Image.composite(picture, white, Image.fromarray(prepared.alpha))
    if min(width, height) > SIDE:
        words[0] += f", shrunk, the middle {SIDE}x{SIDE} kept"
        return ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS), "; ".join(words)
    kept_width, kept_height = (min(SIDE, side) // 16 * 16 for side in (width, height))
    if (kept_width, kept_height) != (width, height):
        words[0] += f", the middle {kept_width}x{kept_height} kept"
        left, top = (width - kept_width) // 2, (height - kept_height) // 2
        picture = picture.crop((left, top, left + kept_width, top + kept_height))
    return picture, "; ".join(words)
