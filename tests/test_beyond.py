import math

import pytest
import torch
from conftest import shaken
from PIL import Image

from ainn_lib import AINN, AINNError, beyond, codec, data, inside
from ainn_lib.codecs import CODECS, Codec
from ainn_lib.metrics import psnr

CHELSEA = data.photo("chelsea").crop((100, 40, 164, 88))
SMALL = dict(N=8, context_out=8, hyper_out=8, parameter_widths=(8, 8), hidden=(8, 8, 8, 8))


def darker(image: Image.Image, setting: float) -> bytes:
    return image.point(lambda v: max(0, v - int(setting))).tobytes()


LOSSY = Codec("darker", "darker", "takes a constant off every value", (1, 2), darker,
              lambda d: Image.frombytes("RGB", (8, 8), d))


def test_each_generation_is_made_from_the_one_before():
    image = Image.new("RGB", (8, 8), (100, 100, 100))
    chain = beyond.generations(LOSSY, image, 3, 4)
    assert [g.number for g in chain] == [1, 2, 3, 4] and {g.bytes for g in chain} == {192}
    assert [g.psnr for g in chain] == pytest.approx([20 * math.log10(255 / (3 * n)) for n in (1, 2, 3, 4)])
    assert [g.change for g in chain] == pytest.approx([20 * math.log10(85)] * 4)
    still = beyond.generations(LOSSY, image, 0, 2)
    assert still[1].change == float("inf") == still[0].psnr
    with pytest.raises(AINNError, match="count"):
        beyond.generations(LOSSY, image, 1, 0)


def test_jpeg_comes_to_rest():
    assert beyond.generations(CODECS["jpeg444"], CHELSEA, 40)[-1].change == float("inf")


def test_finer_steps_and_nothing_else(tiny):
    fine = beyond.finer(tiny, 4)
    for quality in (1.0, 4.5, 8.0):
        (gain, inverse, bias), (gain4, inverse4, bias4) = tiny.gains(quality), fine.gains(quality)
        torch.testing.assert_close((gain4, inverse4, bias4), (4 * gain, inverse / 4, 4 * bias))
    x = inside.as_tensor(CHELSEA, tiny)
    assert torch.equal(fine.g_a(x), tiny.g_a(x))
    assert tiny.gains(8.0)[0].equal(beyond.finer(fine, 0.25).gains(8.0)[0])
    with pytest.raises(AINNError, match="variable-rate"):
        beyond.finer(AINN.from_preset("tiny", **SMALL, variable_rate=False), 2)
    with pytest.raises(AINNError, match="factor"):
        beyond.finer(tiny, 0)


def test_quality_saturates_at_the_decode_without_rounding(tiny):
    found = beyond.saturation(tiny, CHELSEA, (1, 8))
    stream = codec.encode(CHELSEA, tiny, 8.0)
    assert found.bpp[0] == 8 * len(stream) / (64 * 48) and found.psnr[0] == psnr(CHELSEA, codec.decode(stream, tiny))
    assert found.bpp[1] > 2 * found.bpp[0] and found.psnr[0] + 0.5 < found.psnr[1] == pytest.approx(found.ceiling, abs=0.3)
    assert found.ceiling + 1 < min(found.whole, found.exact)  # the squeeze sets it


def test_without_modules_the_core_gives_the_picture_back():
    model = shaken(AINN.from_preset("tiny", **SMALL, fdsm=False)).eval()
    model.update(force=True)
    found = beyond.saturation(model, CHELSEA, (1,))
    assert found.exact > 55 > found.whole  # dB: all that is left is the rounding of the pixels, in float32; PDMs change it


def test_the_peer_has_no_inverse_of_the_core_to_look_at():
    model = shaken(AINN.from_preset("tiny", **SMALL, tied=False)).eval()
    model.update(force=True)
    found = beyond.saturation(model, CHELSEA, (1,))
    assert math.isnan(found.whole) and math.isnan(found.exact) and found.ceiling > 0
