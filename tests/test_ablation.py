import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ainn_lib import AINN, AINNError, ablation, data
from ainn_lib.ablation import POINTS, PRESET, TITLES, VARIANTS, Row
from ainn_lib.linear import start_as_linear_codec

PHOTO = torch.from_numpy(np.asarray(data.photo("coffee")).copy()).permute(2, 0, 1)


def row(variant: str, seed: int, factor: float = 1.0) -> Row:
    bpp = tuple(factor * rate for rate in (0.2, 0.4, 0.6, 0.9, 1.2))
    return Row(variant, seed, "kodak", 24, 1000, 900, 50.0, 10, 1.0, bpp, tuple(30 + 4 * math.log2(rate / factor) for rate in bpp))


def test_bd_rate_verdicts_and_table():
    rows = [row("plain", 0), row("plain", 1, 1.01), row("all", 0, 0.9), row("all", 1, 0.91), row("cfrm", 0, 1.005), row("cfrm", 1, 0.99)]
    rates = ablation.against(rows, "plain")
    assert rates["all"] == pytest.approx([100 * (0.9 / 1.005 - 1), 100 * (0.91 / 1.005 - 1)], abs=0.05)
    table = ablation.ablation_table(rows)
    assert table.iloc[:, -1].tolist() == ["anchor", "no difference measured", "better"]
    assert table.loc[TITLES["all"], "BD-rate, 10 steps"] == "-10.0 % (-10.4 to -9.5)"
    assert ablation.ablation_table(rows, anchor="all").iloc[0, -1] == "worse"
    assert ablation.ablation_table([*rows, row("fdsm", 0)]).loc[TITLES["fdsm"]].iloc[-1] == "one seed only"
    apart = replace(row("mbt2018-mean", 0), psnr=(10.0, 11.0, 12.0, 13.0, 14.0))
    for runs in ([apart], [apart, replace(apart, seed=1)]):
        assert ablation.ablation_table([*rows, *runs]).iloc[-1, -1] == "no common range of PSNR"
    with pytest.raises(AINNError, match="no run of 'fdsm'"):
        ablation.mean_curve(rows, "fdsm")


def test_two_lengths_side_by_side():
    short, long = ([replace(row(name, seed, factor), steps=steps) for name, factor in pairs for seed in (0, 1)]
                   for steps, pairs in ((800, (("plain", 1), ("fdsm", 0.95), ("all", 0.9))), (8000, (("plain", 1), ("all", 0.8)))))
    table = ablation.ablation_table(long, short)
    assert list(table.index) == [TITLES[n] for n in ("plain", "fdsm", "all")]
    assert list(table.columns[3:5]) == ["BD-rate, 800 steps", "BD-rate, 8,000 steps"]
    assert table.loc[TITLES["fdsm"]].tolist()[3:] == ["-5.0 % (-5.0 to -5.0)", "-", "-"]
    assert table.loc[TITLES["all"]].tolist()[4:] == ["-20.0 % (-20.0 to -20.0)", "better"]
    (ax,) = ablation.ablation_figure(long, short).axes
    assert [np.mean(line.get_xdata()) for line in ax.lines] == pytest.approx([0, 0, -20, -10], abs=0.1)


def test_decibels_at_equal_rate():
    anchor = row("all", 0)
    test = replace(anchor, bpp=(0.1, 0.4, 0.9), psnr=(20.0, anchor.psnr[1] + 0.5, anchor.psnr[3] - 0.25))
    assert ablation.above(anchor, test) == pytest.approx((0.5, -0.25))  # at 0.1 the anchor has no point: left out
    price = ablation.prices([anchor, replace(test, variant="fixed-rate"), replace(test, variant="dead-leaves")])
    assert [p.decibels for p in price] == [pytest.approx((0.5, -0.25))] * 2 and "+0.12 dB at equal rate" in price[0].answer
    shorter = [replace(r, steps=5) for r in (row("all", 0, 1.1), row("dead-leaves", 0, 1.1))]
    both = ablation.prices(shorter, [anchor, replace(test, variant="dead-leaves")])
    assert [(p.steps, p.decibels) for p in both] == [(5, pytest.approx((0,) * 5)), (10, pytest.approx((0.5, -0.25)))]


def test_all_variants_start_as_one_codec():
    x = PHOTO[None, :, :64, :96].float() / 255
    views = {}
    for name, (_, changes) in VARIANTS.items():
        model = start_as_linear_codec(AINN.from_preset(PRESET, **changes), [PHOTO]).eval()
        with torch.no_grad():
            views[name] = model.g_s(model.g_a(x))
        torch.testing.assert_close(views[name], views["plain"], atol=2e-5, rtol=0)


def test_the_peers_are_equal_in_what_their_names_say():
    def cost(name):
        model = AINN.from_preset(PRESET, **VARIANTS[name][1])
        return ablation.trained_parameters(model), ablation.transforms_kmac(model)

    whole = cost("all")
    assert cost("peer-macs")[1] == pytest.approx(whole[1]) and cost("peer-macs")[0] > 1.1 * whole[0]
    assert cost("peer-parameters")[0] == pytest.approx(whole[0], rel=0.01)


@pytest.mark.slow
def test_a_run_is_measured_and_not_repeated(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        data.photo("astronaut").rotate(90 * i).crop((0, 0, 448, 448)).resize((448 - i, 448)).save(photos / f"{i}.png")
    image = tmp_path / "image.png"
    data.photo("chelsea").crop((100, 40, 196, 104)).save(image)
    arguments = (0, photos, {"image.png": image}, "mine", 2, tmp_path / "runs")
    done = ablation.run("plain", *arguments)
    assert len(done.bpp) == len(done.psnr) == len(POINTS) and list(done.bpp) == sorted(done.bpp) and done.psnr[-1] > done.psnr[0]
    (tmp_path / "runs" / "plain-0" / "checkpoint.pt").unlink()
    assert ablation.run("plain", *arguments) == done and not (tmp_path / "runs" / "plain-0" / "checkpoint.pt").exists()
    ablation.collect(tmp_path / "runs", tmp_path / "ablation.json")
    assert json.loads((tmp_path / "ablation.json").read_text())["training photos"] == "photos"
    (kept,) = ablation.read_rows(tmp_path / "ablation.json")
    assert kept.bpp == pytest.approx(done.bpp, abs=1e-5) and kept.psnr == pytest.approx(done.psnr, abs=1e-5)
    with pytest.raises(AINNError, match="holds a run of 2 steps"):
        ablation.run("plain", *arguments[:4], 3, arguments[5])
    with pytest.raises(AINNError, match="no finished runs"):
        ablation.collect(tmp_path, tmp_path / "none.json")
    with pytest.raises(AINNError, match="steps on photos, measured on mine"):
        ablation.run("plain", 0, tmp_path / "other", *arguments[2:])
    with pytest.raises(AINNError, match="run it first"):
        ablation.run("mbt2018-mean", *arguments)
    with pytest.raises(AINNError, match="no variant 'magic'"):
        ablation.run("magic", *arguments)


def test_the_hyperpriors_files_come_back(tmp_path):
    torch.manual_seed(0)
    network = ablation.MeanScaleHyperprior(64, 96).eval()
    network.update(force=True)
    image = Image.fromarray(np.asarray(data.photo("coffee"))[:50, :70])
    file = ablation._write(network, image, 2.75)
    assert ablation._read({2.75: network}, file).size == image.size
