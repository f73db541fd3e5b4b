import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ainn_lib import AINN, AINNError
from ainn_lib.linear import start_as_linear_codec
from ainn_lib.rate import lagrangian
from ainn_lib.train import Recipe, draw_sample, hold_out, learning_rate, load_photos, rd_loss, train, validate

OVERRIDES = dict(M=48, N=8, hidden=(4, 4, 4, 4), mask_widths=(4, 4, 4), cfrm_growth=4, pdm_widths=((4, 4), (4, 4, 4), (4, 4, 4, 4)),
                 hyper_out=8, context_out=8, parameter_widths=(8, 8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(4):
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        small.resize((256, 240), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    Image.new("RGB", (40, 40)).save(folder / "too-small.png")
    return folder


def start(photos, seed=0):
    names, images = load_photos(photos)
    torch.manual_seed(seed)
    return start_as_linear_codec(AINN.from_preset("tiny", **OVERRIDES), images), names, images


def test_photos_too_small_for_a_crop_are_left_out(photos):
    assert load_photos(photos)[0] == [f"{i}.png" for i in range(4)]


def test_a_short_run_learns(photos, tmp_path):
    model, names, images = start(photos)
    recipe = Recipe(steps=100, batch=2, patch=64, lr=1e-4, entropy_lr=3e-3, warmup=5, validate_every=50)
    before = validate(model, images[:1], None, (4.0,))
    model = train(model, names, images, images[:1], recipe, tmp_path, progress=False)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("step,minutes,loss,bpp,mse,bpp_q2,psnr_q2")
    lam = lagrangian(torch.tensor(4.0), model.config.lambdas).item()

    def cost(v):
        return v["bpp_q4"] + lam * 255**2 * 10 ** (-v["psnr_q4"] / 10)

    assert cost(validate(model, images[:1], None, (4.0,))) < 0.99 * cost(before)


def test_samples_follow_from_seed_step_and_index(photos):
    model, _, images = start(photos)
    recipe = Recipe(steps=1, patch=64)
    a, b = (draw_sample(images, model.config, recipe, 7, 1) for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    for other in (draw_sample(images, model.config, recipe, 8, 1), draw_sample(images, model.config, recipe, 7, 2),
                  draw_sample(images, model.config, Recipe(steps=1, patch=64, seed=1), 7, 1)):
        assert not torch.equal(a["noise_y"], other["noise_y"])


def test_the_loss_is_compressais():
    output = {"x_hat": torch.full((2, 3, 8, 8), 0.5), "likelihoods": {"y": torch.full((2, 4, 2, 2), 0.25), "z": torch.full((2, 1, 1, 1), 0.5)}}
    x = torch.full((2, 3, 8, 8), 0.4)
    losses = rd_loss(output, x, torch.tensor([0.01, 0.03]))
    bpp = (16 * 2 + 1) / 64
    assert losses["bpp"].item() == pytest.approx(bpp)
    assert losses["loss"].item() == pytest.approx(bpp + 0.02 * 255**2 * 0.01, rel=1e-5)


def test_the_learning_rate_warms_up_holds_and_falls():
    recipe = Recipe(steps=1000, warmup=10, hold=0.5)
    values = [learning_rate(recipe, s) for s in range(1000)]
    assert values[0] == 0.1 and values[10] == values[499] == 1 and values[-1] < 0.02
    assert all(a >= b for a, b in zip(values[500:], values[501:], strict=False))


def test_validation_photos_are_not_trained_on():
    names, images, validation = hold_out([str(i) for i in range(30)], [torch.tensor(i) for i in range(30)])
    assert len(names) == len(images) == 28 and [int(v) for v in validation] == [11, 23]
    assert not {int(v) for v in validation} & {int(i) for i in images}


def test_a_value_that_is_not_finite_stops_the_run_and_is_named(photos, tmp_path):
    model, names, images = start(photos)
    with torch.no_grad():
        model.h_a[2].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(AINNError, match=r"step 0: the output of h_a.2 is not finite"):
        train(model, names, images, images[:1], Recipe(steps=5, batch=1, patch=64), tmp_path, progress=False)


def test_another_recipe_in_the_same_folder_is_refused(photos, tmp_path):
    model, names, images = start(photos)
    train(model, names, images, images[:1], Recipe(steps=2, batch=1, patch=64), tmp_path, progress=False)
    with pytest.raises(AINNError, match="other settings"):
        train(model, names, images, images[:1], Recipe(steps=3, batch=1, patch=64), tmp_path, progress=False)


RUN = """
import json, sys
import torch
from ainn_lib import AINN
from ainn_lib.linear import start_as_linear_codec
from ainn_lib.rate import lagrangian
from ainn_lib.train import Recipe, load_photos, train
torch.set_num_threads(1)
names, images = load_photos(sys.argv[1])
torch.manual_seed(0)
model = AINN.from_preset("tiny", **json.loads(sys.argv[3]))
start_as_linear_codec(model, images)
train(model, names, images, images[:1], Recipe(steps=16, batch=1, patch=64, save_every=4, validate_every=8), sys.argv[2])
"""


def test_a_killed_run_resumes_bit_identical(photos, tmp_path):
    command = [sys.executable, "-c", RUN, str(photos)]
    overrides = json.dumps(OVERRIDES)
    subprocess.run([*command, str(tmp_path / "whole"), overrides], check=True, capture_output=True)
    process = subprocess.Popen([*command, str(tmp_path / "killed"), overrides], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stopped = torch.load(checkpoint, weights_only=True)["step"]
    assert 4 <= stopped < 16
    subprocess.run([*command, str(tmp_path / "killed"), overrides], check=True, capture_output=True)
    a, b = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    rows = [[row.split(",")[0:1] + row.split(",")[5:] for row in (tmp_path / name / "log.csv").read_text().splitlines()]
            for name in ("whole", "killed")]
    assert rows[0] == rows[1]
