import copy
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
from torch import nn

from ainn_lib import AINN, AINNConfig, AINNError, load_pretrained
from ainn_lib.cli import main
from ainn_lib.codec.weights import save_pretrained
from ainn_lib.measure import datasets
from ainn_lib.network.entropy_model import lagrangian
from ainn_lib.paths import RECIPES
from ainn_lib.training import run, trainer
from ainn_lib.training import train as training
from ainn_lib.training.linear_start import start_as_linear_codec
from ainn_lib.training.recipe import Recipe, RecipeFile, learning_rate, read_recipe
from ainn_lib.training.run import train
from ainn_lib.training.samples import draw_sample, hold_out, load_photos
from ainn_lib.training.train import start_from, train_preset
from ainn_lib.training.trainer import Devices, Trainer, rd_loss, validate

SMALL = dict(M=48, N=8, hidden=(4, 4, 4, 4), mask_widths=(4, 4, 4), cfrm_growth=4, hyper_out=8,
             context_out=8, pdm_widths=((4, 4), (4, 4, 4), (4, 4, 4, 4)), parameter_widths=(8, 8))
SHORT = dict(batch=1, patch=64, warmup=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        photo = coarse.resize((288, 240), Image.Resampling.BICUBIC)
        photo.save(folder / f"{index}.png")
    Image.new("RGB", (40, 40)).save(folder / "too-small.png")
    return folder


@pytest.fixture(scope="module")
def images(photos):
    return load_photos(photos)[1]


@pytest.fixture(scope="module")
def sets(images):
    """Images to train on, and a small one for validation."""
    return images, [images[0][:, :64, :64]]


@pytest.fixture(scope="module")
def begun(images):
    torch.manual_seed(0)
    return start_as_linear_codec(AINN.from_preset("tiny", **SMALL), images)


@pytest.fixture
def model(begun):
    return copy.deepcopy(begun)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: nn.Module) -> set[str]:
    """Names of the parameters that differ."""
    return {name for name, p in after.named_parameters() if not torch.equal(before[name], p)}


# -- samples and loss ------------------------------------------------------------------------------


def test_photos_too_small_for_any_crop_are_left_out(photos):
    words = "1 of 5 photos are left out, since a side is below 64 pixels: too-small"
    with pytest.warns(UserWarning, match=words):
        assert load_photos(photos)[0] == [f"{i}.png" for i in range(4)]


def test_an_image_for_evaluation_is_refused_whatever_its_name(photos, tmp_path):
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    datasets.photo("chelsea").save(tmp_path / "holiday.png")
    with pytest.raises(AINNError, match=r"holiday\.png is an image for evaluation"):
        load_photos(tmp_path)


def test_a_photo_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(AINNError, match=r"cut\.png"):
        load_photos(tmp_path)


def test_photos_are_turned_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 150)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_photos(tmp_path)[1][0].shape == (3, 200, 150)


@pytest.mark.parametrize("count, held_out", [
    (2, [1]), (11, [10]), (12, [11]), (13, [11]), (30, [11, 23]),
    (240, list(range(11, 240, 24))[:8])])
