"""`ainn evaluate`: the protocol, resuming, the command line, and CompressAI's own evaluation beside it."""

import contextlib
import hashlib
import json

import pytest
from compressai.utils.plot.__main__ import parse_json_file
from PIL import Image

import ainn_lib.evaluate as evaluation
from ainn_lib import AINNError, cli, codecs, data, eval_model, reproduce
from ainn_lib.codecs import CODECS
from ainn_lib.evaluate import METRICS, as_codec, embedded, evaluate, measure, summarise, workers
from ainn_lib.metrics import psnr


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


def test_a_point_is_the_mean_of_each_images_bpp_and_psnr(photos, pool, tmp_path):
    result = evaluate(data.images(photos), "mine", "codec", "webp", tmp_path / "deep" / "r.json", [20, 80], pool, progress=False)
    facts = json.loads(result.read_text())
    expected = []
    for name in ("chelsea", "coffee"):
        image = data.photo(name).crop((40, 40, 232, 232))
        stream = CODECS["webp"].encode(image, 80)
        expected.append((len(stream), psnr(image, CODECS["webp"].decode(stream))))
    assert facts["results"]["bpp"][1] == pytest.approx(sum(8 * n / 192**2 for n, _ in expected) / 2, abs=1e-6)
    assert facts["results"]["psnr-rgb"][1] == pytest.approx(sum(q for _, q in expected) / 2, abs=1e-6)
    assert [row["bytes"][1] for row in facts["per_image"]] == [n for n, _ in expected]
    assert facts["dataset"] == "mine" and facts["images"] == 2 and facts["source"] == "measured here"
    assert [path.name for path in result.parent.iterdir()] == ["r.json"]  # no partial file stays


def test_compressais_plotting_tool_reads_it(photos, pool, tmp_path):
    result = evaluate(data.images(photos), "mine", "codec", "jpeg", tmp_path / "r.json", [30, 60], pool, progress=False)
    curve = parse_json_file(result, "psnr")
    assert curve["name"] == "JPEG 4:2:0" and len(curve["xs"]) == len(curve["ys"]) == 2


