"""The one reader of images: for the encoder, evaluation, training and the explorers.

It reads what Pillow reads, and HEIC (pillow-heif) and JPEG XL (pillow-jxl-plugin). What happens to
an image that is not plain RGB:

====================  ============================================================================
L, 1, LA              coded as RGB, comes back as L (LA)
RGBA, LA, P with transparency  alpha is kept exactly
P                     its colours; comes back as RGB (RGBA)
CMYK, YCbCr, HSV, LAB converted to RGB by Pillow; comes back as RGB, with a note
16-bit, 32-bit        reduced to 8 bits, with a note. I: from 0 to 65535. F: from 0 to 1. What is
                      outside is clamped
transparent pixels    (alpha 0) their colours are free: continued from those that can be seen
EXIF rotation         applied to the pixels
ICC profile           kept exactly (not for CMYK, whose profile no longer fits: a note)
EXIF, XMP, comments, resolution  not kept, with a note
further frames, a phone's further pictures (MPO, HEIC)  not kept, with a note
====================  ============================================================================
"""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UNREADABLE, AINNError

if TYPE_CHECKING:  # reading images needs no PyTorch
    from torch import Tensor

MAX_PIXELS = 2**26  #: larger images are refused, by the encoder and by the decoder
LARGEST_PROFILE = 2**24
_ORIENTATION = 0x0112
_NO_DPI = (None, (1, 1), (72, 72))  # what Pillow gives where a file says none
# how a TIFF stores its pixels and its colour profile, which we keep; what else it says is lost
_TIFF_TAGS = {_ORIENTATION, *range(254, 260), 262, 266, 273, *range(277, 285), 296, 317, 320,
              *range(322, 326), 338, 339, 347, 530, 531, 532, 34675}


@dataclass(frozen=True)
class Prepared:
    """An image as the codec sees it."""

    rgb: np.ndarray  #: (H, W, 3) uint8
    grey: bool = False
    alpha: np.ndarray | None = None  #: (H, W) uint8
    profile: bytes = b""
    notes: tuple[str, ...] = ()  #: what could not be kept


def open_image(path: str | Path | BinaryIO) -> Image.Image:
    """A photo from disk, or from a binary file.

    Raises:
        AINNError: when it is missing or no image.
    """
    plug_in()
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise AINNError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise AINNError(f"{path} is no image that Pillow knows") from None
    except UNREADABLE as error:
        raise AINNError(f"{path} cannot be read: {error}") from None


