import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ainn_lib import AINNError
from ainn_lib.measure import datasets as data
from ainn_lib.measure.classical import CODECS, Codec, get_codec, rgb_to_ycbcr, ycbcr_to_rgb
from ainn_lib.measure.metrics import psnr

COFFEE = data.photo("coffee").crop((150, 60, 310, 188))


@pytest.fixture(params=CODECS)
def subject(request) -> Codec:
    return CODECS[request.param]


def test_more_bytes_give_a_better_image_along_the_ladder(subject):
    few, many = subject.settings[0], subject.settings[-1]
    small, large = subject.encode(COFFEE, few), subject.encode(COFFEE, many)
    assert len(small) * 3 < len(large)
    assert psnr(COFFEE, subject.decode(small)) + 5 < psnr(COFFEE, subject.decode(large))
    # a wrong colour matrix or shifted chroma would stay below
    assert psnr(COFFEE, subject.decode(large)) > 33


@pytest.mark.parametrize("size", [(33, 27), (34, 27), (33, 28), (24, 16)])
def test_odd_sizes_come_back(subject, size):
    image = COFFEE.crop((0, 0, *size))
    decoded = subject.decode(subject.encode(image, subject.settings[-1]))
    assert decoded.size == size and decoded.mode == "RGB"
    # a fixed ratio leaves little to a tiny image
    assert psnr(image, decoded) > (22 if subject.name == "jpeg2000rate" else 28)


def test_the_same_image_gives_the_same_bytes(subject):
    setting = subject.settings[len(subject.settings) // 2]
    assert subject.encode(COFFEE, setting) == subject.encode(COFFEE.convert("RGBA"), setting)


@pytest.mark.parametrize("cut", [0.0, 0.3])
def test_a_cut_file_is_a_clear_error(subject, cut):
    stream = subject.encode(COFFEE, subject.settings[-1])
    if subject.name == "hevc" and cut:
        # an elementary stream says nowhere how long it is: ffmpeg conceals the rest
        assert psnr(COFFEE, subject.decode(stream[: int(cut * len(stream))])) < 30
        return
    with pytest.raises(AINNError, match="are no"):
        subject.decode(stream[: int(cut * len(stream))])


def test_what_a_codec_refuses_is_a_clear_error():
    with pytest.raises(AINNError, match="has whole settings from 0 to 51, not 900"):
        CODECS["hevc"].encode(COFFEE, 900)
    with pytest.raises(AINNError, match="has whole settings from 1 to 100, not inf"):
        CODECS["jpeg"].encode(COFFEE, float("inf"))
    with pytest.raises(AINNError, match="cannot encode 65536x8 at 50"):
        CODECS["jpeg"].encode(Image.new("RGB", (65536, 8)), 50)
    stream = CODECS["jpeg"].encode(COFFEE, 50)
    bomb = stream.replace(struct.pack(">HH", 128, 160), struct.pack(">HH", 65500, 65500), 1)
    with pytest.raises(AINNError, match="are no JPEG"):
        CODECS["jpeg"].decode(bomb)


def test_an_unknown_codec_is_named():
    with pytest.raises(AINNError, match="no codec 'gif'"):
        get_codec("gif")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_ten_bit_ycbcr_is_exact_for_eight_bit_rgb(seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rgb[:2, :2] = [[(0, 0, 0), (255, 255, 255)], [(255, 0, 0), (0, 0, 255)]]
    assert (ycbcr_to_rgb(rgb_to_ycbcr(rgb)) == rgb).all()


def test_jpeg_2000_uses_its_colour_transform():
    setting = 36.0
    without = io.BytesIO()
    options = {"irreversible": True, "quality_mode": "dB", "quality_layers": [setting]}
    COFFEE.save(without, "JPEG2000", no_jp2=True, **options)
    ours = CODECS["jpeg2000"].encode(COFFEE, setting)
    assert len(ours) < len(without.getvalue())
    loss = psnr(COFFEE, Image.open(without)) - psnr(COFFEE, CODECS["jpeg2000"].decode(ours))
    assert loss < 1.5
