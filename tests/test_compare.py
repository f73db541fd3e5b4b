"""`ainn bd-rate`: two files of curves, from us, from CompressAI or from a spreadsheet."""

import json
import re

import numpy as np
import pytest

from ainn_lib import AINNError
from ainn_lib.cli import main
from ainn_lib.measure.compare import compare, read_curve
from ainn_lib.paths import MEASURED, ROOT

RATES, QUALITIES = [0.1, 0.2, 0.4, 0.8, 1.6], [28.0, 30.0, 32.0, 34.0, 36.0]
HEVC, TINY, STUDENT = (MEASURED / f"kodak-{name}.json" for name in ("hevc", "tiny", "student"))


def csv(path, rates=RATES, qualities=QUALITIES, header="bpp,psnr"):
    lines = [header, *(f"{r},{q}" for r, q in zip(rates, qualities, strict=True))]
    path.write_text("\n".join(lines))
    return path


def compressai(path, rates=RATES, **more):
    results = {"bpp": rates, "psnr-rgb": QUALITIES, "ms-ssim-rgb": [0.9, 0.95, 0.97, 0.99, None]}
    path.write_text(json.dumps({"name": "theirs", "description": "", "results": results, **more}))
    return path


def line(words: list[str], start: str) -> str:
    return next(word for word in words if word.startswith(start))


def test_a_fifth_fewer_bits_at_every_quality(tmp_path):
    anchor = csv(tmp_path / "a.csv")
    test = compressai(tmp_path / "b.json", [0.8 * rate for rate in RATES])
    words = compare(anchor, test)
    assert line(words, "BD-rate") == (
        "BD-rate: -20.0 % (28.0 to 36.0 dB); Akima interpolation of the logarithm of the rate")
    # 2 dB for a doubling: 0.8 of the rate is worth 2 * log2(1 / 0.8)
    assert line(words, "BD-PSNR") == f"BD-PSNR: {2 * np.log2(1 / 0.8):+.2f} dB"
    assert line(words, "anchor") == "anchor a: 5 points, 0.100 to 1.600 bpp, 28.00 to 36.00 dB"


def test_our_files_have_both_means():
    words = compare(HEVC, TINY)
    assert "+30.4 %" in line(words, "BD-rate")
    assert line(words, "mean of the BD-rates") == (
        "mean of the BD-rates of 24 of 24 images: +35.0 %")


def test_what_the_readme_says_of_student():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    fewer, best, more = re.search(
        r"needs ([\d.]+) % fewer bits than `tiny`.* best quality is ([\d.]+) dB.* needs ([\d.]+) %"
        r" more bits than HEVC intra", readme).groups()
    assert f"-{fewer} %" in line(compare(TINY, STUDENT), "BD-rate")
    assert f"+{more} %" in line(compare(HEVC, STUDENT), "BD-rate")
    assert round(read_curve(STUDENT)[0].psnr[-1], 1) == float(best)


def test_ms_ssim_is_compared_in_decibels(tmp_path):
    anchor, test = compressai(tmp_path / "a.json"), compressai(tmp_path / "b.json", RATES)
    words = compare(anchor, test, "ms-ssim")
    assert "+0.0 % (10.0 to 20.0 dB)" in line(words, "BD-rate")


@pytest.mark.parametrize("header", ["\ufeffbpp,psnr", "Rate,PSNR (dB)", "bpp,psnr_db"])
def test_what_spreadsheets_write(tmp_path, header):
    curve, images = read_curve(csv(tmp_path / "a.csv", header=header))
    assert curve.psnr == tuple(QUALITIES) and not images
    text = (tmp_path / "a.csv").read_text().replace(",", ";").replace(".", ",")
    (tmp_path / "b.csv").write_text(text)
    assert read_curve(tmp_path / "b.csv")[0].bpp == tuple(RATES)


