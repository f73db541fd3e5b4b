import functools
import importlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ainn_lib import AINN, AINNError
from ainn_lib.measure import datasets
from ainn_lib.paths import ROOT
from ainn_lib.studies import ablation
from ainn_lib.studies.ablation import PRESET, TITLES, VARIANTS, Row
from ainn_lib.studies.cost import kmac
from ainn_lib.training.linear_start import start_as_linear_codec

MASKED = 13 * 192 * 64  # taps that the context model stored when the runs were made, and not now
PHOTO = torch.from_numpy(np.asarray(datasets.photo("coffee")).copy()).permute(2, 0, 1)


def row(variant: str, seed: int, factor: float = 1.0) -> Row:
    bpp = tuple(factor * rate for rate in (0.2, 0.4, 0.6, 0.9, 1.2))
    psnr = tuple(30 + 4 * math.log2(rate / factor) for rate in bpp)
    return Row(variant, seed, "kodak", 24, 1000, 900, 50.0, 10, 1.0, bpp, psnr)


def test_runs_are_paired_by_seed_and_pooled():
    """Both seeds need 20 % more or less together: no variant scatters, and 1 % is a difference."""
    seeds = {0: 1.0, 1: 1.2}
    rows = [row(name, seed, size * factor) for name, size in
            (("plain", 1), ("all", 0.99), ("cfrm", 1.02)) for seed, factor in seeds.items()]
    found = ablation.against(rows)
    assert found["all"].runs == pytest.approx([-1, -1], abs=0.01) and "plain" not in found
    assert (found["all"].verdict, found["cfrm"].verdict) == ("better", "worse")
    scattered = ablation.against([*rows, row("fdsm", 0, 0.9), row("fdsm", 1, 1.2 * 1.1)])
    # d = (-10, +10) has a squared deviation of 200, the two others none: s = sqrt(200 / 3)
    half = 3.182 * math.sqrt(200 / 3) / math.sqrt(2)
    assert scattered["all"].half == pytest.approx(half, rel=1e-3)
    assert scattered["all"].verdict == scattered["fdsm"].verdict == "no difference measured"


def test_a_false_verdict_is_one_in_twenty():
    """Among networks that do not differ."""
    rng, wrong, count = np.random.default_rng(0), 0, 0
    for _ in range(60):
        rows = [row(name, seed, rng.normal(1, 0.02)) for name in list(TITLES)[:8]
                for seed in (0, 1)]
        found = ablation.against(rows)
        wrong += sum(d.verdict in ("better", "worse") for d in found.values())
        count += len(found)
    assert 0.02 < wrong / count < 0.09


def test_bd_rate_verdicts_and_table():
    rows = [row("plain", 0), row("plain", 1, 1.01), row("all", 0, 0.9), row("all", 1, 0.91),
            row("cfrm", 0, 1.005), row("cfrm", 1, 0.99)]
    table = ablation.ablation_table(rows, rows)
    assert table.iloc[:, -1].tolist() == ["anchor", "no difference measured", "better"]
    assert table.iloc[-1, -2] == "-10.0 % ± 3.8" and table.iloc[0, -2] == "0"
    one = ablation.ablation_table([*rows, row("fdsm", 0)], rows)
    assert one.loc[TITLES["fdsm"]].iloc[-1] == "one seed only"
    assert one.loc[TITLES["fdsm"]].iloc[-2] == "+0.0 %"
    apart = replace(row("mbt2018-mean", 0), psnr=(10.0, 11.0, 12.0, 13.0, 14.0))
    for runs in ([apart], [apart, replace(apart, seed=1)]):
        table = ablation.ablation_table([*rows, *runs], rows)
        assert table.iloc[-1, -1] == "no common range of PSNR" and table.iloc[-1, -2] == "-"


def test_two_lengths_side_by_side():
    def training(steps, factors):
        return [replace(row(name, seed, factor), steps=steps)
                for name, factor in factors.items() for seed in (0, 1)]

    short = training(800, {"plain": 1, "fdsm": 0.95, "all": 0.9})
    long = training(8000, {"plain": 1, "all": 0.8})
    table = ablation.ablation_table(long, short)
    assert list(table.index) == [TITLES[n] for n in ("plain", "fdsm", "all")]
    assert list(table.columns[3:5]) == ["BD-rate, 800 steps", "BD-rate, 8,000 steps"]
    assert table.loc[TITLES["fdsm"]].tolist()[3:] == ["-5.0 % ± 0.0", "-", "-"]
    assert table.loc[TITLES["all"]].tolist()[4:] == ["-20.0 % ± 0.0", "better"]


