import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ainn_lib import AINN, AINNConfig, AINNError, data, load_pretrained
from ainn_lib import train as training
from ainn_lib.cli import main
from ainn_lib.linear import start_as_linear_codec
from ainn_lib.rate import lagrangian
from ainn_lib.recipe import Recipe, learning_rate, read_recipe
from ainn_lib.reproduce import ROOT
from ainn_lib.samples import draw_sample, hold_out, load_photos
from ainn_lib.train import Devices, rd_loss, set_up, start_at_fixed_rate, start_from, train, train_preset, validate
from ainn_lib.weights import save_pretrained

OVERRIDES = dict(M=48, N=8, hidden=(4, 4, 4, 4), mask_widths=(4, 4, 4), cfrm_growth=4, hyper_out=8, context_out=8,
                 pdm_widths=((4, 4), (4, 4, 4), (4, 4, 4, 4)), parameter_widths=(8, 8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(4):
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        small.resize((288, 240), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
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
    before = validate(model, images[:1], (4.0,))
    model = train(model, images, images[:1], recipe, tmp_path, progress=False)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("step,minutes,loss,bpp,mse,bpp_q2,psnr_q2")
    lam = lagrangian(torch.tensor(4.0), model.config.lambdas).item()

    def cost(v):
        return v["bpp_q4"] + lam * 255**2 * 10 ** (-v["psnr_q4"] / 10)

    assert cost(validate(model, images[:1], (4.0,))) < 0.99 * cost(before)


def test_the_entropy_model_can_learn_alone(photos, tmp_path):
    model, _, images = start(photos)
    before = {name: p.clone() for name, p in model.named_parameters()}
    recipe = Recipe(steps=6, batch=2, patch=64, warmup=0, only="entropy")
    after = dict(train(model, images, images[:1], recipe, tmp_path, progress=False).named_parameters())
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"context_prediction", "entropy_parameters", "rate_control"} <= changed
    assert not changed & {"levels", "cfrm", "pdm", "fdsm_d", "fdsm_s"}
    for name in ("rate_control.gain_factor", "rate_control.inverse_factor"):  # part of the transform
        assert torch.equal(before[name], after[name])
    with pytest.raises(AINNError, match="only must be all or entropy"):
        Recipe(only="decoder")


def test_samples_follow_from_seed_step_and_index(photos):
    model, _, images = start(photos)
    recipe = Recipe(steps=1, patch=64)
    a, b = (draw_sample(images, model.config, recipe, 7, 1) for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    for other in (draw_sample(images, model.config, recipe, 8, 1), draw_sample(images, model.config, recipe, 7, 2),
                  draw_sample(images, model.config, Recipe(steps=1, patch=64, seed=1), 7, 1)):
        assert not torch.equal(a["noise_y"], other["noise_y"])


def test_the_loss_is_compressais():
    likelihoods = {"y": torch.full((2, 4, 2, 2), 0.25), "z": torch.full((2, 1, 1, 1), 0.5)}
    output = {"x_hat": torch.full((2, 3, 8, 8), 0.5), "likelihoods": likelihoods}
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
        train(model, images, images[:1], Recipe(steps=5, batch=1, patch=64), tmp_path, progress=False)


def test_other_photos_or_another_start_are_no_resumption(photos, tmp_path):
    _, images = load_photos(photos)
    recipe, folder = Recipe(steps=1, batch=1, patch=64, validate_every=1), tmp_path / "run"

    def run(origin):
        model = start_as_linear_codec(AINN.from_preset("tiny", **OVERRIDES), images)
        return train(model, images, images[:1], recipe, folder, progress=False, origin=origin)

    run({"start": "linear codec", "pixels_sha256": "a"})
    run({"start": "linear codec", "pixels_sha256": "a"})
    for other in ({"start": "tiny", "pixels_sha256": "a"}, {"start": "linear codec", "pixels_sha256": "b"}):
        with pytest.raises(AINNError, match="other settings"):
            run(other)


def test_batch_statistics_go_along_and_stand_still_with_the_transform(tmp_path):
    changes = {**OVERRIDES, "pdm": "unet", "pdm_norm": True}
    trained = AINN.from_preset("tiny", **changes)
    norm = next(m for m in trained.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.running_mean.fill_(0.5)
    file = save_pretrained(trained, tmp_path / "norm")
    model = start_from(AINN.from_preset("tiny", **changes), file.with_suffix(""))
    means = [m.running_mean for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert (means[0] == 0.5).all()
    set_up(model, Recipe(steps=1, only="entropy"), Devices("cpu").fabric())
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64), 4.0)
    assert (means[0] == 0.5).all() and not means[1].any()
    with pytest.raises(AINNError, match="nothing to train"):
        set_up(model.requires_grad_(False), Recipe(steps=1), Devices("cpu").fabric())


def test_another_recipe_in_the_same_folder_is_refused(photos, tmp_path):
    model, names, images = start(photos)
    train(model, images, images[:1], Recipe(steps=2, batch=1, patch=64), tmp_path, progress=False)
    with pytest.raises(AINNError, match="other settings"):
        train(model, images, images[:1], Recipe(steps=3, batch=1, patch=64), tmp_path, progress=False)


RUN = """
import json, sys
import torch
from ainn_lib import AINN
from ainn_lib.linear import start_as_linear_codec
from ainn_lib.rate import lagrangian
from ainn_lib.recipe import Recipe
from ainn_lib.samples import load_photos
from ainn_lib.train import train
torch.set_num_threads(1)
names, images = load_photos(sys.argv[1])
torch.manual_seed(0)
model = AINN.from_preset("tiny", **json.loads(sys.argv[3]))
start_as_linear_codec(model, images)
train(model, images, images[:1], Recipe(steps=16, batch=1, patch=64, save_every=4, validate_every=8), sys.argv[2])
"""


def test_a_killed_run_resumes_bit_identical(photos, tmp_path):
    command = [sys.executable, "-c", RUN, str(photos)]
    overrides = json.dumps(OVERRIDES)
    subprocess.run([*command, str(tmp_path / "whole"), overrides], check=True, capture_output=True)
    process = subprocess.Popen([*command, str(tmp_path / "killed"), overrides], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
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
    rows = [[row.split(",")[0:1] + row.split(",")[2:] for row in (tmp_path / name / "log.csv").read_text().splitlines()]
            for name in ("whole", "killed")]
    assert rows[0] == rows[1]


ON_DEVICES = """
import json, sys
import torch
from ainn_lib import AINN
from ainn_lib.linear import start_as_linear_codec
from ainn_lib.recipe import Recipe
from ainn_lib.samples import load_photos
from ainn_lib.train import Devices, train
photos, folder, overrides, devices = sys.argv[1:]
torch.set_num_threads(1)
_, images = load_photos(photos)
fabric = Devices("cpu", int(devices)).fabric()
fabric.launch()
for steps in (1, 20):
    torch.manual_seed(0)
    model = start_as_linear_codec(AINN.from_preset("tiny", **json.loads(overrides)), images)
    with torch.no_grad():  # layers that begin at zero would let no gradient through to those before them
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(0, 0.01)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # statistics frozen: those of half a batch are not those of the whole
            norm.eval()
            norm.train = lambda mode=True, norm=norm: norm
    recipe = Recipe(steps=steps, batch=2, patch=64, clip=1e9)
    train(model, images, [images[0][:, :64, :64]], recipe, f"{folder}/{steps}", fabric, progress=False)
"""


@pytest.fixture(scope="module")
def on_devices(photos, tmp_path_factory):
    """Checkpoints after 1 and after 20 steps, of one process and of two."""
    folder = tmp_path_factory.mktemp("devices")
    (folder / "run.py").write_text(ON_DEVICES)
    overrides = json.dumps({**OVERRIDES, "pdm_norm": True, "quantization": "noise", "lambdas": (0.0009, 0.001)})
    for devices in "12":
        command = [sys.executable, folder / "run.py", photos, folder / devices, overrides, devices]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return {(devices, steps): torch.load(folder / devices / steps / "checkpoint.pt", weights_only=True)
            for devices in "12" for steps in ("1", "20")}


def test_two_processes_have_the_gradients_of_one(on_devices):
    one, two = ([state["exp_avg"] / 0.1 for state in on_devices[devices, "1"]["optimizer"]["state"].values()]
                for devices in "12")  # Adam's first average is a tenth of the first gradient
    assert len(one) == len(two) > 100
    assert max(float(g.abs().max()) for g in one) > 0.05
    # float32 sums in another order; a gradient that is not averaged differs in its first digit
    assert max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)) <= 1e-6


def test_two_processes_end_at_the_weights_of_one(on_devices):
    begun, one, two = (on_devices[key]["model"] for key in (("1", "1"), ("1", "20"), ("2", "20")))
    filled = [key for key in one if one[key].numel()]  # the coder's tables are still empty
    assert set(one) == set(two) and max(float((one[key] - begun[key]).abs().max()) for key in filled) > 1e-3
    assert max(float((one[key] - two[key]).abs().max()) for key in filled) <= 1e-5  # rounding, carried through 20 steps


# -- recipes and the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    {"steps": 0}, {"steps": 1.5}, {"minutes": 0}, {"minutes": float("nan")}, {"batch": 0}, {"patch": 100}, {"patch": 0},
    {"lr": 0}, {"lr": float("inf")}, {"entropy_lr": -1}, {"hold": 2}, {"warmup": -1}, {"clip": 0}, {"lam": -0.01},
    {"seed": -1}, {"validate_every": 0}, {"save_every": 0}, {"schedule": "stairs"}, {"drops": (0.9, 0.5)}, {"drops": (1.5,)},
    {"drops": 0.5},
], ids=str)
def test_a_recipe_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(AINNError, match=f"^{next(iter(wrong))} must be"):
        Recipe(**wrong)