def test_validation_photos_are_not_trained_on(count, held_out):
    photos = [torch.full((3, 64, 64), i) for i in range(count)]
    names, trained_on, validation = hold_out([str(i) for i in range(count)], photos)
    assert [image[0, 0, 0].item() for image in validation] == held_out
    assert names == [str(image[0, 0, 0].item()) for image in trained_on]
    assert not set(names) & {str(i) for i in held_out}
    assert len(trained_on) == count - max(1, count // 12)


def test_the_size_of_crops_does_not_change_what_is_held_out():
    sides = [64 if i % 3 else 256 for i in range(40)]
    images = [torch.zeros(3, side, side) for side in sides]
    names = [str(i) for i in range(40)]
    small = hold_out(names, images, 64)
    words = "of 40 photos are left out, since a side is below 256 pixels"
    with pytest.warns(UserWarning, match=words):
        large = hold_out(names, images, 256)
    assert [id(image) for image in small[2]] == [id(image) for image in large[2]]
    assert large[0] == [name for name in small[0] if sides[int(name)] == 256]
    with pytest.raises(AINNError, match="no photo to train on .* 512 pixels"):
        hold_out(names, images, 512)


def test_one_photo_is_not_enough():
    with pytest.raises(AINNError, match="two photos"):
        hold_out(["a"], [torch.zeros(3, 64, 64)])


def test_samples_follow_from_seed_step_and_index(model, images):
    recipe, other_seed = Recipe(steps=1, patch=64), Recipe(steps=1, patch=64, seed=1)
    a, b = (draw_sample(images, model.config, recipe, 7, 1) for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    for other in (draw_sample(images, model.config, recipe, 8, 1),
                  draw_sample(images, model.config, recipe, 7, 2),
                  draw_sample(images, model.config, other_seed, 7, 1)):
        assert not torch.equal(a["noise_y"], other["noise_y"])


def test_the_loss_is_compressais():
    likelihoods = {"y": torch.full((2, 4, 2, 2), 0.25), "z": torch.full((2, 1, 1, 1), 0.5)}
    output = {"x_hat": torch.full((2, 3, 8, 8), 0.5), "likelihoods": likelihoods}
    x = torch.full((2, 3, 8, 8), 0.4)
    losses = rd_loss(output, x, torch.tensor([0.01, 0.03]))
    bpp = (16 * 2 + 1) / 64
    assert losses["bpp"].item() == pytest.approx(bpp)
    assert losses["loss"].item() == pytest.approx(bpp + 0.02 * 255**2 * 0.01, rel=1e-5)


# -- steps -----------------------------------------------------------------------------------------


def test_the_loss_of_one_sample_falls(model, images):
    fit = Trainer(model, Recipe(steps=10, lr=1e-4, entropy_lr=3e-3, **SHORT))
    losses = [fit.step(images, 5)["loss"] for _ in range(10)]
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.slow
def test_a_short_run_learns(model, images, sets, tmp_path):
    recipe = Recipe(steps=100, batch=2, patch=64, lr=1e-4, entropy_lr=3e-3, warmup=5,
                    validate_every=50)
    lam = lagrangian(torch.tensor(4.0), model.config.lambdas).item()

    def cost() -> float:
        values = validate(model, images[:1])
        return values["bpp_q4"] + lam * 255**2 * 10 ** (-values["psnr_q4"] / 10)

    before = cost()
    train(model, *sets, recipe, tmp_path)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "50", "100"]
    assert rows[0].startswith("step,minutes,loss,bpp,mse,bpp_q2,psnr_q2,bpp_q4")
    assert cost() < 0.999 * before


def test_the_average_of_the_weights(model, images):
    """After each step, mean = 0.75 mean + 0.25 weights; validation and result are the mean's."""
    fit = Trainer(model, Recipe(steps=3, average=0.75, **SHORT))
    mean = weights(model)
    for step in range(3):
        fit.step(images, step)
        mean = {name: 0.75 * mean[name] + 0.25 * p for name, p in weights(model).items()}
    assert changed(mean, model)
    for name, value in weights(fit.averaged).items():
        torch.testing.assert_close(value, mean[name])


def test_a_run_returns_the_average(model, sets, tmp_path):
    plain = copy.deepcopy(model)
    averaged = train(model, *sets, Recipe(steps=3, average=0.9, **SHORT), tmp_path / "a")
    train(plain, *sets, Recipe(steps=3, **SHORT), tmp_path / "b")
    kept = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)
    assert changed(weights(plain), averaged)
    assert all(torch.equal(kept["averaged"][name], p) for name, p in weights(averaged).items()
               if not name.endswith("quantiles"))
    assert log(tmp_path / "a") != log(tmp_path / "b")  # the average is validated


def test_soap_learns(model, images):
    fit = Trainer(model, Recipe(steps=12, optimizer="soap", lr=1e-3, entropy_lr=1e-3, **SHORT))
    losses = [fit.step(images, 5)["loss"] for _ in range(12)]
    assert losses[-1] < 0.97 * losses[0]


