"""The classical codecs behind one interface: an image becomes the bytes of a file, and back.

All of them come from wheels: Pillow (JPEG, JPEG 2000, WebP, AVIF), imagecodecs (JPEG XL) and the
ffmpeg of imageio-ffmpeg (HEVC with x265, VVC with VVenC). Each is set for the least squared error
that it can reach; `Codec.note` says how, and where a codec has no such setting. HEVC and VVC get
YCbCr planes that we compute, so that no hidden conversion costs quality.
"""

import io
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import imageio_ffmpeg
import numpy as np
from PIL import Image

from ..errors import UNREADABLE, AINNError

_REFUSALS = (*UNREADABLE, RuntimeError, OverflowError)  # of Pillow, imagecodecs and `_ffmpeg`
Write = Callable[[Image.Image, float], bytes]
Read = Callable[[bytes], Image.Image]


@dataclass(frozen=True)
class Codec:
    """One codec with fixed options. The decoder sees the bytes of the file and nothing else."""

    name: str  #: key in files and on the command line
    title: str  #: for legends
    note: str  #: what it is tuned for, and how
    settings: tuple[float, ...]  #: of a rate-distortion curve, from small files to large
    write: Write
    read: Read
    limits: tuple[float, float]  #: of the settings
    whole: bool = False  #: whether settings are whole numbers

    def check(self, setting: float) -> float:
        """The setting; raises AINNError for one that the codec does not have.

        >>> get_codec("jpeg").check(74.9)
        Traceback (most recent call last):
        ...
        ainn_lib.errors.AINNError: JPEG 4:2:0 has whole settings from 1 to 100, not 74.9
        """
        low, high = self.limits
        if not low <= setting <= high or self.whole and setting % 1:
            kind = "whole settings" if self.whole else "settings"
            raise AINNError(f"{self.title} has {kind} from {low:g} to {high:g}, not {setting:g}")
        return setting

    def encode(self, image: Image.Image, setting: float) -> bytes:
        """The bytes of the file for an image's pixels, as 8-bit RGB.

        Rotation tag, colour profile and transparency are left out, for every codec alike. Raises
        AINNError when the codec refuses the image or the setting.
        """
        image = image.convert("RGB")  # always a copy
        image.info.clear()
        try:
            return self.write(image, self.check(setting))
        except _REFUSALS as error:
            what = f"{image.width}x{image.height} at {setting:g}"
            raise AINNError(f"{self.title} cannot encode {what}: {error}") from None

    def decode(self, data: bytes) -> Image.Image:
        """The 8-bit RGB image in the file. Raises AINNError for bytes that are no such file."""
        try:
            return self.read(data).convert("RGB")
        except _REFUSALS as error:
            raise AINNError(f"these {len(data)} bytes are no {self.title} file: {error}") from None


def get_codec(name: str) -> Codec:
    """A codec by its name. Raises AINNError for one that is not in `CODECS`.

    >>> get_codec("jpeg").title
    'JPEG 4:2:0'
    """
    if name not in CODECS:
        raise AINNError(f"no codec {name!r}; there are {', '.join(CODECS)}")
    return CODECS[name]


def _pillow(kind: str, option: str, convert: Callable, **fixed) -> tuple[Write, Read]:
    """Functions that write and read a format of Pillow; the setting becomes ``option``."""

    def write(image: Image.Image, setting: float) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **{option: convert(setting)}, **fixed)
        return file.getvalue()

    def read(data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data), formats=[kind])
        image.load()
        return image

    return write, read


def _write_jpegxl(image: Image.Image, distance: float) -> bytes:
    options = {"effort": 7, "usecontainer": False, "numthreads": 1}
    return imagecodecs.jpegxl_encode(np.asarray(image), distance=distance, **options)


def _read_jpegxl(data: bytes) -> Image.Image:
    return Image.fromarray(imagecodecs.jpegxl_decode(data))


_KR, _KB = 0.299, 0.114  # BT.601
_LUMA = np.array([_KR, 1 - _KR - _KB, _KB])
_BLUE, _RED = np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])
_TO_YCC = np.stack([_LUMA, (_BLUE - _LUMA) / (2 - 2 * _KB), (_RED - _LUMA) / (2 - 2 * _KR)])
_TO_RGB = np.linalg.inv(_TO_YCC)
_CENTRE = np.array([0.0, 512.0, 512.0])  # of 10 bits