@functools.cache
def plug_in() -> None:
    """HEIC and JPEG XL for Pillow; a build without them reads all other formats."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401  (registers itself)


def read_rgb(path: str | Path) -> np.ndarray:
    """The pixels of a photo on disk, (H, W, 3) uint8, turned as EXIF says, without alpha.

    Raises:
        AINNError: when it is missing or cannot be read as an image.
    """
    with open_image(path) as image:
        try:
            return prepare(image).rgb
        except AINNError as error:
            raise AINNError(f"{path}: {error}") from None


def prepare(image: Image.Image) -> Prepared:
    """Rotate as EXIF says, and part an image of any mode into 8-bit RGB, alpha and profile.

    Raises:
        AINNError: when it is no Pillow image, cannot be read, or has no pixels or too many.
    """
    if not isinstance(image, Image.Image):
        raise AINNError(f"expected a Pillow image, got {type(image).__name__}")
    check_size(*image.size)
    # Pillow halves 16 bits of RGB silently: only the file's own layout tells; HEIC says its depth
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    deep |= image.info.get("bit_depth", 8) != 8
    try:
        notes = _loaded(image)
        image = ImageOps.exif_transpose(image)
    except UNREADABLE as error:
        raise AINNError(f"the image cannot be read: {error}") from None
    profile = image.info.get("icc_profile") or b""
    wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if deep or wide:
        read = ", read as values from 0 to 1" if image.mode == "F" else ""
        notes.append(f"the samples are reduced to 8 bits{read}")
    image, alpha = _eight_bits(image) if wide else (image, None)
    if image.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        left_out = ", its colour profile is left out" if profile else ""
        notes.append(f"{image.mode} is converted to RGB{left_out}")
        profile = b""
    elif len(profile) > LARGEST_PROFILE:
        notes.append("the colour profile is too large to be kept")
        profile = b""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    rgb = np.asarray(image.convert("RGB"))
    if alpha is not None:
        rgb = _continued(rgb.astype(float), alpha > 0).round().astype(np.uint8)
    return Prepared(rgb, grey, alpha, profile, tuple(notes))


def _continued(rgb: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Give unknown pixels the mean of the known ones nearby, from blocks of 2x2, 4x4, ...

    Smooth colours cost few bits; what hides under transparency can cost as much as a photo.
    """
    if known.all() or not known.any():
        return rgb * known[..., None]
    height, width = known.shape
    margins = ((0, height % 2), (0, width % 2))
    count = np.pad(known, margins).reshape(-(-height // 2), 2, -1, 2).sum((1, 3))
    total = np.pad(rgb * known[..., None], (*margins, (0, 0)))
    total = total.reshape(len(count), 2, count.shape[1], 2, 3).sum((1, 3))
    coarse = _continued(total / np.maximum(count, 1)[..., None], count > 0)
    fine = coarse.repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.where(known[..., None], rgb, fine)


def _loaded(image: Image.Image) -> list[str]:
    """Load the pixels; notes on what else the file holds and ours does not keep."""
    frames = getattr(image, "n_frames", 1)
    image.load()
    known = _TIFF_TAGS if image.format == "TIFF" else {_ORIENTATION}
    metadata = set(image.getexif()) - known or getattr(image, "text", None)  # text: of a PNG
    kinds = {"MPO": "the photo's further pictures (a preview, depth or gain map) are not kept",
             "HEIF": "of several pictures in the file (a depth map) only the main one is kept"}
    more = frames > 1 or image.info.get("depth_images")
    notes = [kinds.get(image.format, "only the first frame is kept")] if more else []
    lost = any(image.info.get(key) for key in ("xmp", "photoshop", "comment"))
    if metadata or lost or image.info.get("dpi") not in _NO_DPI:
        notes.append("metadata (EXIF, XMP, comments, resolution) is not kept")
    return notes


def _eight_bits(image: Image.Image) -> tuple[Image.Image, np.ndarray | None]:
    """A grey image of 16 or 32 bits with 8 bits, and its alpha, if it has one."""
    samples = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode == "F" and np.median(samples) > 1:
        raise AINNError("float samples are read as values from 0 to 1, but most of these are "
                        "larger: divide them by their full scale")
    full = 1.0 if image.mode == "F" else 65535.0
    scaled = np.clip(samples / full * 255, 0, 255).round().astype(np.uint8)
    clear = image.info.get("transparency")  # of a 16-bit PNG: one grey that is transparent
    alpha = None if clear is None else np.where(samples == clear, 0, 255).astype(np.uint8)
    return Image.fromarray(scaled), alpha


def check_size(width: int, height: int) -> None:
    """Raises AINNError for an image without pixels, or that covers more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise AINNError("the image has no pixels")
    # what the networks see: a thin image is padded to much more
    if -(-width // 64) * -(-height // 64) * 64**2 > MAX_PIXELS:
        raise AINNError(f"the image has {width}x{height} pixels; at most {MAX_PIXELS} are "
                        "accepted, in whole blocks of 64x64")


def to_tensor(rgb: np.ndarray) -> "Tensor":
    """(H, W, 3) uint8 -> (1, 3, H', W') float32 in [0, 1], edges repeated to multiples of 16."""
    import torch  # here, so that reading images needs no PyTorch

    height, width, _ = rgb.shape
    rgb = np.pad(rgb, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255


def to_pixels(x: "Tensor") -> np.ndarray:
    """(1, 3, H, W), values in [0, 1] are kept, others clamped -> (H, W, 3) uint8."""
    values = x[0].detach().float().clamp(0, 1).mul(255).round()
    return values.permute(1, 2, 0).byte().cpu().numpy()


def finish(rgb: np.ndarray, grey: bool, alpha: np.ndarray | None, profile: bytes) -> Image.Image:
    """The image that comes back: in mode L, LA, RGB or RGBA, with its colour profile."""
    image = Image.fromarray(rgb)
    if grey:
        image = image.convert("L")
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    if profile:
        image.info["icc_profile"] = profile
    return image
