"""The transforms as modules: steps by name, a part of them, tiles, tied weights."""

import copy

import numpy as np
import pytest
import torch
from conftest import shaken

from ainn_lib import AINN, AINNError
from ainn_lib.codec.images import to_tensor
from ainn_lib.measure.datasets import photo
from ainn_lib.network.tiles import as_maps, run_tiled
from ainn_lib.network.transforms import TITLES


def model_of(**overrides) -> AINN:
    torch.manual_seed(0)
    return shaken(AINN.from_preset("tiny", **overrides), 0.1).double().eval()


@pytest.fixture(scope="module")
def model():
    return model_of()


X = torch.rand(1, 3, 208, 304, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_steps_are_the_papers_figure(model):
    assert model.g_a.names == ("fdsm_d", "level1", "level2", "level3", "level4", "squeeze")
    assert model.g_s.names == (
        "cfrm",
        "inverse_level4",
        "pdm4",
        "inverse_level3",
        "pdm3",
        "inverse_level2",
        "pdm2",
        "inverse_level1",
        "fdsm_s",
    )
    assert model_of(ms_cfrm=True).g_s.names[:3] == ("cfrm", "inverse_level4", "ms_cfrm")
    printed = repr(model)
    assert all(f"({name})" in printed for name in (*model.g_a.names, *model.g_s.names))
    assert set(model.g_a.names) | set(model.g_s.names) <= set(TITLES)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("overrides", [{}, {"ms_cfrm": True}])
def test_parts_that_follow_each_other_are_the_whole(overrides):
    model = model_of(**overrides)
    y = model.g_a(X)
    for name in model.g_s.names:
        (x_hat,) = model.g_s.run(model.g_s.run((y,), stop=name), start=name)
        assert torch.equal(x_hat, model.g_s(y)), name
    low, high = model.g_a.run((X,), stop="squeeze")
    assert torch.equal(model.g_a.squeeze(low, high), y)
    with pytest.raises(AINNError, match="no step 'pdm1'"):
        model.g_s.run((y,), start="pdm1")


@torch.no_grad()
def test_hooks_see_the_steps(model):
    seen = {}
    hook = model.g_s.pdm3.register_forward_hook(
        lambda _, maps, out: seen.update({maps[0].shape: out})
    )
    model.g_s(model.g_a(X))
    hook.remove()
    assert list(seen) == [(1, 48, 52, 76)]


def test_tied_levels_are_stored_once_and_stay_tied():
    tied, untied = model_of(), model_of(tied=False)
    assert not any("inverse_level" in key for key in tied.state_dict())
    assert any("g_s.inverse_level4.level" in key for key in untied.state_dict())
    twin = copy.deepcopy(tied)
    assert twin.g_s.inverse_level2.level is twin.g_a.level2 is not tied.g_a.level2
    assert untied.g_s.inverse_level2.level is not untied.g_a.level2
    assert len(tied.cores) == 1 and len(untied.cores) == 2


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"ms_cfrm": True},
        {"pdm": "dense"},
        {"pdm": "residual", "fdsm": False},
        {"cfrm": False, "couplings": (2, 1, 1, 1)},
        {"kernels": (5, 3, 3, 3)},
        {"align_corners": True},
    ],
)
def test_tiles_give_the_untiled_result(overrides):
    model = model_of(**overrides)
    with torch.no_grad():
        y = model.g_a(X)
        x_hat = model.g_s(y)
        for tile in (80, 128):
            assert (model.g_a(X, tile) - y).abs().max() < 1e-10
            assert (model.g_s(y, tile) - x_hat).abs().max() < 1e-10


class Shorter(torch.nn.Module):
    """A step that states less than half of its receptive radius."""

    def __init__(self, step):
        super().__init__()
        self.step, self.scale, self.align = step, step.scale, step.align
        self.receptive_radius = max(0, step.receptive_radius // 2 - step.align)

    def forward(self, *maps):
        return self.step(*maps)


@torch.no_grad()
def test_every_stated_radius_is_needed(model):
    """With shorter margins every step differs: the test above can fail."""
    maps = (X,)
    for name, step in (*model.g_a.steps, *model.g_s.steps):
        whole = as_maps(step(*maps))
        if step.receptive_radius:
            side = max(maps[0].shape[2:]) * max(1, int(step.scale)) // 2
            tiled = run_tiled([Shorter(step)], maps, tile=side)
            assert max((a - b).abs().max() for a, b in zip(whole, tiled, strict=True)) > 1e-9, name
        maps = whole


@torch.no_grad()
def test_no_pixel_acts_farther_than_stated(model):
    radius, scale = 0, 1
    for _, step in model.g_a.steps:
        radius += (step.receptive_radius + step.align - 1) * scale
        scale /= step.scale
    x = torch.rand(1, 3, 320, 320, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 160, 160] += 1
    moved = (model.g_a(changed) - model.g_a(x)).abs().amax(1)[0] > 0
    assert (moved.nonzero() * 16 - 160).abs().max() <= radius + 16
    assert model_of(align_corners=True).g_s.pdm4.receptive_radius is None


@torch.no_grad()
def test_compressais_interface(tiny):
    x = to_tensor(np.asarray(photo("chelsea").crop((100, 50, 292, 178))))
    coded = tiny.compress(x, 3.0)
    assert coded["shape"] == (8, 12) and isinstance(coded["strings"][0][0], bytes)
    x_hat = tiny.decompress(**coded, quality=3.0)["x_hat"]
    assert x_hat.shape == x.shape and 0 <= x_hat.min() and x_hat.max() <= 1
    # one value rounded the other way in float32 changes all that follow it, not their quality
    both = x_hat, tiny(x, 3.0)["x_hat"].clamp(0, 1)
    file, estimate = ((v - x).square().mean().item() for v in both)
    assert file == pytest.approx(estimate, rel=0.05)
    twin = copy.deepcopy(tiny)
    twin.quality = 3.0
    assert twin.compress(x) == coded and twin.update(force=True)
