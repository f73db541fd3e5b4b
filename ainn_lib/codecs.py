"""The classical codecs, behind one interface: an image becomes the bytes of a real file, and those bytes an image again.

All of them come from wheels: Pillow (JPEG, JPEG 2000, WebP, AVIF), imagecodecs (JPEG XL) and the ffmpeg of imageio-ffmpeg (HEVC
with x265, VVC with VVenC). Each is set for the least squared error it can reach; ``Codec.note`` says how, and where a codec
cannot be told to. HEVC and VVC get YCbCr planes that we compute, so that no hidden conversion costs quality.
"""

import io
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .errors import UNREADABLE, AINNError

_REFUSALS = (*UNREADABLE, RuntimeError, OverflowError)  # of Pillow, imagecodecs and `_ffmpeg`


@dataclass(frozen=True)
class Codec:
    """One codec at one way of using it.

    `encode` and `decode` are each other's counterpart: the decoder sees the bytes and nothing else.
    """

    name: str  #: key in files and on the command line
    title: str  #: for legends
    note: str  #: what it is tuned for, and how
    settings: tuple[float, ...]  #: the ladder of a rate-distortion curve, from small files to large
    write: Callable[[Image.Image, float], bytes]
    read: Callable[[bytes], Image.Image]

    def encode(self, image: Image.Image, setting: float) -> bytes:
        """The bytes of the file for the pixels of an image, as 8-bit RGB: what else it carries (rotation tag, colour
        profile, transparency) is left out for every codec alike.

        Raises:
            AINNError: when the codec refuses the image or the setting.
        """
        image = image.convert("RGB")  # always a copy
        image.info.clear()
        try:
            return self.write(image, setting)
        except _REFUSALS as error:
            raise AINNError(f"{self.title} cannot encode {image.width}x{image.height} at {setting:g}: {error}") from None

    def decode(self, data: bytes) -> Image.Image:
        """The 8-bit RGB image in the file. Raises AINNError for bytes that the codec cannot read."""
        try:
            return self.read(data).convert("RGB")
        except _REFUSALS as error:
            raise AINNError(f"these {len(data)} bytes are no {self.title} file: {error}") from None


def codec(name: str) -> Codec:
    """A codec by its name. Raises AINNError for one that is not in `CODECS`.

    >>> codec("jpeg").title
    'JPEG 4:2:0'
    """
    if name not in CODECS:
        raise AINNError(f"no codec {name!r}; there are {', '.join(CODECS)}")
    return CODECS[name]


# -- Pillow and imagecodecs --------------------------------------------------------------------------------------------

def _pillow(kind: str, **options) -> tuple[Callable[[Image.Image, float], bytes], Callable[[bytes], Image.Image]]:
    def write(image: Image.Image, setting: float) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **{key: value(setting) if callable(value) else value for key, value in options.items()})
        return file.getvalue()

    def read(data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data), formats=[kind])
        image.load()
        return image

    return write, read


def _write_jpegxl(image: Image.Image, setting: float) -> bytes:
    import imagecodecs

    return imagecodecs.jpegxl_encode(np.asarray(image), distance=setting, effort=7, usecontainer=False, numthreads=1)


def _read_jpegxl(data: bytes) -> Image.Image:
    import imagecodecs

    return Image.fromarray(imagecodecs.jpegxl_decode(data))


# -- video codecs on planes of ours ------------------------------------------------------------------------------------

TEN_BITS = 1023
_KR, _KB = 0.299, 0.114  # BT.601
_TO_YCC = np.array([[_KR, 1 - _KR - _KB, _KB],
                    [-_KR / (2 - 2 * _KB), -(1 - _KR - _KB) / (2 - 2 * _KB), 0.5],
                    [0.5, -(1 - _KR - _KB) / (2 - 2 * _KR), -_KB / (2 - 2 * _KR)]])
_TO_RGB = np.linalg.inv(_TO_YCC)