def test_bits_on_whole_photos_are_compared_with_those_on_crops(model, monkeypatch):
    seen = []

    def estimate(network, image, quality):
        assert quality == 4.0
        seen.append(tuple(image.shape))
        return 1.1 if image.shape[2] > 256 else 1.0, 30.0

    monkeypatch.setattr(trainer, "_estimate", estimate)
    photos = [torch.zeros(3, 300, 520), torch.zeros(3, 256, 300)]
    assert trainer.whole_to_crops(model, photos) == 1.1
    assert seen == [(3, 256, 512), (3, 256, 256), (3, 256, 256)]
    assert trainer.whole_to_crops(model, photos[1:]) is None


def test_an_unstable_context_is_a_warning(model, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "whole_to_crops", lambda network, images: 1.25)
    with pytest.warns(UserWarning, match="step 1: whole photos need 25 % more bits than their"):
        train(model, *sets, Recipe(steps=1, **SHORT), tmp_path)


def test_the_entropy_model_can_learn_alone(model, images):
    before = weights(model)
    only = Trainer(model, Recipe(steps=6, train_part="entropy", **SHORT))
    for step in range(6):
        only.step(images, step)
    names = changed(before, model)
    assert {"context_prediction", "entropy_parameters", "rate_control"} <= {
        name.split(".")[0] for name in names}
    assert not any(name.startswith(("g_a", "g_s")) for name in names)
    # the gains belong to the transform
    assert not names & {"rate_control.gain_factor", "rate_control.inverse_factor"}


def traits(network: nn.Module) -> dict:
    """All that a run could change on a network, but for weights and statistics."""
    return {
        "gradients": {name: p.requires_grad for name, p in network.named_parameters()},
        "kept": [name for name, p in network.named_parameters() if p.grad is not None],
        "modes": {name: m.training for name, m in network.named_modules()},
        "norms": [(type(m), m.momentum) for m in network.modules()
                  if isinstance(m, nn.modules.batchnorm._BatchNorm)],
        "hooks": sum(len(m._forward_hooks) for m in network.modules()),
        "devices": {p.device for p in network.parameters()},
    }


@pytest.fixture
def with_norm():
    """A network with batch norm, of mixed modes and one parameter that is not to be trained."""
    network = AINN.from_preset("tiny", **{**SMALL, "pdm_norm": True})
    network.h_a.eval()
    network.h_s[0].weight.requires_grad_(False)
    return network


@pytest.mark.parametrize("part", ["all", "entropy"])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_run_leaves_everything_but_the_weights(with_norm, sets, tmp_path, monkeypatch, part,
                                                 error):
    before, values = traits(with_norm), weights(with_norm)
    recipe = Recipe(steps=2, train_part=part, **SHORT)
    if error:
        counted, loss = iter(range(9)), trainer.rd_loss

        def interrupted(*arguments):
            if next(counted):
                raise error
            return loss(*arguments)

        monkeypatch.setattr(trainer, "rd_loss", interrupted)
        with pytest.raises(error):
            train(with_norm, *sets, recipe, tmp_path)
        monkeypatch.undo()
    else:
        train(with_norm, *sets, recipe, tmp_path)
        assert not any(m.training for m in with_norm.modules())  # ready to code
        before["modes"] = traits(with_norm)["modes"]
    assert traits(with_norm) == before
    # a later run of the same object trains all of it
    values = weights(with_norm)
    train(with_norm, *sets, Recipe(steps=2, **SHORT), tmp_path / "later")
    fixed = {name for name, needed in before["gradients"].items() if not needed}
    still = set(values) - changed(values, with_norm)
    assert "h_s.0.weight" in fixed and fixed <= still
    # what starts at zero lets no gradient through to what is before it
    assert len(still) < len(values) / 3


