import dataclasses

import pytest
import torch
from conftest import shaken

from ainn_lib import AINN
from ainn_lib.stages import run_stages


def model_of(**overrides) -> AINN:
    torch.manual_seed(0)
    return shaken(AINN.from_preset("tiny", **overrides), 0.1).double().eval()


@pytest.mark.parametrize("overrides", [
    {}, {"ms_cfrm": True}, {"pdm": "dense"}, {"pdm": "residual", "fdsm": False}, {"cfrm": False, "couplings": (2, 1, 1, 1)},
    {"kernels": (5, 3, 3, 3)}, {"align_corners": True}])
def test_tiles_give_the_untiled_result(overrides):
    model = model_of(**overrides)
    x = torch.rand(1, 3, 208, 304, dtype=torch.float64)
    with torch.no_grad():
        y = model.g_a(x)
        x_hat = model.g_s(y)
        for tile in (80, 128):
            assert (model.g_a(x, tile) - y).abs().max() < 1e-10
            assert (model.g_s(y, tile) - x_hat).abs().max() < 1e-10


def test_every_stated_reach_is_needed():
    """With margins of less than half their length every stage differs: the test above can fail."""
    model = model_of()
    x = torch.rand(1, 3, 208, 304, dtype=torch.float64)
    with torch.no_grad():
        maps = (x,)
        for stage in (*model.analysis_stages(), *model.synthesis_stages()):
            whole = run_stages([stage], maps)
            if stage.reach:
                shorter = dataclasses.replace(stage, reach=max(0, stage.reach // 2 - stage.align))
                tiled = run_stages([shorter], maps, tile=max(maps[0].shape[2:]) * max(1, int(stage.step)) // 2)
                assert max((a - b).abs().max() for a, b in zip(whole, tiled, strict=True)) > 1e-9, stage.name
            maps = whole


def reach_in_pixels(stages, pixels_per_sample):
    """Receptive field radius of a transform in image pixels, given the pixels per sample of its input; None: unlimited."""
    total, scale = 0.0, float(pixels_per_sample)
    for stage in stages:
        if stage.reach is None:
            return None
        total += (stage.reach + stage.align - 1) * scale
        scale /= stage.step
    return int(total)


def test_receptive_field_in_pixels():
    model = model_of()
    x = torch.rand(1, 3, 320, 320, dtype=torch.float64)
    reach = reach_in_pixels(model.analysis_stages(), 1)
    changed = x.clone()
    changed[:, :, 160, 160] += 1
    with torch.no_grad():
        moved = (model.g_a(changed) - model.g_a(x)).abs().amax(1)[0] > 0
    positions = moved.nonzero() * 16
    assert (positions - 160).abs().max() <= reach + 16
    assert reach_in_pixels(model_of(align_corners=True).synthesis_stages(), 16) is None