def test_a_stopped_run_goes_on_where_it_was(photos, pool, tmp_path, monkeypatch):
    images, target = data.images(photos), tmp_path / "r.json"
    whole = json.loads(evaluate(images, "mine", "codec", "jpeg", tmp_path / "w.json", [30, 60], pool, progress=False).read_text())
    (broken := tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(AINNError, match="broken.png cannot be read"):
        evaluate({"chelsea.png": images["chelsea.png"], "coffee.png": broken}, "mine", "codec", "jpeg", target, [30, 60], pool,
                 progress=False)
    part = target.with_suffix(".part")
    kept = part.read_text().splitlines()
    assert len(kept) == 3 and not target.exists()
    first = json.loads(kept[1])
    part.write_text("\n".join([kept[0], json.dumps({**first, "bytes": 1}), '{"image": "cof']))  # killed while it wrote
    again = json.loads(evaluate(images, "mine", "codec", "jpeg", target, [30, 60], pool, progress=False).read_text())
    row = next(row for row in again["per_image"] if row["image"] == first["image"])
    assert row["bytes"][again["results"]["setting"].index(first["setting"])] == 1  # taken from the part, not measured again
    assert again["per_image"][1] == whole["per_image"][1] and not part.exists()


def test_a_row_of_another_picture_of_that_name_is_not_used(photos, pool, tmp_path):
    images, target = data.images(photos), tmp_path / "r.json"
    whole = json.loads(evaluate(images, "mine", "codec", "jpeg", target, [30], pool, progress=False).read_text())
    facts = {key: whole[key] for key in ("name", "description", "codec", "dataset", "images", "source", "protocol")}
    rows = [{"image": row["image"], "setting": 30.0, **{key: row[key][0] for key in ("bytes", *METRICS)}, "bytes": 1,
             "sha256": hashlib.sha256(images[row["image"]].read_bytes()).hexdigest()} for row in whole["per_image"]]
    rows[0]["sha256"] = "of another file"
    header = {**facts, "settings": [30.0], "files": sorted(images)}
    target.with_suffix(".part").write_text("\n".join(json.dumps(line) for line in (header, *rows)) + "\n")
    again = json.loads(evaluate(images, "mine", "codec", "jpeg", target, [30], pool, progress=False).read_text())
    assert [row["bytes"][0] == 1 for row in again["per_image"]] == [False, True]


def test_a_photos_rotation_profile_and_transparency_are_the_same_for_all(tiny):
    image = data.photo("coffee").crop((0, 0, 96, 64))
    plain = {name: codecs.codec(name).encode(image, codecs.codec(name).settings[3]) for name in ("jpeg", "avif")}
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info.update(icc_profile=bytes(900), exif=exif.tobytes(), transparency=(1, 2, 3))
    for name, file in plain.items():
        assert codecs.codec(name).encode(image, codecs.codec(name).settings[3]) == file
    ours = as_codec(tiny, "tiny")
    assert ours.decode(ours.encode(image, 4.0)).size == image.size
    assert "icc_profile" in image.info  # the caller's own stays


def test_a_part_of_another_measurement_is_not_used(photos, pool, tmp_path):
    images, target = data.images(photos), tmp_path / "r.json"
    target.with_suffix(".part").write_text('{"name": "other"}\n{"image": "chelsea.png", "setting": 30.0, "bytes": 1}\n')
    facts = json.loads(evaluate(images, "mine", "codec", "jpeg", target, [30], pool, progress=False).read_text())
    assert facts["per_image"][0]["bytes"][0] > 1


def test_the_number_of_processes_changes_nothing(photos, pool, tmp_path, tiny):
    two = evaluate(data.images(photos), "mine", "model", "tiny", tmp_path / "two.json", [3], pool, progress=False)
    with workers(1) as single:
        one = evaluate(data.images(photos), "mine", "model", "tiny", tmp_path / "one.json", [3], single, progress=False)
    assert json.loads(two.read_text())["per_image"] == json.loads(one.read_text())["per_image"]


def test_small_images_have_no_ms_ssim_and_lossless_ones_no_psnr():
    small = data.photo("rocket").crop((0, 0, 160, 200))
    assert measure(CODECS["jpeg"], small, 50)["ms-ssim-rgb"] is None
    flat = small.resize((1, 1)).resize((32, 32))
    row = measure(CODECS["jpeg2000"], flat, 60)
    assert row["psnr-rgb"] is None or row["psnr-rgb"] > 45
    assert summarise([{**row, "psnr-rgb": None, "setting": 1.0}], [1.0])["psnr-rgb"] == [None]


def test_the_command(photos, tmp_path, capsys):
    assert cli.main(["evaluate", "--dataset", str(photos), "--codec", "jpeg", "--settings", "50", "--out", str(tmp_path)]) == 0
    assert "50  " in capsys.readouterr().out
    assert json.loads((tmp_path / f"{photos.name}-jpeg.json").read_text())["images"] == 2


@pytest.mark.parametrize("arguments, message", [
    (["--dataset", "DIR"], "nothing to measure"),
    (["--dataset", "DIR", "--codec", "gif"], "no codec 'gif'"),
    (["--dataset", "DIR", "--model", "nobody"], "nobody"),
    (["--dataset", "DIR", "--codec", "jpeg", "--model", "nobody"], "nobody"),
    (["--dataset", "DIR", "--model", "tiny", "data/weights/tiny.safetensors"], "would both become"),
    (["--dataset", "nowhere", "--codec", "jpeg"], "nowhere"),
    (["--dataset", "EMPTY", "--codec", "jpeg"], "no image"),
])
def test_mistakes_are_told_in_one_line(photos, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"DIR": str(photos), "EMPTY": str(tmp_path / "empty")}
    assert cli.main(["evaluate", *(places.get(a, a) for a in arguments), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_the_embedded_photos_as_files(tmp_path):
    assert set(embedded(tmp_path)) == set(data.EMBEDDED) and len(list(tmp_path.glob("*.png"))) == len(data.EMBEDDED)


def test_compressais_own_evaluation_gives_the_same_numbers(tmp_path, capsys, pool):
    (tmp_path / "in").mkdir()
    data.photo("coffee").crop((0, 0, 256, 192)).save(tmp_path / "in" / "one.png")
    eval_model.main(["pretrained", str(tmp_path / "in"), "-a", "ainn-tiny", "-q", "2,6"])
    theirs = json.loads(capsys.readouterr().out)["results"]
    ours = json.loads(evaluate(data.images(tmp_path / "in"), "one", "model", "tiny", tmp_path / "r.json", [2, 6], pool,
                               progress=False).read_text())["results"]
    assert theirs["bpp"] == pytest.approx(ours["bpp"], abs=1e-6)
    assert theirs["psnr-rgb"] == pytest.approx(ours["psnr-rgb"], abs=1e-4)
    assert theirs["ms-ssim-rgb"] == pytest.approx(ours["ms-ssim-rgb"], abs=1e-5)


def test_the_protocol_is_in_every_file():
    assert "mean over images of each image's bits per pixel" in evaluation.PROTOCOL


def test_make_reproduce_measures_every_codec_and_our_weights_alone(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(reproduce, "workers", contextlib.nullcontext)
    monkeypatch.setattr(reproduce, "available", lambda: ["ablation-peer", "student", "tiny"])
    monkeypatch.setattr(reproduce, "evaluate", lambda images, *rest, pool: seen.append((sorted(images), *rest)))
    reproduce.measure_embedded(tmp_path)
    assert [row[3] for row in seen] == [*CODECS, "student", "tiny"] and {row[2] for row in seen} == {"codec", "model"}
    for images, dataset, _, name, output in seen:
        assert images == sorted(data.EMBEDDED) and dataset == "embedded" and output == tmp_path / f"embedded-{name}.json"