def test_the_learning_rate_drops():
    recipe = Recipe(steps=1000, warmup=0, schedule="drops", drops=(0.5, 0.75))
    factors = [learning_rate(recipe, step) for step in (0, 499, 500, 749, 750, 999)]
    assert factors == pytest.approx([1, 1, 0.3, 0.3, 0.09, 0.09])


def test_the_papers_recipe():
    file = read_recipe(ROOT / "data" / "recipes" / "paper.json")
    config = AINNConfig(**file.config)
    assert file.preset == "paper" and (config.N, config.M, config.variable_rate) == (192, 192, False)
    recipes = [file.recipe(quality=quality) for quality in range(1, 9)]
    assert [r.lam for r in recipes] == [0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483, 0.0932, 0.18]  # CompressAI's
    assert {(r.patch, r.batch, r.lr, r.entropy_lr, r.schedule) for r in recipes} == {(256, 8, 1e-4, 1e-4, "drops")}
    assert file.recipe(lam=0.02, lr=2e-4).lam == 0.02 and file.recipe(lam=0.02, lr=2e-4).entropy_lr == 2e-4
    for quality in (None, 0, 9):
        with pytest.raises(AINNError, match="1 to 8"):
            file.recipe(quality=quality)


@pytest.fixture
def small(tmp_path):
    """A recipe file for a network that trains in a second."""
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"config": OVERRIDES, "training": {"steps": 2, "batch": 2, "patch": 64}}))
    return path