def test_a_step_leaves_modes_and_gradients(with_norm, sets):
    before = traits(with_norm)
    del before["kept"]
    single = Trainer(with_norm, Recipe(steps=1, train_part="entropy", **SHORT))
    statistics = [m.running_mean.clone() for m in with_norm.modules()
                  if isinstance(m, nn.BatchNorm2d)]
    single.step(sets[0], 0)
    validate(with_norm, sets[1])
    after = traits(with_norm)
    del after["kept"]
    assert after == before
    norms = [m for m in with_norm.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(torch.equal(m.running_mean, old)
                         for m, old in zip(norms, statistics, strict=True))


def test_a_network_without_gradients_is_nothing_to_train(model):
    with pytest.raises(AINNError, match="nothing to train"):
        Trainer(model.requires_grad_(False), Recipe(steps=1))


def test_a_value_that_is_not_finite_stops_the_run_and_is_named(model, sets, tmp_path):
    with torch.no_grad():
        model.h_a[2].weight[0, 0, 0, 0] = float("nan")
    before = traits(model)
    with pytest.raises(AINNError, match=r"step 0: the output of h_a.2 is not finite"):
        train(model, *sets, Recipe(steps=5, **SHORT), tmp_path)
    assert traits(model) == before


def test_batch_statistics_are_part_of_a_start(tmp_path):
    network = AINN.from_preset("tiny", **{**SMALL, "pdm_norm": True})
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.fill_(0.5)
    file = save_pretrained(network, tmp_path / "norm")
    other = start_from(AINN.from_preset("tiny", **{**SMALL, "pdm_norm": True}), file)
    means = [m.running_mean for m in other.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (means[0] == 0.5).all() and not means[1].any()
    with pytest.raises(AINNError, match="another shape"):
        start_from(AINN.from_preset("tiny"), file)


# -- runs ------------------------------------------------------------------------------------------


RESUMED = dict(optimizer="soap", average=0.9, steps=8, save_every=3, validate_every=2, **SHORT)


@pytest.fixture(scope="module")
def uninterrupted(begun, sets, tmp_path_factory):
    """Weights and log of a run of 8 steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    network = train(copy.deepcopy(begun), *sets, Recipe(**RESUMED), folder)
    torch.set_num_threads(threads)
    return weights(network), log(folder)


def log(folder) -> list[list[str]]:
    """The rows of the log without the minutes."""
    rows = [row.split(",") for row in (folder / "log.csv").read_text().splitlines()]
    return [[row[0], *row[2:]] for row in rows]


def stopped(monkeypatch, place, name: str, at: int, action) -> None:
    """Let call number ``at`` of a function run ``action`` before it stops the run."""
    counted, function = iter(range(99)), getattr(place, name)

    def stop(*arguments, **more):
        if next(counted) == at:
            action(*arguments)
            raise KeyboardInterrupt
        return function(*arguments, **more)

    monkeypatch.setattr(place, name, stop)


@pytest.mark.parametrize("place, name, at", [
    (trainer, "rd_loss", 10),  # in step 5: a checkpoint of step 3, a log up to step 4
    (run.torch, "save", 1), (run, "validate", 2), (run, "_write_log", 0),
], ids=["step", "saving", "validation", "log"])
def test_a_run_stopped_anywhere_resumes_exactly(model, sets, tmp_path, monkeypatch, one_thread,
                                                uninterrupted, place, name, at):
    begun = copy.deepcopy(model)
    half = (lambda state, file: file.write(b"half")) if name == "save" else lambda *_: None
    stopped(monkeypatch, place, name, at, half)
    with pytest.raises(KeyboardInterrupt):
        train(model, *sets, Recipe(**RESUMED), tmp_path)
    monkeypatch.undo()
    (tmp_path / ".checkpoint.pt.0000.part").write_bytes(b"left by a kill")
    resumed = train(begun, *sets, Recipe(**RESUMED), tmp_path)
    values, rows = uninterrupted
    assert not changed(values, resumed) and log(tmp_path) == rows
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "log.csv", "run.json"]


def test_a_trained_network_can_be_trained_and_resumed_again(model, sets, tmp_path):
    """Its entropy tables are filled; those of the network that resumes are not."""
    fresh = copy.deepcopy(model)
    train(model, *sets, Recipe(steps=1, **SHORT), tmp_path / "first")
    train(model, *sets, Recipe(steps=2, **SHORT), tmp_path / "second")
    train(fresh, *sets, Recipe(steps=2, **SHORT), tmp_path / "second")
    assert not changed(weights(model), fresh)


@pytest.fixture(scope="module")
def finished(begun, sets, tmp_path_factory):
    """The folder of a run of one step."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(copy.deepcopy(begun), *sets, Recipe(steps=1, **SHORT), folder,
          origin={"start": "linear codec"})
    return folder


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "older"])
def test_a_damaged_checkpoint_is_one_sentence(model, sets, tmp_path, finished, damage):
    folder = shutil.copytree(finished, tmp_path / "run")
    file = folder / "checkpoint.pt"
    content = {"cut": file.read_bytes()[:-100], "empty": b"", "text": b"hello"}.get(damage)
    if damage == "older":
        torch.save({"model": {}, "step": 3}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(AINNError, match=r"checkpoint\.pt is damaged: delete .* and train again$"):
        train(model, *sets, Recipe(steps=1, **SHORT), folder,
              origin={"start": "linear codec"})


@pytest.mark.parametrize("file", ["run.json", "log.csv"])
def test_files_for_the_reader_may_be_damaged(model, sets, tmp_path, finished, file):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / file).write_text("")
    train(model, *sets, Recipe(steps=1, **SHORT), folder,
          origin={"start": "linear codec"})
    for name in ("run.json", "log.csv"):
        assert (folder / name).read_text() == (finished / name).read_text()


