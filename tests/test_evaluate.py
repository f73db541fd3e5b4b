"""`ainn evaluate`: the protocol, resuming, the command line, and CompressAI's own evaluation."""

import contextlib
import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from compressai.utils.plot.__main__ import parse_json_file
from PIL import Image

from ainn_lib import AINNError, cli, codec, reproduce
from ainn_lib.codec.images import to_tensor
from ainn_lib.codec.weights import save_pretrained
from ainn_lib.measure import compressai_eval
from ainn_lib.measure import datasets as data
from ainn_lib.measure import evaluate as evaluation
from ainn_lib.measure.classical import CODECS
from ainn_lib.measure.evaluate import as_codec, embedded, measure, summarise, workers
from ainn_lib.measure.metrics import psnr
from ainn_lib.measure.results import compact_json, write_results


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in ("chelsea", "coffee"):
        data.photo(name).crop((40, 40, 40 + 192, 40 + 192)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def pool():
    with workers(2) as pool:
        yield pool


@pytest.fixture
def evaluated(photos, pool, tmp_path):
    """The result of measuring two photos, as a function of codec and settings."""

    def evaluated(kind, name, settings, output=tmp_path / "r.json", images=None, pool=pool):
        images = images or data.images(photos)
        path = evaluation.evaluate(images, "mine", kind, name, output, settings, pool=pool)
        return json.loads(path.read_text())

    return evaluated


def test_a_point_is_the_mean_of_each_images_bpp_and_psnr(evaluated, tmp_path):
    facts = evaluated("codec", "webp", [20, 80], tmp_path / "deep" / "r.json")
    of_files, qualities = [], []
    for name in ("chelsea", "coffee"):
        image = data.photo(name).crop((40, 40, 232, 232))
        stream = CODECS["webp"].encode(image, 80)
        of_files.append(len(stream))
        qualities.append(psnr(image, CODECS["webp"].decode(stream)))
    assert facts["results"]["bpp"][1] == pytest.approx(8 * sum(of_files) / 192**2 / 2, abs=1e-6)
    assert facts["results"]["psnr-rgb"][1] == pytest.approx(sum(qualities) / 2, abs=1e-6)
    assert [row["bytes"][1] for row in facts["per_image"]] == of_files
    assert [row["image"] for row in facts["per_image"]] == ["chelsea.png", "coffee.png"]
    assert facts["dataset"] == "mine" and facts["images"] == 2
    assert facts["source"] == "measured here"
    assert "mean over images of each image's bits per pixel" in facts["protocol"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r.json"]  # no partial file


def test_compressais_plotting_tool_reads_it(evaluated, tmp_path):
    evaluated("codec", "jpeg", [30, 60])
    curve = parse_json_file(tmp_path / "r.json", "psnr")
    assert curve["name"] == "JPEG 4:2:0" and len(curve["xs"]) == len(curve["ys"]) == 2


# -- resuming -------------------------------------------------------------------------------------


@pytest.fixture
def stopped(evaluated, photos, tmp_path):
    """A run over a too wide image and chelsea; its kept row says chelsea's file had one byte."""
    Image.new("RGB", (65_536, 8)).save(wide := tmp_path / "wide.png")
    images = {"b.png": wide, "a.png": photos / "chelsea.png"}
    with pytest.raises(AINNError, match="^1 of 2 images .*r.part; b.png: JPEG .* 65536x8 at 30"):
        evaluated("codec", "jpeg", [30], images=images)
    assert not (tmp_path / "r.json").exists()
    [[key, [row]]] = json.loads((tmp_path / "r.part").read_text()).items()
    (tmp_path / "r.part").write_text(json.dumps({key: [row | {"bytes": 1}]}))


def sizes(facts) -> list[list[int]]:
    return [row["bytes"] for row in facts["per_image"]]


def test_a_stopped_run_resumes(stopped, evaluated, photos, tmp_path):
    [kept], [new] = sizes(evaluated("codec", "jpeg", [30]))
    assert kept == 1 < new and not (tmp_path / "r.part").exists()


@pytest.mark.parametrize("name, codec, setting", [
    ("coffee", "jpeg", 30), ("chelsea", "jpeg", 31), ("chelsea", "webp", 30)])
def test_a_row_of_another_picture_setting_or_codec_is_not_used(
        stopped, evaluated, photos, name, codec, setting):
    images = {"a.png": photos / f"{name}.png"}
    [[size]] = sizes(evaluated("codec", codec, [setting], images=images))
    assert size > 1


def test_retrained_weights_are_measured_anew(evaluated, tiny, tmp_path):
    """The measuring processes keep a network between files, but not an outdated one."""
    model = copy.deepcopy(tiny)
    seen = []
    for number in range(2):
        save_pretrained(model, tmp_path / "mine")
        facts = evaluated("model", str(tmp_path / "mine"), [3.0], tmp_path / f"{number}.json")
        seen.append(sizes(facts))
        with torch.no_grad():
            model.g_a.level1.conv1x1.weight.mul_(1.5)
    assert seen[0] != seen[1]


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(evaluated, tmp_path):
    two = evaluated("model", "tiny", [3])
    with workers(1) as single:
        one = evaluated("model", "tiny", [3], tmp_path / "one.json", pool=single)
    assert one["per_image"] == two["per_image"]


# -- one image ------------------------------------------------------------------------------------


PARENT = """
import os, time
from ainn_lib.measure.evaluate import workers
if __name__ == "__main__":
    with workers(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""


def test_measuring_processes_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"  # a file: spawned processes import it
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        assert worker.is_running()
        parent.kill()
        gone, _ = psutil.wait_procs([worker], timeout=60)
        assert gone


def test_rotation_profile_and_transparency_are_left_out_for_all(tiny):
    image = data.photo("coffee").crop((0, 0, 96, 64))
    classical = CODECS["jpeg"], CODECS["avif"]
    plain = [codec.encode(image, codec.settings[3]) for codec in classical]
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info.update(icc_profile=bytes(900), exif=exif.tobytes(), transparency=(1, 2, 3))
    assert [codec.encode(image, codec.settings[3]) for codec in classical] == plain
    ours = as_codec(tiny, "tiny")
    assert ours.decode(ours.encode(image, 4.0)).size == image.size
    assert "icc_profile" in image.info  # the caller's own stays


def test_small_images_have_no_ms_ssim_and_lossless_ones_no_psnr():
    small = data.photo("rocket").crop((0, 0, 160, 200))
    assert measure(CODECS["jpeg"], small, 50)["ms-ssim-rgb"] is None
    flat = Image.new("RGB", (32, 32), (128, 128, 128))
    row = measure(CODECS["jpeg"], flat, 95)
    assert row["psnr-rgb"] is None
    rows = [{**row, "setting": 1.0}, {**row, "setting": 1.0, "psnr-rgb": 30.0}]
    assert summarise(rows, [1.0]) == {
        "setting": [1.0], "bpp": [row["bpp"]], "psnr-rgb": [30.0], "lossless": [1]}
    assert "psnr-rgb" not in summarise(rows[:1], [1.0])


def test_the_embedded_photos_as_files(tmp_path):
    assert set(embedded(tmp_path)) == set(data.EMBEDDED) == {p.stem for p in tmp_path.iterdir()}


# -- the command ----------------------------------------------------------------------------------


def test_the_command(photos, tmp_path, capsys):
    options = ["--codec", "jpeg", "--settings", "50", "--out", str(tmp_path), "--jobs", "1"]
    assert cli.main(["evaluate", "--dataset", str(photos), *options]) == 0
    assert "50.0 " in capsys.readouterr().out
    assert json.loads((tmp_path / f"{photos.name}-jpeg.json").read_text())["images"] == 2


def test_a_folder_is_no_data_set_by_its_name(photos, tmp_path, capsys, monkeypatch):
    shutil.copytree(photos, tmp_path / "kodak")
    monkeypatch.chdir(tmp_path)
    options = ["--codec", "jpeg", "--settings", "50", "--out", "r", "--jobs", "1"]
    assert cli.main(["evaluate", "--dataset", "./kodak", *options]) == 0
    assert "folder-kodak: 2 images in kodak\n" in capsys.readouterr().out
    assert json.loads(open("r/folder-kodak-jpeg.json").read())["dataset"] == "folder-kodak"


@pytest.mark.parametrize("arguments, message", [
    (["--dataset", "DIR"], "nothing to measure"),
    (["--dataset", "DIR", "--codec", "gif"], "no codec 'gif'"),
    (["--dataset", "DIR", "--model", "nobody"], "nobody"),
    (["--dataset", "DIR", "--codec", "jpeg", "--model", "nobody"], "nobody"),
    (["--dataset", "DIR", "--model", "tiny", "data/weights/tiny.safetensors"], "would both become"),
    (["--dataset", "DIR", "--codec", "jpeg", "--jobs", "0"], "at least 1"),
    (["--dataset", "nowhere", "--codec", "jpeg"], "nowhere"),
    (["--dataset", "EMPTY", "--codec", "jpeg"], "no image"),
])
def test_mistakes_are_one_line_and_nothing_is_written(photos, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"DIR": str(photos), "EMPTY": str(tmp_path / "empty")}
    arguments = [places.get(word, word) for word in arguments]
    assert cli.main(["evaluate", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list((tmp_path / "out").rglob("*"))


def test_reproduce_measures_every_codec_and_our_weights_alone(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(reproduce, "workers", contextlib.nullcontext)
    monkeypatch.setattr(reproduce, "available", lambda: ["ablation-untied", "student", "tiny"])
    monkeypatch.setattr(reproduce, "evaluate",
                        lambda images, *rest, pool: seen.append((sorted(images), *rest)))
    reproduce.measure_embedded(tmp_path)
    assert [row[3] for row in seen] == [*CODECS, "student", "tiny"]
    for images, dataset, kind, name, output in seen:
        assert images == sorted(data.EMBEDDED) and dataset == "embedded"
        assert kind == ("codec" if name in CODECS else "model")
        assert output == tmp_path / f"embedded-{name}.json"


# -- CompressAI's own evaluation ------------------------------------------------------------------


def test_compressais_own_evaluation_counts_the_stream_alone(tmp_path, capsys, evaluated, tiny):
    photo = data.photo("coffee").crop((0, 0, 256, 192))
    (tmp_path / "in").mkdir()
    photo.save(tmp_path / "in" / "one.png")
    compressai_eval.main(["pretrained", str(tmp_path / "in"), "-a", "ainn-tiny", "-q", "2,6"])
    theirs = json.loads(capsys.readouterr().out)["results"]
    ours = evaluated("model", "tiny", [2, 6], images=data.images(tmp_path / "in"))["results"]
    assert theirs["psnr-rgb"] == pytest.approx(ours["psnr-rgb"], abs=1e-4)
    assert theirs["ms-ssim-rgb"] == pytest.approx(ours["ms-ssim-rgb"], abs=1e-5)
    for position, quality in enumerate((2.0, 6.0)):
        x = to_tensor(np.asarray(photo))
        stream = tiny.compress(x, quality)["strings"][0][0]
        assert theirs["bpp"][position] == pytest.approx(8 * len(stream) / (256 * 192))
        container = len(codec.encode(photo, tiny, quality)) - len(stream)
        difference = ours["bpp"][position] - theirs["bpp"][position]
        assert 0 < container < 64
        assert difference == pytest.approx(8 * container / (256 * 192), abs=1e-6)


# -- results as files -----------------------------------------------------------------------------


def test_results_are_written_whole_and_compactly(tmp_path):
    facts = {"name": "π", "mean": 1 / 3, "rows": [{"a": [1.23456789]}, {"a": []}], "none": None}
    path = write_results(tmp_path / "deep" / "r.json", facts)
    assert path.read_text() == compact_json(facts)
    assert json.loads(path.read_text()) == {
        "name": "π", "mean": 0.333333, "rows": [{"a": [1.234568]}, {"a": []}], "none": None}
    with pytest.raises(TypeError):
        write_results(path, {"name": object()})
    assert json.loads(path.read_text())["name"] == "π" and len(list(path.parent.iterdir())) == 1
