"""The container of an .ainn file; reading it needs no network.

Little-endian: magic ``AINN`` (4 bytes), version (1), flags (1), fingerprint of the weights (8),
width (4), height (4), quality in 1/256 (2; 0: fixed rate), lengths of latent, alpha plane and
colour profile (3 x 4), then these three parts, then a CRC-32 of everything before it (4). That is
40 bytes beside the three parts.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import UNREADABLE, AINNError
from .images import LARGEST_PROFILE, Prepared, check_size

MAGIC, VERSION = b"AINN", 1
GREY = 1  #: flag
GRID = 256  #: qualities are multiples of 1/256
_HEADER = struct.Struct("<4sBB8sIIHIII")
OVERHEAD = _HEADER.size + 4  #: bytes beside latent, alpha plane and colour profile


@dataclass(frozen=True)
class FileInfo:
    """What the header of a file says."""

    version: int
    fingerprint: str  #: of the weights
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
        raise AINNError(
            f"this file has format version {data[4]}; this program reads version {VERSION}")
    if len(data) < OVERHEAD:
        raise AINNError("the file is truncated")
    _, version, flags, weights, width, height, quality, *lengths = _HEADER.unpack_from(data)
    expected = OVERHEAD + sum(lengths)
    if len(data) != expected:
        what = "truncated" if len(data) < expected else "longer than its header says"
        raise AINNError(f"the file is {what}: {len(data)} bytes, {expected} expected")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise AINNError("the file is damaged: its checksum does not fit")
    check_size(width, height)
    if flags & ~GREY or (quality and not 1 <= quality / GRID <= 8):
        raise AINNError("the file's header is damaged")
    mode = ("L" if flags & GREY else "RGB") + ("A" if lengths[1] else "")
    return FileInfo(version, weights.hex(), width, height, mode,
                    quality / GRID if quality else None, *lengths, len(data))


def pack(prepared: Prepared, fingerprint: str, quality: float | None, latent: bytes,
         sides: tuple[bytes, bytes]) -> bytes:
    """The bytes of a file; ``sides`` comes from `pack_sides`."""
    alpha, profile = sides
    height, width, _ = prepared.rgb.shape
    header = _HEADER.pack(
        MAGIC, VERSION, GREY if prepared.grey else 0, bytes.fromhex(fingerprint), width, height,
        round(quality * GRID) if quality else 0, len(latent), len(alpha), len(profile))
    body = header + latent + alpha + profile
    return body + zlib.crc32(body).to_bytes(4, "little")


def pack_sides(prepared: Prepared) -> tuple[bytes, bytes]:
    """Alpha plane (PNG) and colour profile (zlib); empty where there is none."""
    alpha = io.BytesIO()
    if prepared.alpha is not None:
        Image.fromarray(prepared.alpha).save(alpha, "PNG", optimize=True)
    profile = zlib.compress(prepared.profile, 9) if prepared.profile else b""
    return alpha.getvalue(), profile


def unpack(data: bytes, about: FileInfo) -> tuple[bytes, np.ndarray | None, bytes]:
    """The three parts: the latent's bytes, the alpha plane (H, W) uint8, the colour profile.

    Raises:
        AINNError: when the alpha plane or the profile is damaged.
    """
    first = _HEADER.size + about.latent_bytes
    second = first + about.alpha_bytes
    alpha, profile = data[first:second], data[second:second + about.profile_bytes]
    return (data[_HEADER.size:first],
            _unpack_alpha(alpha, about.width, about.height) if alpha else None,
            _unpack_profile(profile) if profile else b"")


def _unpack_alpha(data: bytes, width: int, height: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as plane:
            if plane.size == (width, height) and plane.mode == "L":
                return np.asarray(plane)
    except UNREADABLE:
        pass
    raise AINNError("the file's alpha plane is damaged")


def _unpack_profile(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        # one byte more, so that the end of the largest profile is seen
        profile = unpacker.decompress(data, LARGEST_PROFILE + 1)
    except zlib.error:
        raise AINNError("the file's colour profile is damaged") from None
    if not unpacker.eof:
        raise AINNError("the file's colour profile is damaged")
    return profile