@pytest.mark.parametrize("recipe, origin, named", [
    (Recipe(steps=1, **SHORT), "tiny", r"\(start\)"),
    (Recipe(steps=1, seed=1, average=0.5, **SHORT), "linear codec", r"\(average, seed\)"),
])
def test_another_recipe_or_start_is_no_resumption(model, sets, finished, recipe, origin, named):
    before = weights(model)
    with pytest.raises(AINNError, match=f"other settings {named}"):
        train(model, *sets, recipe, finished, origin={"start": origin})
    assert not changed(before, model)


def test_the_steps_may_grow(model, sets, tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    train(model, *sets, Recipe(steps=3, **SHORT), folder, origin={"start": "linear codec"})
    assert [row[0] for row in log(folder)] == ["step", "1", "3"]
    with pytest.raises(AINNError, match=r"other settings \(steps\)"):
        train(model, *sets, Recipe(steps=2, **SHORT), folder, origin={"start": "linear codec"})


def test_ctrl_c_saves_and_the_run_resumes_exactly(model, sets, tmp_path, monkeypatch, one_thread,
                                                  uninterrupted):
    begun, counted, loss = copy.deepcopy(model), iter(range(99)), trainer.rd_loss

    def pressed(*arguments):
        if next(counted) == 6:  # within step 4: it ends first
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(trainer, "rd_loss", pressed)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="saved after step"):
        train(model, *sets, Recipe(**RESUMED), tmp_path)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is before
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["progress"]["step"] == 4  # without Ctrl-C, every third step is saved
    resumed = train(begun, *sets, Recipe(**RESUMED), tmp_path)
    values, rows = uninterrupted
    assert not changed(values, resumed) and log(tmp_path) == rows


def test_minutes_set_the_steps_once_and_leave_the_run_untouched(model, sets, tmp_path,
                                                                monkeypatch, one_thread):
    networks = [copy.deepcopy(model) for _ in range(4)]
    monkeypatch.setattr(run, "steps_for", timed_as(3))
    timed = train(networks[0], *sets, Recipe(minutes=1, **SHORT), tmp_path / "timed")
    counted = train(networks[1], *sets, Recipe(steps=3, **SHORT), tmp_path / "counted")
    assert not changed(weights(timed), counted)
    kept = json.loads((tmp_path / "timed" / "run.json").read_text())
    assert kept["recipe"]["steps"] == 3
    monkeypatch.setattr(run, "steps_for", timed_as(5))  # a busier machine
    again = train(networks[2], *sets, Recipe(minutes=1, **SHORT), tmp_path / "timed")
    assert not changed(weights(timed), again)
    with pytest.raises(AINNError, match="other settings"):
        train(networks[3], *sets, Recipe(minutes=2, **SHORT), tmp_path / "timed")


def timed_as(steps: int):
    """`steps_for`, which really runs, with another result."""
    measure = run.steps_for

    def measured(*arguments):
        assert measure(*arguments) > 0
        return steps

    return measured


def test_the_steps_fit_into_the_minutes(model, sets, monkeypatch):
    """Half a second a step, 10 s a validation every 100 steps: 10 minutes are 1,000 steps."""
    clock = [0.0]

    def passing(seconds):
        def run_for(*_):
            clock[0] += seconds
        return run_for

    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run.Trainer, "launch", passing(0.5))
    monkeypatch.setattr(run.Trainer, "read", passing(0))
    monkeypatch.setattr(run, "validate", passing(10))
    recipe = Recipe(minutes=10, validate_every=100)
    assert run.steps_for(model, *sets, recipe, Devices("cpu").fabric()) == 1000