@pytest.mark.parametrize("flags, words", [
    ("--recipe missing.json", "cannot be read"), ("--recipe text.json", "no JSON"), ("--recipe list.json", "no recipe"),
    ("--recipe field.json", "no field stepz"), ("--batch 4", "how long"), ("--steps 1 --patch 96", "multiple of 64"),
    ("--steps 1 --quality 4", "--lambda"), ("--steps 1 --devices 3 --accelerator cpu", "divided"),
    ("--steps 1 --devices 0", "at least 1"), ("--steps 1 --devices 99 --accelerator gpu", "GPUs"),
    ("--steps 1 --preset nope", "unknown preset"), ("--steps 1 --data nowhere", "neither a folder nor a data set"),
])
def test_a_mistake_is_told_before_anything_is_written(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    for name, text in (("text", "steps: 3"), ("list", "[]"), ("field", '{"training": {"stepz": 3}}')):
        (tmp_path / f"{name}.json").write_text(text)
    assert main(["train", "--out", "run", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_an_image_for_evaluation_is_refused_whatever_its_name(photos, tmp_path):
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    data.photo("chelsea").save(tmp_path / "holiday.png")
    with pytest.raises(AINNError, match=r"holiday\.png is an image for evaluation"):
        load_photos(tmp_path)


def test_one_photo_is_not_enough():
    with pytest.raises(AINNError, match="two photos"):
        hold_out(["a"], [torch.zeros(1)])
    assert hold_out(["a", "b"], [0, 1]) == (["a"], [0], [1])


def test_without_data_dead_leaves_are_drawn_once(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "DEAD_LEAVES", 4)
    command = ["train", "--recipe", str(small), "--out", str(tmp_path / "run"), "--accelerator", "cpu"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert re.search(r"2/2 \[.*\d\.\d{3} bpp, \d+\.\d\d dB, loss \d", shown.err)
    weights = tmp_path / "run" / "weights" / "tiny.safetensors"
    assert f"weights: {weights}" in shown.out and load_pretrained(weights).config.variable_rate
    facts = json.loads(weights.with_suffix(".json").read_text())
    assert (facts["data"], facts["photos"], facts["start"]) == ("dead leaves", 3, "linear codec")
    drawn = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "dead_leaves").iterdir()}
    assert len(drawn) == 4 and main(command) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "dead_leaves").iterdir()} == drawn