def rgb_to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    r"""8-bit RGB (H, W, 3) -> full-range BT.601 Y, Cb, Cr of 10 bits, uint16 (3, H, W).

    Chroma is centred at 512. One step of 10 bits is a quarter of one of 8, so that rounding costs
    an RGB value at most :math:`\tfrac12\cdot\tfrac14(1 + 1.772) < \tfrac12`: the way there and back
    is exact.

    >>> white = np.full((1, 1, 3), 255, np.uint8)
    >>> rgb_to_ycbcr(white)[:, 0, 0].tolist(), ycbcr_to_rgb(rgb_to_ycbcr(white))[0, 0].tolist()
    ([1020, 512, 512], [255, 255, 255])
    """
    ycc = 4 * rgb.astype(np.float64) @ _TO_YCC.T + _CENTRE
    return np.clip(np.rint(ycc), 0, 1023).astype(np.uint16).transpose(2, 0, 1)


def ycbcr_to_rgb(ycc: np.ndarray) -> np.ndarray:
    """The inverse of `rgb_to_ycbcr`, clipped: (3, H, W) of 10 bits -> 8-bit RGB (H, W, 3)."""
    rgb = (ycc.transpose(1, 2, 0) - _CENTRE) @ _TO_RGB.T / 4
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _ffmpeg(arguments: list[str], data: bytes) -> bytes:
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    command = [ffmpeg, "-hide_banner", "-loglevel", "error", *arguments, "-"]
    done = subprocess.run(command, input=data, capture_output=True)
    # A decoder may conceal missing data, but it writes a message then.
    if done.returncode or done.stderr.strip() or not done.stdout:
        message = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(message.split("\n")[0] or "no output")
    return done.stdout


def _encode_planes(planes: list[np.ndarray], layout: str, options: str) -> bytes:
    """The elementary stream of one picture, given as planes of 10 bits, the first of full size."""
    height, width = planes[0].shape
    raw = f"-f rawvideo -pix_fmt {layout} -s {width}x{height} -i - -frames:v 1 -threads 1"
    samples = b"".join(plane.astype("<u2").tobytes() for plane in planes)
    return _ffmpeg([*raw.split(), *options.split()], samples)


def _decode_planes(data: bytes, kind: str, layout: str) -> tuple[np.ndarray, int, int]:
    """All samples of the one picture of an elementary stream, and its height and width."""
    read = f"-xerror -err_detect explode -threads 1 -f {kind} -i - -frames:v 1"
    write = f"-strict -1 -pix_fmt {layout} -f yuv4mpegpipe"
    header, _, frame = _ffmpeg([*read.split(), *write.split()], data).partition(b"\n")
    _, samples = frame.split(b"\n", 1)
    size = {word[:1]: word[1:] for word in header.split()}
    return np.frombuffer(samples, "<u2"), int(size[b"H"]), int(size[b"W"])


_X265 = ("keyint=1:aq-mode=0:cutree=0:psy-rd=0:psy-rdoq=0:info=0:wpp=0:pools=none:"
         "frame-threads=1:log-level=none")


def _write_hevc(image: Image.Image, qp: float) -> bytes:
    options = f"-c:v libx265 -preset slow -x265-params {_X265}:qp={qp:g} -f hevc"
    return _encode_planes(list(rgb_to_ycbcr(np.asarray(image))), "yuv444p10le", options)


def _read_hevc(data: bytes) -> Image.Image:
    samples, height, width = _decode_planes(data, "hevc", "yuv444p10le")
    return Image.fromarray(ycbcr_to_rgb(samples.reshape(3, height, width)))


def _write_vvc(image: Image.Image, qp: float) -> bytes:
    odd_w, odd_h = image.width % 2, image.height % 2
    ycc = rgb_to_ycbcr(np.asarray(image))
    y, cb, cr = np.pad(ycc, ((0, 0), (0, odd_h), (0, odd_w)), mode="edge")
    options = f"-c:v libvvenc -preset fast -qp {qp:g} -qpa 0 -f vvc"
    stream = _encode_planes([y, _halve(cb), _halve(cr)], "yuv420p10le", options)
    # 4:2:0 needs even sides: one byte says what was added
    return bytes([odd_w + 2 * odd_h]) + stream


