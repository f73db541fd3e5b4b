"""Batches that are drawn where they are trained on, and losses that are read later."""

import copy
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import SMALL

from ainn_lib import AINN, AINNError
from ainn_lib.measure import datasets
from ainn_lib.measure.metrics import psnr
from ainn_lib.network.config import preset
from ainn_lib.network.entropy_model import sequential_latent
from ainn_lib.network.graphs import Graphed
from ainn_lib.paths import RECIPES, ROOT
from ainn_lib.training import run, trainer
from ainn_lib.training.on_device import PhotosOnDevice
from ainn_lib.training.recipe import Recipe, read_recipe
from ainn_lib.training.run import train
from ainn_lib.training.samples import load_photos
from ainn_lib.training.trainer import Devices, Trainer

SHORT = dict(patch=64, warmup=0, sampler="device")
MISSING = ("constriction", "pooch", "pillow_heif", "pillow_jxl", "imagecodecs", "imageio_ffmpeg",
           "bjontegaard", "IPython", "ipywidgets", "anywidget", "voila", "nbclient")
CONFIG = preset("tiny", **SMALL)


def marked(number: int, height: int, width: int) -> torch.Tensor:
    """A photo whose pixels say which photo, row and column they are."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width).expand(height, width)
    return torch.stack([torch.full((height, width), number), rows, columns]).to(torch.uint8)


SIZES = ((64, 90), (100, 64), (70, 66), (128, 200))
PHOTOS = [marked(number, *size) for number, size in enumerate(SIZES)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AINN(CONFIG)


@pytest.fixture(scope="module")
def images():
    return list(torch.randint(0, 256, (3, 3, 80, 96), dtype=torch.uint8,
                              generator=torch.Generator().manual_seed(0)))


def test_every_crop_is_a_piece_of_one_photo_and_all_pieces_come():
    photos, seen = PhotosOnDevice(PHOTOS, torch.device("cpu")), set()
    recipe = Recipe(steps=1, batch=16, **SHORT)
    for step in range(60):
        for crop in (255 * photos.draw(CONFIG, recipe, step)["x"]).round().int():
            number, rows, columns = crop
            number = int(number.unique().item())  # one photo
            turned = bool(rows[0, 0] != rows[0, 1])
            if turned:
                rows, columns = rows.T, columns.T
            mirrored = bool(columns[0, 0] > columns[0, 1])
            if mirrored:
                columns = columns.flip(1)
            top, left = int(rows[0, 0]), int(columns[0, 0])
            expected = PHOTOS[number][:, top : top + 64, left : left + 64].int()
            assert torch.equal(torch.stack([expected[0], rows, columns]), expected)
            seen |= {(number, turned, mirrored), (number, "top", top), (number, "left", left)}
    for number, (height, width) in enumerate(SIZES):
        assert {(number, t, m) for t in (True, False) for m in (True, False)} <= seen
        for name, last in (("top", height - 64), ("left", width - 64)):
            found = {value for photo, what, value in seen if (photo, what) == (number, name)}
            assert 0 <= min(found) and max(found) <= last and len(found) > 0.6 * (last + 1)


def test_a_batch_follows_from_seed_and_step_and_covers_all_qualities():
    photos = PhotosOnDevice(PHOTOS, torch.device("cpu"))
    recipe = Recipe(steps=1, batch=14, **SHORT)
    first, again, other = (photos.draw(CONFIG, recipe, step) for step in (3, 3, 4))
    seeded = photos.draw(CONFIG, Recipe(steps=1, batch=14, seed=1, **SHORT), 3)
    for key, value in first.items():
        assert torch.equal(value, again[key])
        assert not torch.equal(value, other[key]) and not torch.equal(value, seeded[key])
    above = first["quality"] - (1 + 0.5 * torch.arange(14))  # of 14 equal parts from 1 to 8
    assert above.min() >= 0 and above.max() <= 0.5
    for key, shape in (("noise_y", (14, 48, 4, 4)), ("noise_z", (14, 8, 1, 1))):
        noise = first[key]
        assert noise.shape == shape and noise.abs().max() <= 0.5
        assert noise.var().item() == pytest.approx(1 / 12, rel=0.3)


def test_losses_read_later_are_those_of_single_steps(model, images, one_thread):
    recipe = Recipe(steps=6, batch=2, **SHORT)
    one, all_at_once = Trainer(copy.deepcopy(model), recipe), Trainer(model, recipe)
    photos = one.photos(images)
    assert isinstance(photos, PhotosOnDevice)
    single = [one.step(photos, step) for step in range(6)]
    assert all_at_once.read([all_at_once.launch(photos, step) for step in range(6)]) == single
    assert single[0]["loss"] > 0 and len({losses["loss"] for losses in single}) == 6


def test_a_run_reads_losses_now_and_then_and_resumes_exactly(model, images, tmp_path, monkeypatch,
                                                             one_thread):
    """As on a GPU."""
    monkeypatch.setattr(run, "READ_AFTER", {"cpu": 20})
    reads, launched, read, loss = [], iter(range(99)), Trainer.read, trainer.rd_loss

    def counted(self, losses):
        reads.append(len(losses))
        return read(self, losses)

    def stopped(*arguments):
        if next(launched) == 35:
            raise KeyboardInterrupt
        return loss(*arguments)

    recipe = Recipe(steps=50, batch=1, save_every=30, validate_every=45, **SHORT)
    networks = [copy.deepcopy(model) for _ in range(2)]
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "read", counted)
        whole = train(model, images, images[:1], recipe, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trainer, "rd_loss", stopped)
        train(networks[0], images, images[:1], recipe, tmp_path / "part")
    resumed = train(networks[1], images, images[:1], recipe, tmp_path / "part")
    assert reads == [20, 10, 15, 5]  # twenty steps, a checkpoint, a validation, the end
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_one_bad_loss_among_twenty_stops_the_run_before_it_is_saved(model, images, tmp_path,
                                                                    monkeypatch):
    launched, launch = iter(range(99)), Trainer.launch

    def once_bad(self, *arguments):
        losses = launch(self, *arguments)
        return losses * float("nan") if next(launched) == 7 else losses

    monkeypatch.setattr(run, "READ_AFTER", {"cpu": 20})
    monkeypatch.setattr(Trainer, "launch", once_bad)
    with pytest.raises(AINNError, match="stopped at step 8: the loss exploded, nan"):
        train(model, images, images[:1], Recipe(steps=15, batch=1, save_every=15, **SHORT),
              tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_ctrl_c_while_losses_are_read_or_photos_validated_saves(model, images, tmp_path,
                                                                monkeypatch):
    for number, (place, name) in enumerate(((Trainer, "read"), (run, "validate"))):
        called = getattr(place, name)

        def pressed(*arguments, called=called):
            os.kill(os.getpid(), signal.SIGINT)
            return called(*arguments)

        folder = tmp_path / str(number)
        with monkeypatch.context() as patched:
            patched.setattr(run, "READ_AFTER", {"cpu": 20})
            patched.setattr(place, name, pressed)
            with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="saved after"):
                train(copy.deepcopy(model), images, images[:1],
                      Recipe(steps=6, batch=1, validate_every=3, save_every=50, **SHORT), folder)
        kept = torch.load(folder / "checkpoint.pt", weights_only=True)
        assert kept["progress"]["step"] == 3


def test_mixed_precision_does_not_round_the_input(model, images):
    seen, trained = [], Trainer(model, Recipe(steps=1, batch=1, **SHORT),
                                Devices("cpu", precision="bf16-mixed").fabric())
    model.register_forward_pre_hook(lambda _, inputs: seen.extend(v.dtype for v in inputs))
    inside = []
    model.g_a.level1.register_forward_hook(
        lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    assert np.isfinite(trained.step(trained.photos(images), 0)["loss"])
    assert seen == [torch.float32] * 2 and inside == [True]


def test_the_recipe_for_a_gpu():
    file = read_recipe(RECIPES / "gpu.json")
    recipe = file.recipe(minutes=8)
    assert (file.preset, recipe.sampler, recipe.patch) == ("student", "device", 256)
    assert recipe.steps is None and recipe.average > 0.99
    with pytest.raises(AINNError, match="sampler must be host or device"):
        Recipe(steps=1, sampler="gpu")


def test_training_needs_no_coder(tmp_path):
    """A GPU machine may be bare: neither the coder's package nor a network."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)).save(
        tmp_path / "0.png")
    Image.new("RGB", (96, 96), "red").save(tmp_path / "1.png")
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({MISSING}))\n"
        "from ainn_lib.cli import main\n"
        "sys.exit(main(sys.argv[1:]))")
    recipe = tmp_path / "recipe.json"
    training = {"steps": 1, "batch": 1, "patch": 64, "sampler": "device"}
    recipe.write_text(json.dumps({"preset": "tiny", "training": training}))
    words = ["train", "--recipe", recipe, "--data", tmp_path, "--start", "tiny", "--out",
             tmp_path / "run"]
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True,
                          text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "run" / "weights" / "tiny.json").read_text())
    assert about["recipe"]["sampler"] == "device" and len(about["fingerprint"]) == 16