def test_decibels_at_equal_rate():
    anchor = row("all", 0)
    test = replace(anchor, bpp=(0.1, 0.4, 0.9),
                   psnr=(20.0, anchor.psnr[1] + 0.5, anchor.psnr[3] - 0.25))
    # at 0.1 the anchor has no point: left out
    assert ablation.above(anchor, test) == pytest.approx((0.5, -0.25))
    rows = [anchor, replace(test, variant="fixed-rate"), replace(test, variant="dead-leaves")]
    choices = ablation.choices(rows)
    assert [choice.decibels for choice in choices] == [pytest.approx((0.5, -0.25))] * 2
    assert "+0.12 dB at equal rate" in choices[0].answer
    shorter = [replace(r, steps=5) for r in (row("all", 0, 1.1), row("dead-leaves", 0, 1.1))]
    both = ablation.choices(shorter, [anchor, replace(test, variant="dead-leaves")])
    assert [choice.steps for choice in both] == [5, 10]
    assert both[0].decibels == pytest.approx((0,) * 5)
    assert both[1].decibels == pytest.approx((0.5, -0.25))


@pytest.mark.slow
def test_all_variants_start_as_one_codec():
    x = PHOTO[None, :, :64, :96].float() / 255
    views = {}
    for name, (_, changes) in VARIANTS.items():
        model = start_as_linear_codec(AINN.from_preset(PRESET, **changes), [PHOTO]).eval()
        with torch.no_grad():
            views[name] = model.g_s(model.g_a(x))
        torch.testing.assert_close(views[name], views["plain"], atol=2e-5, rtol=0)


@functools.cache
def cost(name: str) -> tuple[int, float]:
    """Trained parameters, and kMAC per pixel."""
    with torch.device("meta"):
        model = AINN.from_preset(PRESET, **VARIANTS[name][1]).eval()
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        transforms = kmac(lambda x: model.g_s(model.g_a(x)), torch.rand(1, 3, 256, 256), 256**2)
        return trained, transforms


def test_the_untied_baselines_are_equal_in_what_their_names_say():
    parameters, kmac = cost("all")
    assert cost("untied-macs")[1] == pytest.approx(kmac)
    assert cost("untied-macs")[0] > 1.1 * parameters
    assert cost("untied-parameters")[0] == pytest.approx(parameters, rel=0.01)


def test_the_committed_files_hold_known_variants_with_their_sizes():
    for path in (ablation.RESULTS, ablation.SHORT):
        for row in ablation.read_rows(path):
            assert row.variant in TITLES
            if row.variant in VARIANTS and row.seed == 0:
                trained, kmac = cost(row.variant)
                assert kmac == pytest.approx(row.kmac, abs=1e-3)
                assert row.trained - trained == MASKED


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("ablation")


@pytest.fixture
def photos(tmp_path):
    """A folder of three photos to train on, and one with an image to measure."""
    training, measured = tmp_path / "photos", tmp_path / "mine"
    training.mkdir()
    measured.mkdir()
    for i in range(3):
        turned = datasets.photo("astronaut").rotate(90 * i).crop((0, 0, 448, 448))
        turned.resize((448 - i, 448)).save(training / f"{i}.png")
    datasets.photo("chelsea").crop((100, 40, 276, 216)).save(measured / "image.png")
    return training, measured


@pytest.mark.slow
def test_a_run_is_measured_and_not_repeated(tool, tmp_path, photos):
    out, file = tmp_path / "runs", tmp_path / "ablation.json"
    done = tool.run("plain", 0, *photos, 2, out)
    assert len(done["bpp"]) == len(done["psnr"]) == len(tool.POINTS)
    assert done["bpp"] == sorted(done["bpp"]) and done["psnr"][-1] > done["psnr"][0]
    assert (done["dataset"], done["images"]) == ("mine", 1)
    assert 0 < done["trained"] < done["parameters"]
    checkpoint = out / "plain-0" / "checkpoint.pt"
    checkpoint.unlink()
    assert tool.run("plain", 0, *photos, 2, out) == done and not checkpoint.exists()
    tool.main(["collect", "--out", str(out), "--json", str(file)])
    assert json.loads(file.read_text())["training photos"] == "photos"
    assert ablation.read_rows(file) == [Row(**done)]
    longer = out / "all-0" / "row.json"
    longer.parent.mkdir()
    longer.write_text(json.dumps({**done, "variant": "all", "steps": 3}))
    with pytest.raises(AINNError, match="cannot be compared"):
        tool.collect(out, file)


@pytest.mark.slow
def test_the_hyperprior_takes_the_minutes_of_all(tool, tmp_path, photos):
    with pytest.raises(AINNError, match="run it first"):
        tool.run("mbt2018-mean", 0, *photos, 2, tmp_path)
    (tmp_path / "all-0").mkdir()
    (tmp_path / "all-0" / "row.json").write_text(json.dumps({"minutes": 0.01}))
    done = tool.run("mbt2018-mean", 0, *photos, 2, tmp_path)
    assert done["minutes"] == 0.01 and done["parameters"] == done["trained"]
    assert len(done["bpp"]) == 5