SCRIPT = """
import json, sys
import torch
from ainn_lib import AINN
from ainn_lib.training.linear_start import start_as_linear_codec
from ainn_lib.training.recipe import Recipe
from ainn_lib.training.run import train
from ainn_lib.training.samples import load_photos
photos, folder, overrides = sys.argv[1:]
torch.set_num_threads(1)
_, images = load_photos(photos)
torch.manual_seed(0)
model = start_as_linear_codec(AINN.from_preset("tiny", **json.loads(overrides)), images)
recipe = Recipe(steps=16, batch=1, patch=64, save_every=4, validate_every=8)
train(model, images, images[:1], recipe, folder)
"""


@pytest.mark.slow
def test_a_killed_process_resumes_exactly(photos, tmp_path):
    def command(name: str) -> list:
        return [sys.executable, "-c", SCRIPT, photos, tmp_path / name, json.dumps(SMALL)]

    subprocess.run(command("whole"), check=True, capture_output=True)
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(command("killed"), **quiet)
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 4 <= torch.load(checkpoint, weights_only=True)["progress"]["step"] < 16
    subprocess.run(command("killed"), check=True, capture_output=True)
    a, b = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"]
            for name in ("whole", "killed"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert log(tmp_path / "whole") == log(tmp_path / "killed")


# -- several devices -------------------------------------------------------------------------------


ON_DEVICES = """
import json, sys
import torch
from ainn_lib import AINN
from ainn_lib.training.linear_start import start_as_linear_codec
from ainn_lib.training.recipe import Recipe
from ainn_lib.training.run import train
from ainn_lib.training.samples import load_photos
from ainn_lib.training.trainer import Devices
photos, folder, overrides, devices = sys.argv[1:]
torch.set_num_threads(1)
_, images = load_photos(photos)
fabric = Devices("cpu", int(devices)).fabric()
fabric.launch()
for steps, part in ((1, "all"), (20, "all"), (4, "entropy")):
    torch.manual_seed(0)
    model = start_as_linear_codec(AINN.from_preset("tiny", **json.loads(overrides)), images)
    with torch.no_grad():  # layers that begin at zero would let no gradient through
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(0, 0.01)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # statistics of half a batch are others
            norm.eval()
            norm.train = lambda mode=True, norm=norm: norm
    recipe = Recipe(steps=steps, batch=2, patch=64, clip=1e9, train_part=part)
    folder_of = f"{folder}/{part}-{steps}"
    train(model, images, [images[0][:, :64, :64]], recipe, folder_of, fabric)
"""


@pytest.fixture(scope="module")
def on_devices(photos, tmp_path_factory):
    """Checkpoints by number of processes and run."""
    folder = tmp_path_factory.mktemp("devices")
    (folder / "run.py").write_text(ON_DEVICES)
    changes = {**SMALL, "pdm_norm": True, "quantization": "noise", "lambdas": (0.0009, 0.001)}
    for devices in "12":
        command = [sys.executable, folder / "run.py", photos, folder / devices,
                   json.dumps(changes), devices]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return {(file.parts[-3], file.parts[-2]): torch.load(file, weights_only=True)
            for file in folder.glob("*/*/checkpoint.pt")}


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(on_devices):
    states = [on_devices[devices, "all-1"]["optimizer"]["state"] for devices in "12"]
    # Adam's first average is a tenth of the first gradient
    one, two = ([state["exp_avg"] / 0.1 for state in of.values()] for of in states)
    assert len(one) == len(two) > 100
    assert max(float(g.abs().max()) for g in one) > 0.05
    # float32 sums in another order; a gradient that is not averaged differs in its first digit
    assert max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name, moved", [("all-20", 1e-3), ("entropy-4", 1e-5)])
def test_two_processes_end_at_the_weights_of_one(on_devices, name, moved):
    begun = on_devices["1", "all-1"]["model"]
    one, two = (on_devices[devices, name]["model"] for devices in "12")
    assert set(one) == set(two)
    assert max(float((one[key] - begun[key]).abs().max()) for key in one) > moved
    # rounding, carried through the steps
    assert max(float((one[key] - two[key]).abs().max()) for key in one) <= 1e-5


@pytest.mark.slow
def test_two_devices_from_the_command_line(photos, small, tmp_path):
    command = [sys.executable, "-m", "ainn_lib", "train", "--recipe", small, "--data", photos,
               "--out", tmp_path / "run", "--devices", "2", "--strategy", "ddp",
               "--accelerator", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("weights: ") == 1, done.stderr
    assert done.stderr.count("100%") <= 2
    assert (tmp_path / "run" / "weights" / "tiny.safetensors").is_file()


# -- recipes and the command line ------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    {"steps": 0}, {"steps": 1.5}, {"minutes": 0}, {"minutes": float("nan")}, {"batch": 0},
    {"patch": 100}, {"patch": 0}, {"lr": 0}, {"lr": float("inf")}, {"entropy_lr": -1},
    {"constant_fraction": 2}, {"warmup": -1}, {"clip": 0}, {"lam": -0.01}, {"seed": -1},
    {"validate_every": 0}, {"save_every": 0}, {"schedule": "stairs"}, {"drops": (0.9, 0.5)},
    {"drops": (1.5,)}, {"drops": 0.5}, {"train_part": "decoder"}, {"batch": True},
], ids=str)
def test_a_recipe_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(AINNError, match=f"^{next(iter(wrong))} must be"):
        Recipe(**wrong)