def test_photos_are_packed_by_name_nearly_without_loss(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import gpu

    monkeypatch.setattr(gpu, "PACK", tmp_path / "pack")
    (tmp_path / "photos").mkdir()
    crops = {name: datasets.photo(name).crop((0, 0, 256, 256)) for name in ("rocket", "chelsea")}
    for name, crop in crops.items():
        crop.save(tmp_path / "photos" / f"{name}.png")
    gpu.pack_photos(str(tmp_path / "photos"))
    names, packed = load_photos(tmp_path / "pack" / "photos")
    assert names == [f"{name}.avif" for name in load_photos(tmp_path / "photos")[0]]
    for name, pixels in zip(names, packed, strict=True):
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        assert psnr(crops[name.partition(".")[0]], image) > 38
    sizes = [sum(file.stat().st_size for file in (tmp_path / part / "photos").iterdir())
             for part in ("", "pack")]
    assert sizes[1] < sizes[0] / 3


def test_on_the_cpu_a_recorded_function_is_the_function():
    calls = []
    double = Graphed(lambda x: calls.append(1) or 2 * x)
    assert torch.equal(double(torch.ones(3)), torch.full((3,), 2.0)) and calls == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_recorded_context_is_the_context_and_follows_the_weights(model):
    model = model.cuda()
    recorded = Graphed(model.sequential)
    for side in (16, 8, 16, 16):
        y, hyper = (torch.randn(2, c, side, side, device="cuda") for c in (48, 8))
        bias = torch.randn(2, 96, 1, 1, device="cuda")
        with torch.no_grad():
            model.context_prediction.taps.mul_(1.1)
        expected = sequential_latent(y, hyper, bias, model.context_prediction,
                                     model.entropy_parameters)
        torch.testing.assert_close(recorded(y, hyper, bias), expected)
        for other in range(20):  # whole photos between two steps
            model.sequential(y[:, :, :4], hyper[:, :, :4], bias)
            model.sequential(torch.randn(2, 48, 3, other + 3, device="cuda"),
                             torch.randn(2, 8, 3, other + 3, device="cuda"), bias)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_waits_for_no_gpu(model, images, precision):
    recipe = Recipe(steps=9, batch=2, average=0.9, **SHORT)
    trained = Trainer(model, recipe, Devices("gpu", precision=precision).fabric())
    photos = trained.photos(images)
    first = trained.read([trained.launch(photos, step) for step in range(3)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [trained.launch(photos, step) for step in range(3, 9)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(row["loss"]) for row in [*first, *trained.read(losses)])
