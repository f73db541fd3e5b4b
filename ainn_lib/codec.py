"""A real photo becomes a real file, and comes back.

The container, little-endian: magic ``AINN`` (4 bytes), version (1), flags (1), weights' identity (8), width (4),
height (4), quality in 1/256 (2; 0: fixed rate), lengths of latent, alpha plane and colour profile (3 x 4), then these three parts,
then a CRC-32 of everything before it (4). 40 bytes beside the payload.

What happens to an image that is not plain RGB:

====================  =====================================================================================
L, 1, LA              coded as RGB, comes back as L (LA)
RGBA, LA, P with transparency  alpha is kept exactly (PNG)
P                     its colours; comes back as RGB (RGBA)
CMYK, YCbCr, HSV, LAB converted to RGB by Pillow; comes back as RGB, told by a warning
16-bit, 32-bit        reduced to 8 bits (I: 16 bits are assumed; F: 0 to 1, or to 255 where larger), told by a warning
EXIF rotation         applied to the pixels
ICC profile           kept exactly (not for CMYK, whose profile no longer fits; told)
EXIF, XMP, comments, further frames  not kept, told by a warning
====================  =====================================================================================
"""

import functools
import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from . import entropy
from .errors import UNREADABLE, AINNError
from .model import DEFAULT_QUALITY, AINN
from .rate import GRID, QUALITIES, snap
from .weights import find_by_identity, identity

MAGIC, VERSION = b"AINN", 1
MAX_PIXELS = 2**26  #: images that cover more in whole blocks of 64x64 are refused, by the encoder and by the decoder
TILE, TILED_FROM = 512, 2**21  #: images of more pixels than that pass through the transforms in tiles of that side
GREY = 1  #: flag
_HEADER = struct.Struct("<4sBB8sIIHIII")
_LARGEST_PROFILE = 2**24
_ORIENTATION = 0x0112
# how a TIFF stores its pixels and colour profile, which we keep; what else stands there is lost
_TIFF_TAGS = {_ORIENTATION, *range(254, 260), 262, 266, 273, *range(277, 285), 296, 317, 320, *range(322, 326), 338, 339, 347, 530,
              531, 532, 34675}


@dataclass(frozen=True)
class FileInfo:
    """What the header of a file says."""

    version: int
    identity: str  #: of the weights
    width: int
    height: int
    mode: str  #: of the image that comes back
    quality: float | None  #: None: fixed rate
    latent_bytes: int
    alpha_bytes: int
    profile_bytes: int
    bytes: int

    @property
    def bpp(self) -> float:
        """Bits per pixel of the whole file."""
        return 8 * self.bytes / (self.width * self.height)


@dataclass(frozen=True)
class Prepared:
    """An image as the codec sees it."""

    rgb: np.ndarray  #: (H, W, 3) uint8
    grey: bool
    alpha: np.ndarray | None  #: (H, W) uint8
    profile: bytes
    notes: tuple[str, ...]  #: what could not be kept

    @functools.cached_property
    def packed(self) -> tuple[bytes, bytes]:
        """Alpha plane (PNG) and colour profile (zlib) as a file holds them; empty where there is none."""
        alpha = io.BytesIO()
        if self.alpha is not None:
            Image.fromarray(self.alpha).save(alpha, "PNG", optimize=True)
        return alpha.getvalue(), zlib.compress(self.profile, 9) if self.profile else b""


def prepare(image: Image.Image) -> Prepared:
    """Rotate as EXIF says, and part an image of any mode into 8-bit RGB, alpha and colour profile.

    Raises:
        AINNError: when it is no Pillow image, cannot be read, or has no pixels or more than `MAX_PIXELS`.
    """
    if not isinstance(image, Image.Image):
        raise AINNError(f"expected a Pillow image, got {type(image).__name__}")
    check_size(*image.size)
    notes = []
    try:
        if getattr(image, "n_frames", 1) > 1:
            notes.append("only the first frame is kept")
        deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))  # Pillow halves RGB's 16 bits by itself
        image.load()
        # Pillow turns by orientation and strips the tag; whatever else EXIF holds is not in our file
        other_tags = set(image.getexif()) - (_TIFF_TAGS if image.format == "TIFF" else {_ORIENTATION})
        texts = getattr(image, "text", None)  # of a PNG
        image = ImageOps.exif_transpose(image)
    except UNREADABLE as error:
        raise AINNError(f"the image cannot be read: {error}") from None
    if other_tags or texts or any(image.info.get(key) for key in ("xmp", "photoshop", "comment")):
        notes.append("metadata (EXIF, XMP, comments) is not kept")
    profile = image.info.get("icc_profile") or b""
    wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if deep or wide:
        notes.append("the samples are reduced to 8 bits")
    alpha = None
    if wide:
        clear = image.info.get("transparency")  # of a 16-bit PNG: one grey that is transparent
        alpha = None if clear is None else np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8)
        image = _eight_bits(image)
    if image.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        notes.append(f"{image.mode} is converted to RGB" + (", its colour profile is left out" if profile else ""))
        profile = b""
    elif len(profile) > _LARGEST_PROFILE:
        notes.append("the colour profile is too large to be kept")
        profile = b""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    return Prepared(np.asarray(image.convert("RGB")), grey, alpha, profile, tuple(notes))