def test_minutes_fix_the_steps_once_and_leave_the_run_untouched(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_fitting", lambda recipe, step, validation: 3)
    common = dict(batch=1, patch=64, save_every=1)
    for name, length in (("timed", {"minutes": 1.0}), ("counted", {"steps": 3})):
        model, _, images = start(photos)
        train(model, images, images[:1], Recipe(**length, **common), tmp_path / name, progress=False)
    timed, counted = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("timed", "counted"))
    assert timed["step"] == 3 and all(torch.equal(timed["model"][key], counted["model"][key]) for key in timed["model"])
    assert json.loads((tmp_path / "timed" / "run.json").read_text())["recipe"]["steps"] == 3
    monkeypatch.setattr(training, "steps_for", lambda *_: pytest.fail("a run taken up again was timed again"))
    model, _, images = start(photos)
    train(model, images, images[:1], Recipe(minutes=1.0, **common), tmp_path / "timed", progress=False)
    with pytest.raises(AINNError, match="other settings"):
        train(model, images, images[:1], Recipe(minutes=2.0, **common), tmp_path / "timed", progress=False)


@pytest.mark.parametrize("tied", (True, False))
def test_a_network_of_one_rate_begins_as_the_variable_one_at_its_quality(photos, tied):
    every, _, images = start(photos)
    lam = lagrangian(torch.tensor(4.0), every.config.lambdas).item()
    one = start_at_fixed_rate(AINN.from_preset("tiny", **OVERRIDES, variable_rate=False, tied=tied), images, lam)
    x = images[0][None, :, :128, :128].float() / 255
    with torch.no_grad():
        gain, inverse_gain, bias = every.gains(4.0)
        y = one.g_a(x)
        assert y.std() > 1
        torch.testing.assert_close(y, every.g_a(x) * gain, rtol=1e-4, atol=1e-4)  # float32 in 768-term sums
        y_hat = torch.round(y)
        torch.testing.assert_close(one.g_s(y_hat), every.g_s(y_hat * inverse_gain), rtol=0, atol=1e-5)
        torch.testing.assert_close(one.entropy_parameters[-1].bias, bias.flatten(), rtol=1e-4, atol=1e-4)


def test_training_at_one_rate(photos, tmp_path):
    weights = train_preset("tiny", photos, Recipe(steps=1, batch=1, patch=64, lam=0.013), tmp_path, config=OVERRIDES,
                           devices=Devices("cpu"))
    config = load_pretrained(weights).config
    assert weights.name == "tiny-0_013.safetensors" and not config.variable_rate and config.lambdas == (0.013, 0.013)
    assert (tmp_path / "log.csv").read_text().startswith("step,minutes,loss,bpp,mse,bpp_validation,psnr_validation\n")
    model, _, images = start(photos)
    with pytest.raises(AINNError, match="takes no λ"):
        train(model, images, images[:1], Recipe(steps=1, patch=64, lam=0.013), tmp_path / "other")


def test_two_devices_from_the_command_line(photos, small, tmp_path):
    command = [sys.executable, "-m", "ainn_lib.cli", "train", "--recipe", small, "--data", photos, "--out", tmp_path / "run",
               "--devices", "2", "--strategy", "ddp", "--accelerator", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("weights: ") == 1 and done.stderr.count("100%") <= 2, done.stderr
    assert (tmp_path / "run" / "weights" / "tiny.safetensors").is_file()