def test_the_learning_rate_warms_up_stays_and_falls():
    recipe = Recipe(steps=1000, warmup=10, constant_fraction=0.5)
    values = [learning_rate(recipe, s) for s in range(1000)]
    assert values[0] == 0.1 and values[10] == values[499] == 1 and values[-1] < 0.02
    assert all(a >= b for a, b in zip(values[500:], values[501:], strict=False))


def test_the_learning_rate_drops():
    recipe = Recipe(steps=1000, warmup=0, schedule="drops", drops=(0.5, 0.75))
    factors = [learning_rate(recipe, step) for step in (0, 499, 500, 749, 750, 999)]
    assert factors == pytest.approx([1, 1, 0.3, 0.3, 0.09, 0.09])


def test_the_papers_recipe():
    file = read_recipe(RECIPES / "paper.json")
    config = AINNConfig(**file.config)
    assert (file.preset, config.N, config.M, config.variable_rate) == ("paper", 192, 192, False)
    recipes = [file.recipe(quality=quality) for quality in range(1, 9)]
    # CompressAI's
    assert [r.lam for r in recipes] == [0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483, 0.0932, 0.18]
    shared = {(r.patch, r.batch, r.lr, r.entropy_lr, r.schedule) for r in recipes}
    assert shared == {(256, 8, 1e-4, 1e-4, "drops")}
    own = file.recipe(lam=0.02, lr=2e-4)
    assert (own.lam, own.entropy_lr) == (0.02, 2e-4)
    for quality in (None, 0, 9):
        with pytest.raises(AINNError, match="1 to 8"):
            file.recipe(quality=quality)


def test_the_students_recipe():
    file = read_recipe(RECIPES / "student.json")
    config, recipe = AINN.from_preset(file.preset, **file.config).config, file.recipe()
    assert (config.M, config.pdm, config.lambdas) == (256, "residual", (0.0018, 0.25))
    assert (recipe.optimizer, recipe.average, recipe.patch) == ("soap", 0.998, 256)


@pytest.mark.parametrize("file", [RecipeFile(), RecipeFile(lambdas=(0.01, 0.02))], ids="01")
def test_a_quality_and_a_lambda_are_one_choice_too_many(file):
    with pytest.raises(AINNError, match="not both"):
        file.recipe(lam=0.01, quality=1)


@pytest.fixture
def small(tmp_path):
    """A recipe file for a network that trains in a second."""
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"config": SMALL, "training": {**SHORT, "steps": 2, "batch": 2}}))
    return path