def rgb_to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    r"""8-bit RGB (H, W, 3) -> full-range BT.601 Y, Cb, Cr of 10 bits, uint16 (3, H, W); chroma is centred at 512.

    One step of 10 bits is a quarter of one of 8, so that rounding costs an RGB value at most
    :math:`\tfrac12\cdot\tfrac14(1 + 1.772) < \tfrac12`: the way there and back is exact.

    >>> grey = np.full((1, 1, 3), 255, np.uint8)
    >>> rgb_to_ycbcr(grey)[:, 0, 0].tolist(), bool((ycbcr_to_rgb(rgb_to_ycbcr(grey)) == grey).all())
    ([1020, 512, 512], True)
    """
    ycc = 4 * rgb.astype(np.float64) @ _TO_YCC.T + [0, 512, 512]
    return np.clip(np.rint(ycc), 0, TEN_BITS).astype(np.uint16).transpose(2, 0, 1)


def ycbcr_to_rgb(ycc: np.ndarray) -> np.ndarray:
    """The inverse of `rgb_to_ycbcr`, values out of range clipped: (3, H, W) of 10 bits -> 8-bit RGB (H, W, 3)."""
    rgb = (ycc.transpose(1, 2, 0) - np.array([0.0, 512, 512])) @ _TO_RGB.T / 4
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _halve(plane: np.ndarray) -> np.ndarray:
    h, w = plane.shape
    return np.rint(plane.reshape(h // 2, 2, w // 2, 2).astype(np.float64).mean((1, 3))).astype(np.uint16)


def _double(plane: np.ndarray) -> np.ndarray:
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC))


def _ffmpeg(arguments: list[str], data: bytes) -> bytes:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", *arguments, "-"]
    done = subprocess.run(command, input=data, capture_output=True)
    if done.returncode or done.stderr.strip() or not done.stdout:  # a decoder may conceal what is missing, but says so
        raise RuntimeError(done.stderr.decode(errors="replace").strip().split("\n")[0] or "no output")
    return done.stdout


def _raw(width: int, height: int, layout: str) -> list[str]:
    return ["-f", "rawvideo", "-pix_fmt", layout, "-s", f"{width}x{height}", "-i", "-", "-frames:v", "1", "-threads", "1"]


def _decode_planes(data: bytes, kind: str, layout: str) -> tuple[np.ndarray, int, int]:
    """All samples of the one picture of an elementary stream, and its width and height."""
    y4m = _ffmpeg(["-xerror", "-err_detect", "explode", "-threads", "1", "-f", kind, "-i", "-", "-frames:v", "1",
                   "-strict", "-1", "-pix_fmt", layout, "-f", "yuv4mpegpipe"], data)
    header, _, rest = y4m.partition(b"\n")
    words = {word[:1]: word[1:] for word in header.split()[1:]}
    return np.frombuffer(rest.partition(b"\n")[2], "<u2"), int(words[b"W"]), int(words[b"H"])


X265 = "keyint=1:aq-mode=0:cutree=0:psy-rd=0:psy-rdoq=0:info=0:wpp=0:pools=none:frame-threads=1:log-level=none"


def _write_hevc(image: Image.Image, setting: float) -> bytes:
    planes = rgb_to_ycbcr(np.asarray(image))
    return _ffmpeg([*_raw(image.width, image.height, "yuv444p10le"), "-c:v", "libx265", "-preset", "slow",
                    "-x265-params", f"{X265}:qp={setting:g}", "-f", "hevc"], planes.astype("<u2").tobytes())


def _read_hevc(data: bytes) -> Image.Image:
    samples, width, height = _decode_planes(data, "hevc", "yuv444p10le")
    return Image.fromarray(ycbcr_to_rgb(samples.reshape(3, height, width)))


def _write_vvc(image: Image.Image, setting: float) -> bytes:
    odd_w, odd_h = image.width % 2, image.height % 2
    y, cb, cr = np.pad(rgb_to_ycbcr(np.asarray(image)), ((0, 0), (0, odd_h), (0, odd_w)), mode="edge")
    planes = b"".join(plane.astype("<u2").tobytes() for plane in (y, _halve(cb), _halve(cr)))
    stream = _ffmpeg([*_raw(y.shape[1], y.shape[0], "yuv420p10le"), "-c:v", "libvvenc", "-preset", "fast",
                      "-qp", f"{setting:g}", "-qpa", "0", "-f", "vvc"], planes)
    return bytes([odd_w + 2 * odd_h]) + stream  # 4:2:0 wants even sides: one byte says what was added


