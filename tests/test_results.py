"""Numbers that the project claims, against the committed measurements; and what of them can be measured again here."""

import json
import re

import pytest

from ainn_lib import AINNError, data
from ainn_lib.evaluate import MODULES, evaluate, knockouts, rate_distortion, without
from ainn_lib.reproduce import ROOT
from ainn_lib.weights import identity

README = (ROOT / "README.md").read_text()


def measured(name):
    return json.loads((ROOT / "figures" / "data" / f"{name}.json").read_text())


def test_measurements_say_where_they_come_from():
    for file in (ROOT / "figures" / "data").glob("*.json"):
        facts = json.loads(file.read_text())
        assert {"source", "commit", "date", "versions", "hardware"} <= set(facts), file.name


def test_the_tiny_weights_on_kodak(tiny):
    facts = measured("tiny_kodak")
    assert facts["identity"] == identity(tiny) and facts["images"] == 24
    for point in facts["results"]:
        assert len(point["images"]) == 24
        for row in point["images"]:
            assert row["bpp"] == pytest.approx(8 * row["bytes"] / (768 * 512))
        assert point["psnr_rgb"] == pytest.approx(sum(row["psnr_rgb"] for row in point["images"]) / 24)
    assert max(p["psnr_rgb"] for p in facts["results"] if p["bpp"] <= 0.75) >= 31.5


def test_the_committed_benchmark_holds_what_is_claimed():
    for result in measured("benchmark")["results"]:
        assert result["ratios"]["entropy_decode"] >= 15 and result["ratios"]["entropy_encode"] >= 8
        if result["preset"] == "paper":
            assert result["ratios"]["decode"] >= 1.6


def test_bfloat16_synthesis_loses_nothing_that_counts(tiny):
    facts = measured("tiny_bf16")
    changes = [row["psnr_bf16"] - row["psnr_float32"] for row in facts["results"]]
    assert facts["identity"] == identity(tiny) and len(changes) == 24
    assert sum(changes) / 24 == pytest.approx(facts["mean_change_db"]) and facts["mean_change_db"] > -0.02


def test_the_readmes_numbers_are_the_measured_ones():
    for point in measured("tiny_kodak")["results"]:
        if point["quality"] in (1, 4, 5, 8):
            assert f"| {point['quality']:g} | {point['bpp']:.3f} | {point['psnr_rgb']:.2f} |" in README
    for result in measured("benchmark")["results"]:
        row = next(line for line in README.splitlines() if line.startswith(f"| {result['preset']} |"))
        numbers = [float(n) for n in re.findall(r"([\d.]+)x", row)]
        expected = [result["ratios"][key] for key in ("entropy_encode", "entropy_decode", "encode", "decode")]
        assert numbers == [pytest.approx(e, abs=0.051) for e in expected]
    assert "TODO" not in README


def test_every_module_of_the_trained_network_does_something(tiny):
    photos = {name: data.photo(name) for name in ("chelsea", "rocket")}
    changes = knockouts(photos, tiny, 5.0)
    assert set(changes) == {"all", *MODULES}
    for module in MODULES:
        assert abs(changes[module]["psnr_rgb"]) >= 0.05, (module, changes[module])


def test_taking_a_module_out_leaves_the_original_alone(tiny):
    before = identity(tiny)
    for module in MODULES:
        assert identity(without(tiny, module)) != before
    assert identity(tiny) == before
    with pytest.raises(AINNError, match="no module"):
        without(tiny, "magic")


def test_evaluating_a_folder(tiny, tmp_path):
    photo = data.photo("chelsea").crop((0, 0, 176, 168))
    photo.save(tmp_path / "one.png")
    facts = json.loads(evaluate(tmp_path, "mine", tiny, "tiny", [3.0], tmp_path / "out" / "r.json").read_text())
    expected = rate_distortion({"one": photo}, tiny, [3.0], progress=False)[0]
    assert facts["results"] == [expected] and facts["dataset"] == "mine"
    with pytest.raises(AINNError, match="no PNG"):
        evaluate(tmp_path / "out", "mine", tiny, "tiny", [3.0], tmp_path / "x.json")
