"""What broke neighbouring projects: odd images, missing values, two processes, full disks."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import SHORT, SMALL

from ainn_lib import AINN, AINNError, __main__, codec, load_pretrained
from ainn_lib.cli import main
from ainn_lib.codec.files import locked
from ainn_lib.codec.images import open_image, prepare, read_rgb
from ainn_lib.measure import datasets, evaluate
from ainn_lib.measure.classical import CODECS
from ainn_lib.measure.curves import measured
from ainn_lib.training import run
from ainn_lib.training.recipe import Recipe
from ainn_lib.training.samples import load_photos
from ainn_lib.training.train import train_preset
from ainn_lib.training.trainer import Devices
from ainn_lib.ui.photos import own_photo

PHOTO = datasets.photo("chelsea").crop((100, 40, 260, 200))
GREY = np.asarray(PHOTO.convert("L"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    PHOTO.save(tmp_path / "photos" / "a.png")
    PHOTO.rotate(90).save(tmp_path / "photos" / "b.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trainable(folder):
    """Photos that the linear codec can be computed from."""
    for name in ("a", "b"):
        PHOTO.resize((480, 480)).save(folder / f"photos/{name}.png")
    (folder / "small.json").write_text(json.dumps(
        {"config": SMALL, "training": {**SHORT, "steps": 1}}))
    return folder


@pytest.fixture
def threads(monkeypatch):
    """`ainn evaluate` with threads in place of processes, which take long to start."""
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(evaluate, "workers", lambda jobs: contextlib.nullcontext(pool))
        yield pool


def measure(dataset: str, *options: str) -> int:
    return main(["evaluate", "--dataset", dataset, "--codec", "jpeg", *options])


# -- one reader of images --------------------------------------------------------------------------


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


ODD = {  # file -> what writes it
    "grey16.png": lambda path: Image.fromarray(GREY.astype(np.uint16) * 257).save(path),
    "grey16.tif": lambda path: Image.fromarray(GREY.astype(np.uint16) * 257).save(path),
    "deep.tif": lambda path: Image.fromarray(GREY.astype(np.int32) * 257).save(path),
    "float.tif": lambda path: Image.fromarray(GREY.astype(np.float32) / 255).save(path),
    "bits.png": lambda path: PHOTO.convert("1").save(path),
    "grey.jpg": lambda path: PHOTO.convert("L").save(path),
    "alpha.png": lambda path: PHOTO.convert("LA").save(path),
    "palette.gif": lambda path: PHOTO.quantize().save(path),
    "clear.png": lambda path: PHOTO.quantize().save(path, transparency=3),
    "cmyk.jpg": lambda path: PHOTO.convert("CMYK").save(path, quality=95),
    "turned.jpg": lambda path: PHOTO.save(path, exif=turned(), quality=95),
}


@pytest.mark.parametrize("name", ODD)
def test_all_readers_see_the_same_pixels(folder, name):
    ODD[name](folder / "photos" / name)
    path = folder / "photos" / name
    with open_image(path) as image:
        rgb = prepare(image).rgb
    names, tensors = load_photos(folder / "photos")
    assert np.array_equal(tensors[names.index(name)].permute(1, 2, 0), rgb)
    assert np.array_equal(read_rgb(path), rgb) and rgb.std() > 10
    [row] = evaluate._measure_file("codec", "jpeg444", 0, CODECS["jpeg444"].note, [95], path)
    assert 25 < row["psnr-rgb"] < 70
    picture, _ = own_photo(path.read_bytes())
    opaque = np.asarray(picture) if name != "clear.png" else rgb  # laid on white there
    assert np.array_equal(opaque, rgb)


@pytest.mark.parametrize("name", ["photo.heic", "photo.jxl"])
def test_photos_of_phones_and_jpeg_xl_are_read(folder, name, tiny):
    """Both are written here without the plug-in that Pillow reads them with."""
    if name == "photo.heic":
        plugin = pytest.importorskip("pillow_heif")
        plugin.from_pillow(PHOTO).save(f"photos/{name}", quality=95)
    else:
        if importlib.util.find_spec("pillow_jxl") is None:  # importing it would register it
            pytest.skip("pillow-jxl-plugin is not installed")
        Path("photos", name).write_bytes(CODECS["jpegxl"].encode(PHOTO, 0.5))
    rgb = read_rgb(folder / "photos" / name)
    assert np.abs(rgb - np.asarray(PHOTO).astype(float)).mean() < 5
    assert name in datasets.images("photos")
    assert main(["encode", f"photos/{name}", "photo.ainn"]) == 0


def test_a_phones_second_picture_is_no_frame(folder, capsys):
    PHOTO.save("photo.jpg", "MPO", save_all=True, append_images=[PHOTO.resize((40, 40))])
    assert main(["encode", "photo.jpg", "photo.ainn"]) == 0
    error = capsys.readouterr().err
    assert "further pictures (a preview, depth or gain map) are not kept" in error
    assert "frame" not in error


@pytest.mark.parametrize("shape", [(1, 3, 100, 100), (3, 64, 64), (1, 1, 64, 64), (1, 3, 0, 64)])
def test_a_network_says_which_images_it_takes(tiny, shape):
    with pytest.raises(AINNError, match="sides are multiples of 16"):
        tiny(torch.zeros(shape))


def test_a_default_of_float64_changes_nothing(tiny):
    small = PHOTO.crop((0, 0, 64, 48))
    plain, decoded = codec.encode(small, tiny, effort=1), codec.reconstruct(small, tiny)
    torch.set_default_dtype(torch.float64)
    try:
        for network in (tiny, load_pretrained("tiny")):
            assert codec.encode(small, network, effort=1) == plain
        back = codec.decode(codec.encode(small, network), network)
        assert back.tobytes() == decoded.tobytes()
        x = torch.zeros(1, 3, 64, 64, dtype=torch.float32)
        assert network(x)["x_hat"].dtype == torch.float32
        model = AINN.from_preset("tiny", **SMALL)
        images = [torch.tensor(np.asarray(PHOTO)).permute(2, 0, 1)] * 2
        fit = run.Trainer(model, Recipe(steps=2, **SHORT))
        assert np.isfinite(fit.step(images, 0)["loss"])
    finally:
        torch.set_default_dtype(torch.float32)


# -- missing values, what is left out --------------------------------------------------------------


def test_a_blank_page_is_one_lossless_image(folder, capsys, threads):
    Image.new("RGB", (96, 96), (128, 128, 128)).save("photos/blank.png")
    assert measure("photos", "--settings", "50", "90") == 0
    assert capsys.readouterr().out.count("1 of 3 images lossless") == 2
    facts = json.loads((folder / "results/photos-jpeg.json").read_text())
    rows = [row["psnr-rgb"] for row in facts["per_image"] if row["image"] != "blank.png"]
    assert facts["results"]["psnr-rgb"] == pytest.approx(np.mean(rows, 0), abs=1e-5)
    assert facts["results"]["lossless"] == [1, 1] and "ms-ssim-rgb" not in facts["results"]
    [curve] = measured("results")
    assert len(curve.points()[0]) == 2 and len(curve.points("ms-ssim")[0]) == 0
    assert main(["bd-rate", "results/photos-jpeg.json", "results/photos-jpeg.json"]) == 0
    (folder / "blank").mkdir()
    os.rename("photos/blank.png", "blank/blank.png")
    assert measure("blank", "--settings", "50") == 0
    assert "lossless" in capsys.readouterr().out and len(measured("results")) == 2


def test_what_is_left_out_is_counted_and_named(folder, capsys, threads):
    (folder / "photos/deeper/still").mkdir(parents=True)
    PHOTO.resize((80, 60)).save("photos/deeper/still/c.PNG")
    for name in ("photos/notes.txt", "photos/raw.cr2", "photos/.hidden"):
        Path(name).write_text("x")
    os.symlink("deeper", "photos/linked")
    assert measure("photos", "--settings", "50") == 0
    shown = capsys.readouterr()
    assert "3 of 6 files in photos are left out" in shown.err
    assert "linked, notes.txt, raw.cr2" in shown.err and ".hidden" not in shown.err
    facts = json.loads((folder / "results/photos-jpeg.json").read_text())
    assert [row["image"] for row in facts["per_image"]] == ["a.png", "b.png", "deeper/still/c.PNG"]
    with pytest.warns(UserWarning) as notes:
        load_photos("photos")
    assert "a side is below 64 pixels: deeper/still/c.PNG" in str(notes[-1].message)


def test_all_images_are_looked_at_first(folder, capsys, threads):
    (folder / "photos/a.png").write_bytes((folder / "photos/b.png").read_bytes()[:900])
    (folder / "photos/c.png").write_bytes(b"")
    assert measure("photos") == 2
    error = capsys.readouterr().err
    assert error.startswith("ainn: 2 of 3 images cannot be read") and error.count("\n") == 1
    assert "a.png" in error and "c.png" in error and not Path("results").exists()


def test_an_image_that_one_codec_refuses_does_not_stop_the_others(folder, capsys, threads):
    Image.new("RGB", (16_400, 16)).save("photos/wide.png")
    options = ["--codec", "webp", "jpeg", "--settings", "50"]
    assert main(["evaluate", "--dataset", "photos", *options]) == 2
    error = capsys.readouterr().err
    assert "ainn: webp: 1 of 3 images could not be measured" in error and "wide.png" in error
    assert sorted(os.listdir("results")) == ["photos-jpeg.json", "photos-webp.part"]
    assert len(json.loads(Path("results/photos-webp.part").read_text())) == 2


def test_a_second_folder_of_the_same_name_is_refused(folder, capsys, threads):
    (folder / "other/photos").mkdir(parents=True)
    PHOTO.resize((96, 96)).save("other/photos/a.png")
    assert measure("photos", "--settings", "50") == 0
    before = Path("results/photos-jpeg.json").read_text()
    for arguments, what in ((("other/photos", "--settings", "50"), "images"),
                            (("photos", "--settings", "60"), "settings")):
        assert measure(*arguments) == 2
        assert f"is a result of other {what}: choose another --out" in capsys.readouterr().err
        assert Path("results/photos-jpeg.json").read_text() == before
    assert measure("photos", "--settings", "50") == 0  # the same again
    assert measure("other/photos", "--settings", "50", "--force") == 0
    Path("results/photos-jpeg.json").write_text("my notes")
    assert measure("photos") == 2 and Path("results/photos-jpeg.json").read_text() == "my notes"


@pytest.mark.parametrize("name, setting", [
    ("jpeg", 74.9), ("jpeg", 500), ("jpeg", -3), ("webp", 0), ("avif", float("nan")), ("hevc", 99),
    ("hevc", 30.5), ("vvc", -1), ("jpegxl", 26), ("jpeg2000", 0)])
def test_a_setting_that_a_codec_does_not_have(name, setting):
    with pytest.raises(AINNError, match="settings from .* to .*, not"):
        CODECS[name].encode(PHOTO, setting)


# -- two processes, full disks, Ctrl-C -------------------------------------------------------------


def test_two_processes_at_one_output_are_one_sentence(folder, capsys, threads):
    (folder / "results").mkdir()
    (folder / "run").mkdir()
    training = ["train", "--data", "photos", "--steps", "1", "--out", "run"]
    with locked(folder / "results/photos-jpeg.json"), locked(folder / "run"):
        assert measure("photos", "--settings", "50") == 2
        assert main(training) == 2
    error = capsys.readouterr().err
    assert error.count("another process is at work on") == 2 and "Traceback" not in error
    assert os.listdir("results") == os.listdir("run") == []
    assert measure("photos", "--settings", "50") == 0
    assert os.listdir("results") == ["photos-jpeg.json"]


def test_rows_of_other_settings_stay(folder, threads):
    Path("results").mkdir()
    part = Path("results/photos-jpeg.part")
    part.write_text(json.dumps({"('codec', 'jpeg', 0, '', [7.0]) abc": [{"bytes": 1}]}))
    assert measure("photos", "--settings", "50") == 0
    assert "abc" in part.read_text() and len(json.loads(part.read_text())) == 1
    part.write_text("{")
    with pytest.raises(AINNError, match="jpeg.part is damaged: delete it"):
        evaluate._Kept(part)


@contextlib.contextmanager
def files_of_at_most(size: int):
    """A disk that is full: no file may grow beyond so many bytes."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_sentence(trainable, capsys, threads):
    commands = {
        20_000: ["train", "--recipe", "small.json", "--data", "photos", "--out", "run"],
        100: ["evaluate", "--dataset", "photos", "--codec", "jpeg", "--settings", "50"],
        50: ["encode", "photos/a.png", "a.ainn"]}
    for size, command in commands.items():
        with files_of_at_most(size):
            assert main(command) == 2, command
        error = capsys.readouterr().err
        [line] = [line for line in error.splitlines() if line.startswith("ainn:")]
        assert "cannot be written: " in line and "Traceback" not in error
    assert not [path for path in trainable.rglob("*") if path.suffix in (".part", ".ainn", ".pt")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full here")
def test_a_full_stream_is_one_sentence(folder, tiny):
    (folder / "a.ainn").write_bytes(codec.encode(PHOTO, tiny))
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "ainn_lib", "info", "a.ainn"], stdout=full,
                              stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "ainn: the output cannot be written: No space left on device\n"