def _read_vvc(data: bytes) -> Image.Image:
    if not data:
        raise ValueError("empty")
    samples, width, height = _decode_planes(data[1:], "vvc", "yuv420p10le")
    luma, chroma = samples[: height * width], samples[height * width:].reshape(2, height // 2, width // 2)
    planes = np.stack([luma.reshape(height, width), _double(chroma[0]), _double(chroma[1])])
    return Image.fromarray(ycbcr_to_rgb(planes)[: height - (data[0] >> 1 & 1), : width - (data[0] & 1)])


# -- the list ----------------------------------------------------------------------------------------------------------

_JPEG_LADDER = (6, 10, 15, 22, 30, 40, 52, 65, 75, 83, 89, 93)
CODECS: dict[str, Codec] = {c.name: c for c in (
    Codec("jpeg", "JPEG 4:2:0", "libjpeg-turbo, optimised Huffman tables, progressive, chroma halved", _JPEG_LADDER,
          *_pillow("JPEG", quality=int, subsampling="4:2:0", optimize=True, progressive=True)),
    Codec("jpeg444", "JPEG 4:4:4", "as JPEG 4:2:0, but with whole chroma", _JPEG_LADDER,
          *_pillow("JPEG", quality=int, subsampling="4:4:4", optimize=True, progressive=True)),
    Codec("jpeg2000", "JPEG 2000", "OpenJPEG, 9/7 wavelet, colour transform on (mct=1), one layer, bare codestream, least squared "
          "error; the setting is the PSNR of every image (of the transform's own planes), as other codecs hold a quantizer",
          (24, 26, 27.5, 29, 30.5, 32, 33.5, 35, 36.5, 38, 40),
          *_pillow("JPEG2000", irreversible=True, mct=1, quality_mode="dB", quality_layers=lambda s: [s], no_jp2=True)),
    Codec("jpeg2000rate", "JPEG 2000, fixed rate", "as JPEG 2000, but the setting is the compression ratio of every image: easy "
          "images come out far better than hard ones, which lifts a mean of PSNRs: not to be compared with curves at fixed quality",
          (200, 130, 90, 64, 48, 36, 28, 22, 18, 14, 11),
          *_pillow("JPEG2000", irreversible=True, mct=1, quality_mode="rates", quality_layers=lambda s: [s], no_jp2=True)),
    Codec("webp", "WebP", "libwebp, lossy, method 6 (slowest); 4:2:0 is all it has", (1, 6, 15, 28, 43, 58, 72, 81, 87, 92),
          *_pillow("WEBP", quality=int, method=6)),
    Codec("avif", "AVIF 4:4:4", "libaom, 8 bits, 4:4:4, speed 4, tune=psnr", (10, 18, 26, 34, 43, 52, 61, 70, 79),
          *_pillow("AVIF", quality=int, subsampling="4:4:4", speed=4, codec="aom", max_threads=1, advanced={"tune": "psnr"})),
    Codec("jpegxl", "JPEG XL", "libjxl, VarDCT, effort 7; it aims at perceived quality (XYB, butteraugli) and cannot be set for "
          "squared error, so that PSNR undervalues it", (13, 10, 7.5, 5.7, 4.4, 3.4, 2.6, 2, 1.5, 1.1),
          _write_jpegxl, _read_jpegxl),
    Codec("hevc", "HEVC intra 4:4:4 (x265)", "x265, one intra picture, 10 bits, 4:4:4, preset slow, constant QP, no psychovisual "
          "tuning, elementary stream: stands in for BPG", (46, 42, 39, 36, 33, 30, 27, 24, 21), _write_hevc, _read_hevc),
    Codec("vvc", "VVC intra 4:2:0 (VVenC)", "VVenC, one intra picture, 10 bits, preset fast, perceptual QP adaptation off, "
          "elementary stream; 4:2:0 is all it has, which costs colour at high rates",
          (46, 42, 38, 34, 31, 28, 25, 22), _write_vvc, _read_vvc),
)}
