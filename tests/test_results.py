"""Numbers that the project claims, against the committed measurements."""

import json
import re
import statistics

import pytest

from ainn_lib import AINNError, load_pretrained
from ainn_lib.codec.weights import fingerprint
from ainn_lib.measure import curves
from ainn_lib.measure.bd_rate import bd_rate
from ainn_lib.measure.datasets import photo
from ainn_lib.measure.evaluate import METRICS, MODULES, as_codec, measure, summarise, without
from ainn_lib.paths import MEASURED, RESULTS, ROOT
from ainn_lib.studies import ablation
from ainn_lib.style import LOOK

README = (ROOT / "README.md").read_text()
PROVENANCE = {"source", "commit", "date", "versions", "hardware"}


def measured(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def curve_of(name):
    return json.loads((MEASURED / f"{name}.json").read_text())


def test_measurements_say_where_they_come_from():
    for file in RESULTS.glob("*.json"):
        assert set(json.loads(file.read_text())) >= PROVENANCE, file.name


def test_every_curve_is_the_mean_of_its_images():
    for file in MEASURED.glob("*.json"):
        facts = json.loads(file.read_text())
        assert set(facts) >= PROVENANCE | {"protocol", "dataset", "codec"}, file.name
        assert len(facts["per_image"]) == facts["images"]
        curve, rows = facts["results"], []
        for image in facts["per_image"]:
            for i, setting in enumerate(curve["setting"]):
                rows.append({"setting": setting, **{key: image[key][i] for key in METRICS}})
        again = summarise(rows, curve["setting"])
        assert all(again[key] == pytest.approx(curve[key], abs=2e-6) for key in METRICS)


def test_kodak_rates_are_file_sizes():
    files = list(MEASURED.glob("kodak-*.json"))
    assert len(files) >= 10
    names = [f"kodim{i:02}.png" for i in range(1, 25)]
    for file in files:
        facts = json.loads(file.read_text())
        assert facts["images"] == 24 and [row["image"] for row in facts["per_image"]] == names
        for row in facts["per_image"]:
            rates = [8 * size / (768 * 512) for size in row["bytes"]]
            assert row["bpp"] == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize("name", ["tiny", "student"])
def test_our_curves_are_those_of_the_committed_weights(name):
    """After a training: ``ainn evaluate --model NAME --dataset kodak``, and so on for each file."""
    wanted = fingerprint(load_pretrained(name))
    files = {file.name: file.read_text() for file in MEASURED.glob(f"*-{name}.json")}
    assert {f"kodak-{name}.json", f"embedded-{name}.json"} <= set(files)
    for file, text in files.items():
        assert wanted in json.loads(text)["description"], file


def test_the_recovery_is_that_of_the_committed_weights(tiny):
    """Notebook 07 shows it; after a training: ``tools/recovery.py``."""
    assert {r["fingerprint"] for r in measured("recovery")["results"]} == {fingerprint(tiny)}


def test_the_tiny_weights_on_kodak():
    results = curve_of("kodak-tiny")["results"]
    points = zip(results["bpp"], results["psnr-rgb"], strict=True)
    assert max(quality for rate, quality in points if rate <= 0.75) >= 31.5


@pytest.mark.parametrize("name", ["benchmark", "benchmark_avx2"])
def test_the_committed_benchmarks_hold_what_is_claimed(name):
    for result in measured(name)["results"]:
        ratios, preset = result["ratios"], result["preset"]
        # With AVX-512, our `paper` encoder gains a factor of 3.5 over AVX2 and CompressAI's 5.
        encode = 6 if (name, preset) == ("benchmark", "paper") else 8
        assert ratios["entropy_decode"] >= 15 and ratios["entropy_encode"] >= encode
        if preset == "paper":
            assert ratios["decode"] >= 1.6


def test_bfloat16_synthesis_loses_nothing_that_counts(tiny):
    facts = measured("tiny_bf16")
    changes = [row["psnr_bf16"] - row["psnr_float32"] for row in facts["results"]]
    assert facts["fingerprint"] == fingerprint(tiny) and len(changes) == 24
    mean = sum(changes) / 24
    assert mean == pytest.approx(facts["mean_change_db"], abs=1e-6) and mean > -0.02


CURVES = curves.measured()
KODAK = {c.codec: c for c in CURVES if c.dataset == "kodak"}


def rows_below(head):
    """The cells of the README's table whose first line begins so."""
    lines = iter(README.splitlines())
    next(line for line in lines if line.startswith(head))
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", ["tiny", "student"])
def test_the_readmes_curves_are_the_measured_ones(name):
    results = curve_of(f"kodak-{name}")["results"]
    rows = list(rows_below(f"| quality of `{name}` |"))
    assert len(rows) >= 4
    for quality, *cells in rows:
        i = results["setting"].index(float(quality))
        bpp, psnr, ms_ssim = (results[key][i] for key in METRICS)
        assert cells == [f"{bpp:.3f}", f"{psnr:.2f}", f"{ms_ssim:.4f}"], f"quality {quality}"


def test_the_readmes_bd_rates_are_the_measured_ones():
    anchors = {"JPEG (the better": curves.better_jpeg(CURVES)["kodak"],
               "the same JPEG 2000": KODAK["jpeg2000rate"]}
    for name in ("jpeg2000", "webp", "jpegxl", "avif", "hevc", "vvc"):
        title, _ = LOOK[name]
        anchors[title] = KODAK[name]
    rows = list(rows_below("| against | `student` | `tiny` |"))
    assert len(rows) >= 6
    for title, *cells in rows:
        start = max((start for start in anchors if title.startswith(start)), key=len)
        rates = [bd_rate(anchors[start], KODAK[name]).percent for name in ("student", "tiny")]
        assert cells == [f"{rate:+.1f} %" for rate in rates], title


def test_the_readmes_first_number_is_the_measured_one():
    percent = bd_rate(curves.better_jpeg(CURVES)["kodak"], KODAK["student"]).percent
    assert f"needs {-percent:.1f} % fewer bits than JPEG" in README


@pytest.mark.parametrize("metric", ["psnr", "ms-ssim"])
def test_ours_are_above_the_better_jpeg_at_every_rate(metric):
    """The claim of the README and of notebook 09, wherever ours were measured."""
    better = curves.better_jpeg(CURVES, metric)
    ours = [c for c in CURVES if c.codec in ("tiny", "student")]
    assert {"kodak", "embedded"} <= {c.dataset for c in ours} <= set(better)
    for curve in ours:
        above = curves.gains(better[curve.dataset], curve, metric)
        assert (above > 0).all(), (curve.codec, curve.dataset, above)  # NaN fails as well


def test_the_readmes_ablation_is_the_measured_one():
    table = ablation.ablation_table(ablation.read_rows(), ablation.read_rows(ablation.SHORT))
    expected = [[name, *values[1:]] for name, values in table.iterrows()]
    assert list(rows_below("| network | trained (M) |")) == expected


def test_what_dead_leaves_cost_in_the_readme_is_the_measured_loss():
    choice = ablation.choices(ablation.read_rows())[0]
    loss = -statistics.fmean(choice.decibels)
    assert choice.steps == 8000 and f"costs {loss:.1f} dB at equal rate" in README


def test_the_readmes_speeds_are_the_measured_ones():
    for result in measured("benchmark")["results"]:
        start, ratios = f"| {result['preset']} |", result["ratios"]
        row = next(line for line in README.splitlines() if line.startswith(start))
        numbers = [float(n) for n in re.findall(r"([\d.]+)x", row)]
        keys = ("entropy_encode", "entropy_decode", "encode", "decode")
        expected = [ratios[key] for key in keys]
        assert numbers == [pytest.approx(e, abs=0.051) for e in expected]
    assert "TODO" not in README


def test_every_module_of_the_trained_network_does_something(tiny):
    def decibels(network):
        subject = as_codec(network, "network")
        photos = (photo("chelsea"), photo("rocket"))
        return statistics.fmean(measure(subject, image, 5.0)["psnr-rgb"] for image in photos)

    whole = decibels(tiny)
    changes = {module: decibels(without(tiny, module)) - whole for module in MODULES}
    assert all(abs(change) >= 0.05 for change in changes.values()), changes


def test_taking_a_module_out_leaves_the_original_alone(tiny):
    before = fingerprint(tiny), str(tiny)
    for module in MODULES:
        assert str(without(tiny, module)) != str(tiny), module
    assert (fingerprint(tiny), str(tiny)) == before
    with pytest.raises(AINNError, match="no module"):
        without(tiny, "magic")


def test_the_readme_says_how_long_explorers_take():
    slow = {row["explorer"]: row["p95"] for row in measured("latency")["explorers"]}
    slowest = max(slow, key=slow.get)
    assert slow[slowest] < 0.3
    assert f"within {slow[slowest]:.2f} s in 95 of 100 cases" in README
    assert f"{slowest} is the slowest" in README