@pytest.mark.parametrize("text, words", [
    ("bpp,psnr\n0.1,30\n-0.2,31", "line 3, column bpp: '-0.2' is no bpp above 0"),
    ("bpp,psnr\nx,30\n0.2,31", "line 2, column bpp: 'x' is no bpp above 0"),
    ("bpp,psnr\n0.1,30\n,31", "line 3: a bpp above 0 must be given"),
    ("bpp;psnr\n0,1;30\n0,2;much", "line 3, column psnr: 'much' is no PSNR"),
    ("a,b\n1,2", "a column bpp"),
    ("bpp,psnr\n0.1,nan", "line 2, column psnr: 'nan' is no PSNR"),
    ("bpp,psnr\n0.1,", "and psnr or ms-ssim"),
    ("", "cannot be read as a curve"),
])
def test_nonsense_is_refused(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(AINNError, match=words):
        read_curve(tmp_path / "a.csv")


def test_json_with_nonsense_names_the_place(tmp_path):
    file = compressai(tmp_path / "a.json")
    facts = json.loads(file.read_text())
    facts["results"]["psnr-rgb"][2] = -3
    file.write_text(json.dumps(facts))
    with pytest.raises(AINNError, match="value 3, column psnr-rgb: -3 is no PSNR"):
        read_curve(file)


@pytest.mark.parametrize("text", ["[]", "{}", '{"results": 3}', "{", '{"results": {"bpp": [1]}}'])
def test_other_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(AINNError, match="cannot be read as a curve"):
        read_curve(tmp_path / "a.json")
    with pytest.raises(AINNError, match="cannot be read as a curve"):
        read_curve(tmp_path / "missing.json")


@pytest.mark.parametrize("rates, qualities, words", [
    (RATES, [29.0, 30.5, 32.0, 33.5, 35.0], "the curves cross"),
    (RATES, [28.5, 30.5, 32.5, 34.5, 34.6], "b saturates: 0.1 dB for the last doubling of"),
    (RATES, [28.5, 30.5, 30.0, 34.5, 36.5], "b: 1 points cost more than another and are no"),
    (RATES[:3], QUALITIES[:3], "no BD-rate: a curve of 3 points"),
    (RATES, [35.5, 37, 39, 41, 43], "no BD-rate: overlap of 0.5 dB"),
    (RATES, [45, 47, 49, 51, 53], "no overlap"),
])
def test_what_makes_it_mean_little_is_said(tmp_path, rates, qualities, words):
    anchor = csv(tmp_path / "a.csv")
    said = compare(anchor, csv(tmp_path / "b.csv", rates, qualities))
    assert any(words in word for word in said), said


def test_a_metric_that_one_file_lacks(tmp_path):
    words = compare(csv(tmp_path / "a.csv"), compressai(tmp_path / "b.json"), "ms-ssim")
    assert line(words, "anchor") == "anchor a: 0 points"
    assert line(words, "BD-rate") == "BD-rate: no BD-rate: a curve of 0 points"


def test_other_images_are_a_warning(tmp_path):
    words = compare(compressai(tmp_path / "a.json", dataset="kodak", images=24),
                    compressai(tmp_path / "b.json", dataset="kodak", images=23))
    assert "different images" in line(words, "warning")


def test_the_command_and_its_plot(tmp_path, capsys):
    plot = tmp_path / "plot.svg"
    arguments = ["bd-rate", str(HEVC), str(TINY), "--plot", str(plot)]
    assert main(arguments) == 0
    assert "BD-rate: +30.4 %" in capsys.readouterr().out and "<svg" in plot.read_text()
    assert main(arguments) == 2
    assert "exists already; --force replaces it" in capsys.readouterr().err
    assert main([*arguments[:-1], str(tmp_path / "plot.xyz")]) == 2
    assert "cannot be drawn" in capsys.readouterr().err
    assert main(["bd-rate", str(HEVC), str(tmp_path / "missing.csv")]) == 2