def test_ctrl_c_before_the_command_has_begun(monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr("ainn_lib.cli.main", stopped)
    assert __main__.start() == 130
    assert capsys.readouterr().err == "ainn: stopped\n"


def test_processes_that_start_meanwhile_ignore_ctrl_c():
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    before = signal.getsignal(signal.SIGINT)
    with evaluate._ctrl_c_ignored():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n" and signal.getsignal(signal.SIGINT) is before
    elsewhere = threading.Thread(target=lambda: evaluate._ctrl_c_ignored().__enter__())
    elsewhere.start()
    elsewhere.join()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_without_docstrings_and_asserts(folder):
    program = [sys.executable, "-OO", "-m", "ainn_lib"]
    for arguments in (["--help"], ["encode", "photos/a.png", "a.ainn"],
                      ["decode", "a.ainn", "b.png"],
                      ["evaluate", "--dataset", "photos", "--codec", "jpeg", "--settings", "50"]):
        done = subprocess.run([*program, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_name_that_is_no_text(trainable):
    with contextlib.suppress(OSError):  # a file system that demands text
        os.rename(b"photos/a.png", b"photos/a\xe9.png")
    recipe = Recipe(steps=1, **SHORT)
    file = train_preset("tiny", "photos", recipe, "run", config=SMALL, devices=Devices("cpu"))
    assert file.exists()


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("losses, step", [
    ([1.0] * 5 + [2e6], 6), ([float("nan")], 1), ([2.0] * 12 + [1e3] * 10, 14), ([9e11], 1)])
def test_a_loss_that_explodes_stops_the_run(tmp_path, monkeypatch, losses, step):
    values = iter(losses)
    monkeypatch.setattr(run.Trainer, "launch", lambda *_: torch.full((3,), next(values)))
    model = AINN.from_preset("tiny", **SMALL)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(AINNError, match=f"at step {step}: the loss exploded, .* or lower --lr"):
        run.train(model, [image], [image], Recipe(steps=len(losses), **SHORT), tmp_path)


def test_a_hard_photo_is_no_explosion(tmp_path, monkeypatch):
    values = iter([0.01, 40.0, 0.01, 90.0] * 10)
    monkeypatch.setattr(run.Trainer, "launch", lambda *_: torch.full((3,), next(values)))
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    run.train(AINN.from_preset("tiny", **SMALL), [image], [image], Recipe(steps=40, **SHORT),
              tmp_path)


def test_a_run_says_what_it_trains_on(trainable, capsys):
    recipe = Recipe(steps=1, **SHORT)
    train_preset("tiny", "photos", recipe, "run", config=SMALL, devices=Devices("cpu"))
    said = capsys.readouterr().out
    assert "photos: 1 of photos (0.2 megapixels); 1 more for validation" in said
    assert "training: 1 steps of 1 crops of 64x64 pixels, adam" in said
    assert "all rates, begins as: linear codec" in said and not Path("run/.lock").exists()


def test_missing_lists_of_evaluation_images_are_no_empty_ones(folder, monkeypatch):
    bare = datasets.Dataset("kodak", 24, "evaluation", "", "")
    monkeypatch.setitem(datasets.DATASETS, "kodak", bare)
    with pytest.raises(AINNError, match="lists of the images .* are missing"):
        load_photos("photos")


@pytest.mark.parametrize("grey", [0, 255])
def test_photos_without_content_train_or_stop_with_a_sentence(trainable, capsys, grey):
    for name in ("a", "b"):
        Image.new("RGB", (480, 480), (grey,) * 3).save(f"photos/{name}.png")
    status = main(["train", "--recipe", "small.json", "--data", "photos", "--out", "run"])
    error = capsys.readouterr().err
    assert status == 0 or "ainn: " in error
    assert Path("run/weights").exists() == (status == 0)