@torch.no_grad()
def encode(image: Image.Image, model: AINN, quality: float | None = None) -> bytes:
    """The bytes of a file that holds ``image``.

    Args:
        image: any Pillow image from 1x1 up; the table above says what becomes of its mode. Warnings tell what is lost.
        model: trained weights, for instance from `load_pretrained`.
        quality: from 1 (smallest file) to 8 (best), kept in steps of 1/256; None is 4. Only for variable-rate networks.

    Raises:
        AINNError: for a quality on a fixed-rate network or out of range, and for an image that `prepare` refuses.
    """
    quality = quality_of(model, quality)
    prepared = _prepared(image)
    return container(prepared, model, quality, entropy.encode(model, analyse(prepared, model), quality))


@torch.no_grad()
def encode_to_bpp(image: Image.Image, model: AINN, bpp: float) -> bytes:
    """The best file of at most ``bpp`` bits per pixel, header included. Raises AINNError when none is that small."""
    if not model.config.variable_rate:
        raise AINNError("this network has one fixed rate; it cannot aim at a size")
    if not bpp > 0:
        raise AINNError(f"bits per pixel must be above 0, got {bpp}")
    prepared = _prepared(image)
    y = analyse(prepared, model)
    pixels = prepared.rgb.shape[0] * prepared.rgb.shape[1]
    low, high, best = int(QUALITIES[0] * GRID), int(QUALITIES[1] * GRID), None
    while low <= high:
        middle = (low + high) // 2 if best else low  # the smallest file first: is there one at all?
        data = container(prepared, model, middle / GRID, entropy.encode(model, y, middle / GRID))
        if 8 * len(data) <= bpp * pixels:
            best, low = data, middle + 1
        elif best is None:
            raise AINNError(f"the smallest file of this image has {8 * len(data) / pixels:.3f} bits per pixel")
        else:
            high = middle - 1
    return best


@torch.no_grad()
def reconstruct(image: Image.Image, model: AINN, quality: float | None = None) -> Image.Image:
    """The encoder's own reconstruction: what `decode` gives for `encode`'s bytes, without making them."""
    quality = quality_of(model, quality)
    prepared = _prepared(image)
    y_hat = entropy.encode_latent(model, analyse(prepared, model), quality).y_hat
    height, width, _ = prepared.rgb.shape
    return finish(synthesise(y_hat, model, height, width), prepared.grey, prepared.alpha, prepared.profile)


