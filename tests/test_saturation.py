import math

import pytest
import torch
from conftest import shaken

from ainn_lib import AINN, AINNError, codec, load_pretrained
from ainn_lib.measure import datasets
from ainn_lib.measure.metrics import psnr
from ainn_lib.studies import saturation
from ainn_lib.studies.activations import as_tensor

CHELSEA = datasets.photo("chelsea").crop((100, 40, 164, 88))
SMALL = dict(N=8, context_out=8, hyper_out=8, parameter_widths=(8, 8), hidden=(8, 8, 8, 8))


def test_finer_steps_and_nothing_else(tiny):
    fine = saturation.with_finer_steps(tiny, 4)
    for quality in (1.0, 4.5, 8.0):
        (gain, inverse, bias), finer = tiny.gains(quality), fine.gains(quality)
        torch.testing.assert_close(finer, (4 * gain, inverse / 4, 4 * bias))
    x = as_tensor(CHELSEA, tiny)
    assert torch.equal(fine.g_a(x), tiny.g_a(x))
    assert tiny.gains(8.0)[0].equal(saturation.with_finer_steps(fine, 0.25).gains(8.0)[0])
    with pytest.raises(AINNError, match="variable-rate"):
        fixed = AINN.from_preset("tiny", **SMALL, variable_rate=False)
        saturation.with_finer_steps(fixed, 2)


def test_quality_saturates_at_the_decode_without_rounding():
    model = load_pretrained("ablation-all")
    found = saturation.saturation(model, CHELSEA, (1, 8))
    stream = codec.encode(CHELSEA, model, 8.0)
    assert found.bpp[0] == 8 * len(stream) / (64 * 48)
    assert found.psnr[0] == psnr(CHELSEA, codec.decode(stream, model))
    assert found.bpp[1] > 2 * found.bpp[0]
    assert found.psnr[0] + 0.5 < found.psnr[1] == pytest.approx(found.ceiling, abs=0.3)
    assert found.ceiling + 1 < min(found.whole, found.exact)  # the squeeze sets it


def test_without_modules_the_core_gives_the_picture_back():
    model = shaken(AINN.from_preset("tiny", **SMALL, fdsm=False)).eval()
    model.update(force=True)
    found = saturation.saturation(model, CHELSEA, (1,))
    # dB: what is left is the rounding of the pixels, in float32; PDMs change the picture
    assert found.exact > 55 > found.whole


def test_an_untied_network_has_no_inverse_of_the_core():
    model = shaken(AINN.from_preset("tiny", **SMALL, tied=False)).eval()
    model.update(force=True)
    found = saturation.saturation(model, CHELSEA, (1,))
    assert math.isnan(found.whole) and math.isnan(found.exact) and found.ceiling > 0