def _read_vvc(data: bytes) -> Image.Image:
    if not data:
        raise ValueError("empty")
    odd_w, odd_h = data[0] & 1, data[0] >> 1 & 1
    samples, height, width = _decode_planes(data[1:], "vvc", "yuv420p10le")
    y, chroma = samples[: height * width], samples[height * width :]
    cb, cr = chroma.reshape(2, height // 2, width // 2)
    rgb = ycbcr_to_rgb(np.stack([y.reshape(height, width), _double(cb), _double(cr)]))
    return Image.fromarray(rgb[: height - odd_h, : width - odd_w])


def _halve(plane: np.ndarray) -> np.ndarray:
    h, w = plane.shape
    return np.rint(plane.reshape(h // 2, 2, w // 2, 2).mean((1, 3), dtype=np.float64))


def _double(plane: np.ndarray) -> np.ndarray:
    image = Image.fromarray(plane.astype(np.float32))
    size = image.width * 2, image.height * 2
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


_JPEG_LADDER = (6, 10, 15, 22, 30, 40, 52, 65, 75, 83, 89, 93)
_QUALITIES = (1, 100), True
_JPEG = {"optimize": True, "progressive": True}
_JPEG2000 = {"irreversible": True, "mct": 1, "no_jp2": True}
_AVIF = {"subsampling": "4:4:4", "speed": 4, "codec": "aom", "max_threads": 1}
_CODECS = (
    Codec("jpeg", "JPEG 4:2:0",
          "libjpeg-turbo, optimised Huffman tables, progressive, chroma halved",
          _JPEG_LADDER, *_pillow("JPEG", "quality", int, subsampling="4:2:0", **_JPEG),
          *_QUALITIES),
    Codec("jpeg444", "JPEG 4:4:4", "as JPEG 4:2:0, but with whole chroma",
          _JPEG_LADDER, *_pillow("JPEG", "quality", int, subsampling="4:4:4", **_JPEG),
          *_QUALITIES),
    Codec("jpeg2000", "JPEG 2000",
          "OpenJPEG, 9/7 wavelet, colour transform on (mct=1), one layer, bare codestream, least "
          "squared error; the setting is the PSNR of every image (of the transform's own planes), "
          "as other codecs hold a quantizer",
          (24, 26, 27.5, 29, 30.5, 32, 33.5, 35, 36.5, 38, 40),
          *_pillow("JPEG2000", "quality_layers", lambda s: [s], quality_mode="dB", **_JPEG2000),
          (1, 99)),
    Codec("jpeg2000rate", "JPEG 2000, fixed rate",
          "as JPEG 2000, but the setting is the compression ratio of every image: easy images "
          "come out far better than hard ones, which lifts a mean of PSNRs: not to be compared "
          "with curves at fixed quality",
          (200, 130, 90, 64, 48, 36, 28, 22, 18, 14, 11),
          *_pillow("JPEG2000", "quality_layers", lambda s: [s], quality_mode="rates", **_JPEG2000),
          (1, 10_000)),
    Codec("webp", "WebP", "libwebp, lossy, method 6 (slowest); 4:2:0 is all it has",
          (1, 6, 15, 28, 43, 58, 72, 81, 87, 92), *_pillow("WEBP", "quality", int, method=6),
          *_QUALITIES),
    Codec("avif", "AVIF 4:4:4", "libaom, 8 bits, 4:4:4, speed 4, tune=psnr",
          (10, 18, 26, 34, 43, 52, 61, 70, 79),
          *_pillow("AVIF", "quality", int, advanced={"tune": "psnr"}, **_AVIF), *_QUALITIES),
    Codec("jpegxl", "JPEG XL",
          "libjxl, VarDCT, effort 7; it aims at perceived quality (XYB, butteraugli) and cannot "
          "be set for squared error, so that PSNR undervalues it",
          (13, 10, 7.5, 5.7, 4.4, 3.4, 2.6, 2, 1.5, 1.1), _write_jpegxl, _read_jpegxl, (0, 25)),
    Codec("hevc", "HEVC intra 4:4:4 (x265)",
          "x265, one intra picture, 10 bits, 4:4:4, preset slow, constant QP, no psychovisual "
          "tuning, elementary stream: stands in for BPG",
          (46, 42, 39, 36, 33, 30, 27, 24, 21), _write_hevc, _read_hevc,
          (0, 51), True),
    Codec("vvc", "VVC intra 4:2:0 (VVenC)",
          "VVenC, one intra picture, 10 bits, preset fast, perceptual QP adaptation off, "
          "elementary stream; 4:2:0 is all it has, which costs colour at high rates",
          (46, 42, 38, 34, 31, 28, 25, 22), _write_vvc, _read_vvc, (0, 63), True),
)
CODECS: dict[str, Codec] = {codec.name: codec for codec in _CODECS}