@torch.no_grad()
def decode(data: bytes, model: AINN | None = None, bf16: bool = False) -> Image.Image:
    """The image that a file holds, in mode L, LA, RGB or RGBA.

    The latents are the same on every machine. The float32 synthesis after them gives exactly the encoder's reconstruction on the
    same build and settings, and values within 1/255 of it elsewhere.

    Args:
        model: the weights it was made with; None looks for them in ``data/weights`` and $AINN_WEIGHTS.
        bf16: run the synthesis's convolutions in bfloat16: faster where the processor has instructions for it (much slower where it
            has none), and the picture is no longer exactly the encoder's.

    Raises:
        AINNError: with one sentence, when the bytes are no file of ours, newer, damaged, too large, or made with other
            weights. Time and memory are bounded by `MAX_PIXELS` whatever the bytes say.
    """
    about = info(data)
    if model is None:
        model = find_by_identity(about.identity)
    elif identity(model) != about.identity:
        raise AINNError(f"this file was made with the weights {about.identity}, the given model has {identity(model)}")
    if (about.quality is None) == model.config.variable_rate:
        raise AINNError("the file's header contradicts its weights: damaged")
    start = _HEADER.size
    latent, alpha, profile = (data[start + a:start + b] for a, b in _parts(about))
    alpha = _unpack_alpha(alpha, about.width, about.height) if alpha else None
    profile = _unpack_profile(profile) if profile else b""
    shape = (1, model.config.latent_channels, -(-about.height // 16), -(-about.width // 16))
    y_hat = entropy.decode(model, latent, shape, about.quality)
    with torch.autocast(y_hat.device.type, torch.bfloat16, enabled=bf16):
        rgb = synthesise(y_hat, model, about.height, about.width)
    return finish(rgb, "L" in about.mode, alpha, profile)


def info(data: bytes) -> FileInfo:
    """Read and check a file's header and checksum.

    Raises:
        AINNError: when this is no whole file of ours.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise AINNError(f"expected bytes, got {type(data).__name__}")
    data = bytes(data)
    if len(data) < 5 or not data.startswith(MAGIC):
        raise AINNError("this is no A-INN file")
    if data[4] != VERSION:
        raise AINNError(f"this file has format version {data[4]}; this program reads version {VERSION}")
    if len(data) < _HEADER.size + 4:
        raise AINNError("the file is truncated")
    _, version, flags, weights, width, height, quality, *lengths = _HEADER.unpack_from(data)
    expected = _HEADER.size + sum(lengths) + 4
    if len(data) != expected:
        raise AINNError(f"the file is {'truncated' if len(data) < expected else 'longer than its header says'}: "
                        f"{len(data)} bytes, {expected} expected")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise AINNError("the file is damaged: its checksum does not fit")
    check_size(width, height)
    if flags & ~GREY or (quality and not QUALITIES[0] <= quality / GRID <= QUALITIES[1]):
        raise AINNError("the file's header is damaged")
    mode = ("L" if flags & GREY else "RGB") + ("A" if lengths[1] else "")
    return FileInfo(version, weights.hex(), width, height, mode, quality / GRID if quality else None, *lengths, len(data))


def to_tensor(rgb: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H', W') float32 in [0, 1], the edges repeated to multiples of 16."""
    height, width, _ = rgb.shape
    rgb = np.pad(rgb, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255


def quality_of(model: AINN, quality: float | None) -> float | None:
    """The quality that a file says, in steps of 1/256; None is the default's, or the only one of a fixed-rate network.

    Raises:
        AINNError: for a quality on a fixed-rate network, or out of range.
    """
    if not model.config.variable_rate:
        if quality is not None:
            raise AINNError("this network has one fixed rate; it takes no quality")
        return None
    return snap(DEFAULT_QUALITY if quality is None else quality)


def _prepared(image: Image.Image) -> Prepared:
    prepared = prepare(image)
    for note in prepared.notes:
        warnings.warn(note, UserWarning, stacklevel=3)
    return prepared


def _tile(height: int, width: int) -> int | None:
    return TILE if height * width > TILED_FROM else None


def analyse(prepared: Prepared, model: AINN) -> Tensor:
    """g_a of the image's pixels, in tiles where they are many: (1, M, h, w)."""
    height, width, _ = prepared.rgb.shape
    like = model.entropy_bottleneck.quantiles
    return model.g_a(to_tensor(prepared.rgb).to(like), _tile(height, width))


def synthesise(y_hat: Tensor, model: AINN, height: int, width: int) -> np.ndarray:
    """g_s of a latent (1, M, h, w), in tiles where the pixels are many: (height, width, 3), uint8."""
    x_hat = model.g_s(y_hat, _tile(height, width))[0, :, :height, :width].float()
    return x_hat.clamp_(0, 1).mul_(255).round_().permute(1, 2, 0).to(torch.uint8).cpu().numpy()


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


def container(prepared: Prepared, model: AINN, quality: float | None, latent: bytes) -> bytes:
    """The bytes of the file, given those of its latent."""
    alpha, profile = prepared.packed
    height, width, _ = prepared.rgb.shape
    header = _HEADER.pack(MAGIC, VERSION, GREY if prepared.grey else 0, bytes.fromhex(identity(model)), width, height,
                          round(quality * GRID) if quality else 0, len(latent), len(alpha), len(profile))
    body = header + latent + alpha + profile
    return body + zlib.crc32(body).to_bytes(4, "little")


def _parts(about: FileInfo) -> list[tuple[int, int]]:
    first = about.latent_bytes
    second = first + about.alpha_bytes
    return [(0, first), (first, second), (second, second + about.profile_bytes)]


def _unpack_alpha(data: bytes, width: int, height: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as plane:
            if plane.size == (width, height) and plane.mode == "L":
                return np.asarray(plane)
    except UNREADABLE:
        pass
    raise AINNError("the file's alpha plane is damaged")


def _unpack_profile(data: bytes) -> bytes:
    try:
        unpacker = zlib.decompressobj()
        profile = unpacker.decompress(data, _LARGEST_PROFILE + 1)  # one more, so that the end of the largest is seen
    except zlib.error:
        raise AINNError("the file's colour profile is damaged") from None
    if not unpacker.eof:
        raise AINNError("the file's colour profile is damaged")
    return profile


def _eight_bits(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        full = 1.0 if np.nanmax(samples, initial=0) <= 1 else 255.0
    else:
        full = 65535.0
    return Image.fromarray(np.clip(np.nan_to_num(samples) / full * 255, 0, 255).round().astype(np.uint8))


def check_size(width: int, height: int) -> None:
    """Raises AINNError for an image without pixels, or that covers more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise AINNError("the image has no pixels")
    if -(-width // 64) * -(-height // 64) * 64**2 > MAX_PIXELS:  # what the networks see: a thin image is padded to much more
        raise AINNError(f"the image has {width}x{height} pixels; at most {MAX_PIXELS} are accepted, "
                        "in whole blocks of 64x64")
