from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ainn_lib import AINNError
from ainn_lib.measure import datasets as data
from ainn_lib.measure.metrics import ms_ssim, psnr
from ainn_lib.network.entropy_model import RateControl, lagrangian, snap
from ainn_lib.provenance import provenance


def test_embedded_photos():
    sizes = {name: data.photo(name).size for name in data.EMBEDDED}
    assert sizes == {"astronaut": (512, 512), "chelsea": (451, 300), "coffee": (600, 400),
                     "rocket": (320, 213)}
    assert all(data.photo(name).mode == "RGB" for name in data.EMBEDDED)
    with pytest.raises(AINNError, match="astronaut"):
        data.photo("mona lisa")


def test_psnr_and_ms_ssim():
    photo = data.photo("chelsea")
    assert psnr(photo, photo) == float("inf") and ms_ssim(photo, photo) == pytest.approx(1)
    rng, pixels = np.random.default_rng(0), np.asarray(photo)
    slight, strong = (
        Image.fromarray((pixels + rng.normal(0, noise, pixels.shape)).clip(0, 255).astype(np.uint8))
        for noise in (5, 20))
    assert psnr(photo, slight) > psnr(photo, strong)
    assert ms_ssim(photo, slight) > ms_ssim(photo, strong)
    assert ms_ssim(photo.crop((0, 0, 160, 200)), photo.crop((0, 0, 160, 200))) is None
    with pytest.raises(AINNError, match="size"):
        psnr(photo, photo.rotate(90, expand=True))


def test_gains_interpolate_between_whole_qualities():
    control = RateControl(3)
    control.set_steps([0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1], gain=2.0)
    with torch.no_grad():
        control.bias[2] = 1.0
    gain, inverse, bias = control(torch.tensor([1.0, 3.0, 3.5, 8.0]))
    torch.testing.assert_close(gain[:, 0, 0, 0], torch.tensor([2 / 0.8, 4.0, 4.5, 20.0]))
    torch.testing.assert_close((gain * inverse)[[0, 1, 3]], torch.ones(3, 3, 1, 1))
    torch.testing.assert_close(bias[:, 0, 0, 0], torch.tensor([0.0, 1.0, 0.5, 0.0]))


def test_lambda_is_geometric():
    lam = lagrangian(torch.tensor([1.0, 4.5, 8.0]), (0.002, 0.128))
    torch.testing.assert_close(lam, torch.tensor([0.002, 0.016, 0.128]))


def test_qualities_are_snapped_to_the_files_grid():
    assert snap(4.501) == 4.5 and snap(8) == 8.0
    for wrong in (0.99, 8.01, "x", None, float("inf")):
        with pytest.raises(AINNError, match="quality"):
            snap(wrong)


def test_an_installed_package_takes_no_commit_of_a_repository_around_it(monkeypatch):
    monkeypatch.setattr("ainn_lib.provenance.ROOT", Path(__file__).resolve().parent)
    assert provenance()["commit"] is None


def test_provenance_says_commit_versions_and_machine():
    facts = provenance()
    assert set(facts) == {"commit", "date", "versions", "hardware"}
    assert facts["hardware"]["processor"] and facts["versions"]["torch"]
