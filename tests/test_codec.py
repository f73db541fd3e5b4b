import dataclasses
import io
import struct
import subprocess
import sys
import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from ainn_lib import AINN, AINNError, codec
from ainn_lib.codec import coding, container
from ainn_lib.codec.images import check_size, prepare, to_tensor
from ainn_lib.measure import datasets as data
from ainn_lib.measure.metrics import psnr

SMALL = data.photo("chelsea").crop((100, 40, 196, 104))


def random_image(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(
        rng.integers(0, 256, (2 + height // 8, 2 + width // 8, 3), dtype=np.uint8)
    )
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def round_trip(image, model, quality=None):
    return codec.decode(codec.encode(image, model, quality), model)


# -- round trips -----------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    quality=st.floats(1, 8),
    seed=st.integers(0, 99),
)
def test_any_size_decodes_to_the_encoders_own_reconstruction(tiny, width, height, quality, seed):
    image = random_image(width, height, seed)
    stream = codec.encode(image, tiny, quality)
    decoded = codec.decode(stream, tiny)
    assert decoded.size == image.size and decoded.mode == "RGB"
    assert decoded.tobytes() == codec.reconstruct(image, tiny, quality).tobytes()
    assert codec.info(stream).quality == pytest.approx(quality, abs=1 / 512)


def test_a_photo_survives(tiny):
    photo = data.photo("astronaut")
    stream = codec.encode(photo, tiny, 5)
    decoded = codec.decode(stream)  # finds the weights by the fingerprint in the header
    assert psnr(photo, decoded) > 30 and codec.info(stream).bpp < 1
    assert codec.info(stream).bytes == len(stream)


def test_bfloat16_is_opt_in_and_close(tiny):
    stream = codec.encode(SMALL, tiny, 5)
    exact, fast = codec.decode(stream, tiny), codec.decode(stream, tiny, bf16=True)
    assert exact.tobytes() != fast.tobytes()
    assert abs(psnr(SMALL, exact) - psnr(SMALL, fast)) < 0.1


def test_sixteen_bits_of_colour_are_told_though_pillow_halves_them_itself(tiny):
    samples = np.full((64, 64, 3), 40000, np.uint16)
    with (
        Image.open(io.BytesIO(imagecodecs.png_encode(samples))) as image,
        pytest.warns(UserWarning, match="reduced to 8 bits"),
    ):
        assert image.mode == "RGB"
        codec.encode(image, tiny)


@pytest.mark.parametrize("size", [(2**26, 1), (1, 2**26), (8192, 8193)])
def test_a_thin_image_counts_as_what_the_network_would_see(size):
    """67108864x1 has as many pixels as are accepted, and would be padded to 64 times as many."""
    check_size(8192, 8192)
    with pytest.raises(AINNError, match="at most"):
        check_size(*size)


@pytest.mark.parametrize("quality", [0.5, 8.5, float("nan")])
def test_the_network_refuses_a_quality_that_was_not_trained(tiny, quality):
    with pytest.raises(AINNError, match="from 1"):
        tiny(torch.zeros(1, 3, 64, 64), quality)


def test_a_higher_quality_is_larger_and_better(tiny):
    streams = [codec.encode(SMALL, tiny, q) for q in (1, 2.5, 4, 6, 8)]
    assert all(len(a) < len(b) for a, b in zip(streams, streams[1:], strict=False))
    values = [psnr(SMALL, codec.decode(s, tiny)) for s in streams]
    assert all(a < b for a, b in zip(values, values[1:], strict=False))


def test_aiming_at_a_size(tiny):
    for bpp in (0.4, 0.9):
        stream = codec.encode_to_bpp(SMALL, tiny, bpp)
        about = codec.info(stream)
        assert about.bpp <= bpp
        larger = codec.encode(SMALL, tiny, min(8, about.quality + 0.25))
        assert 8 * len(larger) / (SMALL.width * SMALL.height) > bpp - 0.02
    with pytest.raises(AINNError, match="smallest file"):
        codec.encode_to_bpp(SMALL, tiny, 0.01)
    with pytest.raises(AINNError, match="above 0"):
        codec.encode_to_bpp(SMALL, tiny, -1)


def test_no_quality_on_a_fixed_rate_network():
    model = AINN.from_preset("tiny", variable_rate=False).eval()
    for call in (codec.encode, codec.reconstruct):
        with pytest.raises(AINNError, match="fixed rate"):
            call(SMALL, model, 4)
    with pytest.raises(AINNError, match="fixed rate"):
        codec.encode_to_bpp(SMALL, model, 0.5)
    assert codec.info(codec.encode(SMALL, model)).quality is None
    assert round_trip(SMALL, model).size == SMALL.size


@pytest.mark.parametrize("quality", (0.9, 8.1, float("nan"), "high", -1))
def test_quality_out_of_range(tiny, quality):
    with pytest.raises(AINNError, match="quality"):
        codec.encode(SMALL, tiny, quality)


# -- modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode, comes_back, told",
    [
        ("L", "L", None),
        ("1", "L", None),
        ("LA", "LA", None),
        ("RGB", "RGB", None),
        ("RGBA", "RGBA", None),
        ("P", "RGB", None),
        ("CMYK", "RGB", "CMYK"),
        ("YCbCr", "RGB", "YCbCr"),
        ("HSV", "RGB", "HSV"),
        ("LAB", "RGB", "LAB"),
        ("I;16", "L", "8 bits"),
        ("I", "L", "8 bits"),
        ("F", "L", "8 bits"),
    ],
)
def test_every_mode(tiny, mode, comes_back, told):
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.asarray(SMALL.convert("L")).astype(np.uint16) * 257)
        image = image if mode == "I;16" else image.convert("I")
    elif mode == "F":
        image = Image.fromarray(np.asarray(SMALL.convert("L"), np.float32) / 255)
    elif mode == "LAB":
        image = ImageCms.profileToProfile(
            SMALL, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        image = SMALL.convert(mode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoded = round_trip(image, tiny, 7)
    assert (decoded.mode, decoded.size) == (comes_back, SMALL.size)
    assert any(told in str(w.message) for w in caught) if told else not caught
    if mode not in ("1", "LAB"):
        assert (
            psnr(
                SMALL.convert("L").convert("RGB") if comes_back[0] == "L" else SMALL,
                decoded.convert("RGB"),
            )
            > 27
        )


@pytest.mark.parametrize("mode", ("LA", "RGBA", "P"))
def test_alpha_is_kept_exactly(tiny, mode):
    alpha = Image.fromarray((np.indices((64, 96)).sum(0) * 3 % 256).astype(np.uint8))
    if mode == "P":
        image = SMALL.quantize(16)
        image.info["transparency"] = 3
        expected = np.asarray(image.convert("RGBA"))[:, :, 3]
        assert 0 < (expected == 0).mean() < 1
    else:
        image = SMALL.convert(mode)
        image.putalpha(alpha)
        expected = np.asarray(alpha)
    decoded = round_trip(image, tiny)
    assert decoded.mode == ("LA" if mode == "LA" else "RGBA")
    assert np.array_equal(np.asarray(decoded.getchannel("A")), expected)


def test_exif_rotation_is_applied_and_other_metadata_is_told(tiny):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    SMALL.save(buffer, "JPEG", exif=exif, quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = round_trip(Image.open(buffer), tiny, 7)
    assert decoded.size == (64, 96)
    assert psnr(SMALL.transpose(Image.Transpose.ROTATE_270), decoded) > 27
    exif[0x010F] = "a maker"
    buffer = io.BytesIO()
    SMALL.save(buffer, "JPEG", exif=exif)
    with pytest.warns(UserWarning, match="metadata"):
        codec.encode(Image.open(buffer), tiny)


def test_transparency_of_a_palette_and_of_16_bits(tmp_path):
    image = SMALL.convert("RGBA")
    image.putalpha(Image.fromarray((np.indices((64, 96)).sum(0) * 3 % 256).astype(np.uint8)))
    palette = image.quantize(64)
    assert np.array_equal(prepare(palette).alpha, np.asarray(palette.convert("RGBA"))[:, :, 3])
    deep = np.asarray(SMALL.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png", transparency=int(deep[0, 0]))
    with Image.open(tmp_path / "deep.png") as image:
        prepared = prepare(image)
    assert prepared.grey and np.array_equal(prepared.alpha == 0, deep == deep[0, 0])


def test_floats_are_read_from_0_to_1():
    values = np.asarray(SMALL.convert("L"), np.float32) / 255
    values[0, 0] = 1.5  # one bright pixel must not darken all others
    prepared = prepare(Image.fromarray(values))
    assert prepared.rgb[0, 0, 0] == 255
    expected = np.asarray(SMALL.convert("L"))
    assert np.array_equal(prepared.rgb[1:, :, 0], expected[1:])
    assert "from 0 to 1" in prepared.notes[0]
    with pytest.raises(AINNError, match="from 0 to 1, but most of these are larger"):
        prepare(SMALL.convert("F"))


def test_what_is_transparent_costs_little(tiny):
    """Noise under alpha 0 is as cheap as nothing; what can be seen is coded as before."""
    alpha = np.zeros((64, 96), np.uint8)
    alpha[:, :48] = 255
    sizes = []
    for hidden in (np.zeros((64, 96, 3)), np.random.default_rng(0).integers(0, 256, (64, 96, 3))):
        rgb = np.where(alpha[..., None] > 0, np.asarray(SMALL), hidden).astype(np.uint8)
        image = Image.fromarray(np.dstack([rgb, alpha]))
        prepared = prepare(image)
        assert np.array_equal(prepared.rgb[:, :48], np.asarray(SMALL)[:, :48])
        assert np.array_equal(prepared.alpha, alpha)
        sizes.append(len(codec.encode(image, tiny, 4)))
    assert sizes[0] == sizes[1]
    assert sizes[0] < len(codec.encode(SMALL, tiny, 4))
    assert not prepare(Image.new("RGBA", (8, 8), (255, 0, 255, 0))).rgb.any()


def test_a_resolution_is_a_loss(tmp_path):
    SMALL.save(tmp_path / "a.png", dpi=(300, 300))
    with Image.open(tmp_path / "a.png") as image:
        assert "resolution" in prepare(image).notes[0]


def test_a_tiffs_layout_is_no_metadata_and_a_comment_is(tmp_path):
    SMALL.save(tmp_path / "plain.tif")
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "somebody")
    SMALL.save(tmp_path / "text.png", pnginfo=text)
    SMALL.save(tmp_path / "comment.jpg", comment="somebody's")
    SMALL.save(tmp_path / "plain.png")
    notes = {}
    for file in tmp_path.iterdir():
        with Image.open(file) as image:
            notes[file.name] = prepare(image).notes
    assert notes["plain.tif"] == notes["plain.png"] == ()
    assert "metadata" in notes["text.png"][0] and "metadata" in notes["comment.jpg"][0]


def test_the_colour_profile_is_kept(tiny):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = SMALL.copy()
    image.info["icc_profile"] = profile
    assert round_trip(image, tiny).info["icc_profile"] == profile
    assert "icc_profile" not in round_trip(SMALL, tiny).info


def test_only_the_first_frame(tiny):
    buffer = io.BytesIO()
    SMALL.save(
        buffer,
        "GIF",
        save_all=True,
        append_images=[SMALL.transpose(Image.Transpose.FLIP_LEFT_RIGHT)],
    )
    with pytest.warns(UserWarning, match="first frame"):
        assert round_trip(Image.open(buffer), tiny).size == SMALL.size


@pytest.mark.parametrize("thing", ["photo.jpg", None, np.zeros((8, 8, 3), np.uint8)])
def test_what_is_no_image(tiny, thing):
    with pytest.raises(AINNError, match="Pillow image"):
        codec.encode(thing, tiny)


def test_a_truncated_photo(tiny):
    buffer = io.BytesIO()
    SMALL.save(buffer, "JPEG")
    image = Image.open(io.BytesIO(buffer.getvalue()[: buffer.tell() // 2]))
    with pytest.raises(AINNError, match="cannot be read"):
        codec.encode(image, tiny)


# -- damaged files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream(tiny):
    image = SMALL.convert("RGBA")
    image.info["icc_profile"] = b"profile" * 20
    return codec.encode(image, tiny)


def resealed(stream: bytes) -> bytes:
    return stream[:-4] + zlib.crc32(stream[:-4]).to_bytes(4, "little")


@settings(max_examples=80, deadline=None)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(tiny, stream, position, bit):
    position %= len(stream)
    broken = bytearray(stream)
    broken[position] ^= 1 << bit
    with pytest.raises(AINNError) as error:
        codec.decode(bytes(broken), tiny)
    assert "\n" not in str(error.value)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(0, 10**6))
def test_any_truncation_is_noticed(tiny, stream, length):
    with pytest.raises(AINNError, match="truncated|no A-INN file"):
        codec.decode(stream[: length % len(stream)], tiny)


@settings(max_examples=20, deadline=None)
@given(extra=st.binary(min_size=1, max_size=50))
def test_any_extension_is_noticed(tiny, stream, extra):
    with pytest.raises(AINNError, match="longer"):
        codec.decode(stream + extra, tiny)


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 10**6), value=st.integers(1, 255))
def test_forged_files_do_no_harm(tiny, stream, position, value):
    """A right checksum over damaged fields: an error, or a picture of the size in the header."""
    forged = bytearray(stream)
    forged[position % (len(stream) - 4)] ^= value
    forged = resealed(bytes(forged))
    try:
        decoded = codec.decode(forged, tiny)
    except AINNError:
        return
    about = codec.info(forged)
    assert decoded.size == (about.width, about.height)


def header_field(stream: bytes, name: str, value: int) -> bytes:
    names = [
        "magic",
        "version",
        "flags",
        "fingerprint",
        "width",
        "height",
        "quality",
        "latent",
        "alpha",
        "profile",
    ]
    header = list(container._HEADER.unpack_from(stream))
    header[names.index(name)] = value
    return resealed(container._HEADER.pack(*header) + stream[container._HEADER.size :])


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("version", 2, "version 2"),
        ("width", 2**31, "at most"),
        ("height", 0, "no pixels"),
        ("width", 97, "damaged"),
        ("width", 6000, "damaged"),
        ("quality", 0, "contradicts"),
        ("quality", 60000, "header is damaged"),
        ("flags", 64, "header is damaged"),
        ("fingerprint", b"\0" * 8, "0000000000000000"),
        ("latent", 2**32 - 1, "truncated"),
        ("latent", 8, "longer"),
    ],
)
def test_forged_fields(tiny, stream, name, value, message):
    with pytest.raises(AINNError, match=message):
        codec.decode(header_field(stream, name, value), tiny)


def test_a_forged_alpha_plane_and_profile(tiny, stream):
    about = codec.info(stream)
    start = container._HEADER.size + about.latent_bytes
    bomb = io.BytesIO()
    Image.new("L", (20000, 20000)).save(bomb, "PNG")
    for alpha, profile, message in (
        (bomb.getvalue(), b"", "alpha"),
        (b"\x89PNG\r\n\x1a\n", b"", "alpha"),
        (b"", b"xyz", "profile"),
        (b"", zlib.compress(b"\0" * (2**24 + 9)), "profile"),
    ):
        latent = stream[container._HEADER.size : start]
        head = list(container._HEADER.unpack_from(stream))
        head[-2:] = len(alpha), len(profile)
        with pytest.raises(AINNError, match=message):
            codec.decode(
                resealed(container._HEADER.pack(*head) + latent + alpha + profile + b"\0\0\0\0"),
                tiny,
            )


@pytest.mark.parametrize("foreign", [b"", b"AIN", b"\x89PNG\r\n\x1a\n" + b"\0" * 90, b"JUNK" * 20])
def test_foreign_files(foreign):
    with pytest.raises(AINNError, match="no A-INN file"):
        codec.info(foreign)


def test_other_weights_are_refused(tiny, stream):
    other = AINN(dataclasses.replace(tiny.config, clamp=0.9)).eval()
    with pytest.raises(AINNError, match="made with the weights"):
        codec.decode(stream, other)
    unknown = codec.encode(SMALL, other)
    with pytest.raises(AINNError, match="not here"):
        codec.decode(unknown)


def test_the_header_is_as_documented(tiny, stream):
    magic, version, flags, fingerprint, width, height, quality = struct.unpack_from(
        "<4sBB8sIIH", stream
    )
    assert (magic, version, flags, width, height, quality) == (b"AINN", 1, 0, 96, 64, 4 * 256)
    assert container.OVERHEAD == container._HEADER.size + 4 == 40
    assert fingerprint.hex() == codec.info(stream).fingerprint


# -- large photos ----------------------------------------------------------------------------------


def test_tiling_is_chosen_by_the_number_of_pixels():
    assert coding._tile(512, 768) is None and coding._tile(3000, 4000) == coding.TILE


def test_tiled_and_untiled_agree(tiny, monkeypatch):
    image = data.photo("coffee")
    x = to_tensor(np.asarray(image))
    with torch.no_grad():
        y = tiny.g_a(x)
        assert (tiny.g_a(x, 128) - y).abs().max() < 1e-5
        assert (tiny.g_s(y, 128) - tiny.g_s(y)).abs().max() < 1e-5
    monkeypatch.setattr(coding, "TILED_FROM", 1000)
    monkeypatch.setattr(coding, "TILE", 128)
    assert round_trip(image, tiny).tobytes() == codec.reconstruct(image, tiny).tobytes()


@pytest.mark.slow
def test_twelve_megapixels_fit_into_three_gigabytes(tmp_path):
    program = """
import numpy as np
from PIL import Image
from ainn_lib import load_pretrained
from ainn_lib.studies.benchmark import peak_mib
from ainn_lib import codec
from ainn_lib.measure import datasets as data
image = data.photo("coffee").resize((4000, 3000))
model = load_pretrained("tiny")
stream = codec.encode(image, model, 3)
decoded = codec.decode(stream, model)
assert decoded.size == image.size
error = np.asarray(decoded.reduce(4)).astype(float) - np.asarray(image.reduce(4))
assert 10 * np.log10(255**2 / (error**2).mean()) > 35
print(peak_mib())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 3e9 / 2**20