@pytest.mark.parametrize("flags, words", [
    ("--recipe missing.json", "cannot be read"), ("--recipe text.json", "no JSON"),
    ("--recipe list.json", "no recipe"), ("--recipe field.json", "no field stepz"),
    ("--recipe old.json", "hold is now called constant_fraction"),
    ("--recipe older.json", "only is now called train_part"),
    ("--recipe config.json --steps 1", "no field width"),
    ("--batch 4", "how long"), ("--steps 1 --patch 96", "multiple of 64"),
    ("--steps 1 --quality 4", "--lambda"),
    ("--steps 1 --devices 3 --accelerator cpu", "divided"),
    ("--steps 1 --devices 0", "at least 1"),
    ("--steps 1 --devices 99 --accelerator gpu", "GPUs"),
    ("--steps 1 --preset nope", "unknown preset"),
    ("--steps 1 --data nowhere", "neither a folder nor a data set"),
])
def test_a_mistake_is_one_line_before_anything_is_written(tmp_path, monkeypatch, capsys, flags,
                                                          words):
    monkeypatch.chdir(tmp_path)
    files = {"text": "steps: 3", "list": "[]", "field": '{"training": {"stepz": 3}}',
             "old": '{"training": {"hold": 0.3}}', "older": '{"training": {"only": "entropy"}}',
             "config": '{"config": {"width": 3}}'}
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text)
    assert main(["train", "--out", "run", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_without_data_dead_leaves_are_drawn_once(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "DRAWN_IMAGES", 4)
    command = ["train", "--recipe", str(small), "--out", str(tmp_path / "run")]
    command += ["--accelerator", "cpu"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert re.search(r"2/2 \[.*\d\.\d{3} bpp, \d+\.\d\d dB, loss \d", shown.err)
    file = tmp_path / "run" / "weights" / "tiny.safetensors"
    assert f"weights: {file}" in shown.out and load_pretrained(file).config.variable_rate
    facts = json.loads(file.with_suffix(".json").read_text())
    assert (facts["data"], facts["photos"], facts["start"]) == ("dead leaves", 3, "linear codec")
    assert facts["log"][-1]["step"] == facts["recipe"]["steps"] == 2
    leaves = tmp_path / "run" / "dead_leaves"
    drawn = {p: p.stat().st_mtime_ns for p in leaves.iterdir()}
    assert len(drawn) == 4 and main(command) == 0
    assert {p: p.stat().st_mtime_ns for p in leaves.iterdir()} == drawn


@pytest.mark.filterwarnings("ignore:.*left out")
def test_training_at_one_rate(photos, model, sets, tmp_path):
    recipe = Recipe(steps=1, lam=0.013, **SHORT)
    file = train_preset("tiny", photos, recipe, tmp_path, config=SMALL, devices=Devices("cpu"))
    config = load_pretrained(file).config
    assert file.name == "tiny-0_013.safetensors"
    assert not config.variable_rate and config.lambdas == (0.013, 0.013)
    header = "step,minutes,loss,bpp,mse,bpp_validation,psnr_validation,whole_to_crops"
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == header
    with pytest.raises(AINNError, match="takes no λ"):
        train(model, *sets, recipe, tmp_path / "other")


@pytest.mark.filterwarnings("ignore:.*left out")
def test_training_starts_from_weights_and_resumes(photos, begun, tmp_path):
    start = save_pretrained(begun, tmp_path / "start")
    arguments = ["tiny", photos, Recipe(steps=1, lr=1e-9, entropy_lr=1e-9, **SHORT)]
    common = dict(config=SMALL, devices=Devices("cpu"))
    file = train_preset(*arguments, tmp_path / "run", start=start, **common)
    trained, origin = load_pretrained(file), load_pretrained(start)
    names = changed(weights(origin), trained) - {"entropy_bottleneck.quantiles"}
    for name in names:  # float16
        torch.testing.assert_close(trained.get_parameter(name), origin.get_parameter(name),
                                   rtol=1e-3, atol=1e-6)
    assert json.loads(file.with_suffix(".json").read_text())["start"] == str(start)
    again = train_preset(*arguments, tmp_path / "run", start=start, **common)
    assert again == file and not changed(weights(trained), load_pretrained(file))
    with pytest.raises(AINNError, match="other settings"):
        train_preset(*arguments, tmp_path / "run", **common)
