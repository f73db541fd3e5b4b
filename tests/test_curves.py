"""Curves, BD-rate, Figure 5 and the table."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ainn_lib import AINNError
from ainn_lib.curves import (
    LOOK,
    OURS,
    BDRate,
    Curve,
    bd_rate,
    bd_table,
    better_jpeg,
    better_of,
    gains,
    measured,
    per_image,
    published,
    rd_figure,
    save,
    spent,
)
from ainn_lib.reproduce import ROOT
from ainn_lib.widgets import at_curves

RATES = (0.1, 0.2, 0.4, 0.8, 1.6)
BASE = Curve("jpeg", "kodak", "measured here", "test", 24, True, RATES, (26.0, 29.0, 32.0, 35.0, 38.0), (None,) * 5)


def scaled(factor, **changes):
    return dataclasses.replace(BASE, bpp=tuple(factor * r for r in RATES), **changes)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 2))
def test_bd_rate_of_a_scaled_curve_is_the_scale(factor):
    result = bd_rate(BASE, scaled(factor))
    assert result.percent == pytest.approx(100 * (factor - 1), abs=1e-6)
    assert (result.low, result.high) == (26.0, 38.0)


def test_no_overlap_is_said_and_not_extrapolated():
    result = bd_rate(BASE, dataclasses.replace(BASE, psnr=(40.0, 41.0, 42.0, 43.0, 44.0)))
    assert result.percent is None and str(result) == "no overlap"
    assert str(BDRate(-12.345, 27.0, 36.04)) == "-12.3 % (27.0 to 36.0 dB)"


def test_a_subset_and_a_whole_set_share_no_bd_rate():
    with pytest.raises(AINNError, match="not measured on the same images"):
        bd_rate(BASE, dataclasses.replace(BASE, images=10, complete=False))


def test_three_points_are_too_few():
    with pytest.raises(AINNError, match="four points"):
        bd_rate(BASE, dataclasses.replace(BASE, bpp=RATES[:3], psnr=BASE.psnr[:3], ms_ssim=BASE.ms_ssim[:3]))


def test_the_better_of_two_is_never_below_either():
    other = dataclasses.replace(BASE, psnr=(24.0, 28.0, 32.5, 36.0, 40.0))
    best = better_of(BASE, other, "best")
    for curve in (BASE, other):
        rates, quality = curve.points()
        assert (np.interp(np.log(rates), np.log(best.bpp), best.psnr) >= quality - 1e-9).all()
    assert bd_rate(best, BASE).percent > 0 and bd_rate(best, other).percent > 0


def test_the_better_jpeg_is_an_anchor_and_gains_are_read_against_it():
    whole = dataclasses.replace(BASE, codec="jpeg444", psnr=(24.0, 28.0, 32.5, 36.0, 40.0))
    webp = scaled(0.5, codec="webp")
    part = dataclasses.replace(webp, dataset="tecnick")
    assert list(better_jpeg([BASE, whole, webp, part])) == ["kodak"]
    best = better_jpeg([BASE, whole])["kodak"]
    assert best.psnr == (26.0, 29.0, 32.5, 36.0, 40.0)
    table = bd_table([BASE, whole, webp, part], "jpegbest")
    assert list(table.columns) == ["Kodak"] and list(table.index.get_level_values(0)) == ["JPEG", "JPEG 4:4:4", "WebP"]
    assert table.loc[("WebP", "measured here"), "Kodak"] == str(bd_rate(best, webp))
    above = gains(best, dataclasses.replace(BASE, bpp=(0.05, 0.2, 0.4, 0.8, 1.7), psnr=(26.5, 30.0, 33.0, 35.0, 50.0)))
    assert above[:4] == pytest.approx([0.5, 1.0, 0.5, -1.0]) and np.isnan(above[4])
    with pytest.raises(AINNError, match="no curve of 'jpegbest'"):
        bd_table([BASE, webp], "jpegbest")


def test_published_points_name_their_source():
    curves = published()
    assert len(curves) > 60 and all(c.source and c.origin == "published as numbers" for c in curves)
    assert not [c for c in curves if c.codec == "ainn-authors"]  # the slot is empty
    assert {"kodak", "clic2020-mobile-valid", "clic2020-professional-valid", "tecnick"} == {c.dataset for c in curves}


def test_a_filled_slot_is_read_and_a_bad_row_is_named(tmp_path):
    header = "codec,dataset,bpp,psnr_db,ms_ssim,source\n"
    (tmp_path / "authors.csv").write_text(header + "ainn-authors,kodak,0.2,31,,them\nainn-authors,kodak,0.1,30,,them\n")
    [curve] = published(tmp_path)
    assert curve.bpp == (0.1, 0.2) and curve.title == "A-INN (authors)"
    (tmp_path / "authors.csv").write_text(header + "ainn-authors,kodak,much,31,,them\n")
    with pytest.raises(AINNError, match="authors.csv, line 2"):
        published(tmp_path)
    (tmp_path / "authors.csv").write_text(header + "ainn-authors,kodak,0.3,31,,\n")
    with pytest.raises(AINNError, match="source must be given"):
        published(tmp_path)


def test_networks_are_compared_in_the_metric_they_were_trained_for():
    curves = [*measured(), *published()]
    for metric in ("psnr", "ms-ssim"):
        figure = rd_figure(curves, metric)
        for ax, title in zip(figure.axes[4:], ("Kodak", "CLIC Mobile", "CLIC Professional", "Tecnick"), strict=True):
            assert title in ax.get_title()
        plt.close(figure)
    table = bd_table(curves, "jpeg2000")
    factorized = next(c for c in curves if c.codec == "compressai-bmshj2018-factorized_mse_cuda" and c.dataset == "kodak")
    anchor = next(c for c in curves if c.codec == "jpeg2000" and c.dataset == "kodak" and c.origin == "measured here")
    assert table.loc[("Factorized (2018)", "published as numbers"), "Kodak"] == str(bd_rate(anchor, factorized))


def test_the_eight_panels_and_their_lines():
    figure = rd_figure([*measured(), *published()])
    letters = [ax.get_title()[:3] for ax in figure.axes]
    assert letters == [f"({c})" for c in "abcdefgh"]
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert any("nothing" in text for text in texts)
    kodak = figure.axes[0]
    styles = {line.get_label(): line.get_linestyle() for line in kodak.get_lines()}
    assert styles["WebP"] in ("-", "--") and "--" in styles.values() and "-" in styles.values()
    plt.close(figure)


def test_a_subset_has_its_own_line():
    part = dataclasses.replace(BASE, dataset="clic2020-professional-valid", images=10, complete=False)
    figure = rd_figure([part, dataclasses.replace(part, images=41, complete=True, origin="published as numbers")])
    assert {line.get_linestyle() for line in figure.axes[2].get_lines()} == {":", "--"}
    assert "10 of 41" in figure.axes[2].texts[0].get_text()
    plt.close(figure)


def test_the_caption_says_whether_the_authors_curve_is_there():
    theirs = scaled(0.5, codec="ainn-authors", origin="published as numbers", source="them")
    for curves, words in (([BASE], "its slot, data/published/authors.csv, is empty"),
                          ([BASE, theirs], "see data/published/authors.csv")):
        figure = rd_figure(curves)
        assert words in figure.get_supxlabel()
        drawn = [[line.get_label() for line in figure.axes[i].get_lines()] for i in (0, 4)]  # both panels of Kodak
        assert all(("A-INN (authors)" in labels) == (len(curves) == 2) for labels in drawn)
        plt.close(figure)


def test_every_measured_codec_has_a_colour_of_its_own():
    for dataset in {c.dataset for c in measured()}:
        colours = [LOOK[c.codec][1] for c in measured() if c.dataset == dataset]
        assert len(colours) == len(set(colours))
    assert set(OURS) <= set(LOOK)


def test_an_anchor_that_is_not_there():
    with pytest.raises(AINNError, match="no curve of 'gif'"):
        bd_table([BASE], "gif")


def test_tables_and_figures_are_saved(tmp_path):
    table = bd_table([BASE, scaled(0.5, codec="webp"), scaled(2, codec="jpeg2000")], "jpeg")
    csv_file, tex = save(table, "t", tmp_path, "what it is")
    assert "WebP,measured here,-50.0 %" in csv_file.read_text()
    assert r"-50.0 \%" in tex.read_text() and tex.read_text().count(r"\\") == 3
    figure = rd_figure([BASE])
    assert [p.suffix for p in save(figure, "f", tmp_path)] == [".png", ".pdf"]
    plt.close(figure)


@pytest.mark.parametrize("anchor, metric, name", [("jpegbest", "psnr", "jpeg"), ("jpegbest", "ms-ssim", "jpeg_ms_ssim"),
                                                  ("jpeg2000", "psnr", "jpeg2000")])
def test_the_committed_table_is_the_one_that_the_data_give(tmp_path, anchor, metric, name):
    [again, _] = save(bd_table([*measured(), *published()], anchor, metric), "t", tmp_path)
    assert again.read_text() == (ROOT / "figures" / f"bd_rate_{name}.csv").read_text()


def test_a_codec_that_spends_by_another_rule_is_neither_drawn_nor_ranked():
    apart = scaled(0.5, codec="jpeg2000rate")
    figure = rd_figure([BASE, apart])
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["JPEG"]
    plt.close(figure)
    table = bd_table([BASE, apart, scaled(2, codec="webp")], "jpeg")
    assert [title for title, _ in table.index] == ["WebP"]


def test_the_legend_is_dashed_where_nothing_was_measured():
    theirs = [scaled(0.5, codec=name, origin="published as numbers") for name in ("jpeg", "vtm")]
    figure = rd_figure([BASE, *theirs])
    [legend] = figure.subfigs[0].legends
    styles = {text.get_text(): line.is_dashed() for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert styles == {"JPEG": False, "VTM": True}
    plt.close(figure)


# -- images one by one -------------------------------------------------------------------------------------------------

def test_the_mean_over_images_is_the_curve():
    for curve in [c for c in measured() if c.dataset == "kodak"]:
        bpp, psnr = per_image(curve.codec)
        np.testing.assert_allclose(bpp.mean(0), curve.bpp, atol=2e-6)  # six decimals in the file
        np.testing.assert_allclose(psnr.mean(0), curve.psnr, atol=2e-6)


def test_a_rate_for_all_and_a_rate_for_each():
    curve = next(c for c in measured() if c.codec == "jpeg" and c.dataset == "kodak")
    bpp, psnr = spent("jpeg", curve.bpp[3])
    assert bpp.mean() == pytest.approx(curve.bpp[3], abs=1e-5) and psnr.mean() == pytest.approx(curve.psnr[3], abs=1e-5)
    bpp, psnr = spent("jpeg", 0.5, each=True)
    assert bpp == pytest.approx(0.5, rel=0.05) and psnr.std() > 2  # between two settings the rate is not quite geometric
    with pytest.raises(AINNError, match="do not bring every image to 0.01 bpp"):
        spent("jpeg", 0.01, each=True)
    with pytest.raises(AINNError, match="'gif' was not measured on kodak"):
        per_image("gif")


# -- the explorer ------------------------------------------------------------------------------------------------------

CURVES = [*measured(), *published()]


@pytest.mark.parametrize("dataset", sorted({c.dataset for c in CURVES}))
@pytest.mark.parametrize("metric", ("psnr", "ms-ssim"))
def test_the_explorer_over_all_data_sets_and_codecs(dataset, metric):
    for axis in ("linear", "log"):
        figure, numbers = at_curves(CURVES, dataset, metric, tuple(LOOK), axis)
        here = [c for c in CURVES if c.dataset == dataset and c.codec in LOOK and len(c.points(metric)[0])]
        [ax] = figure.axes
        assert len(ax.get_lines()) == len(numbers.rows) == len(here) and ax.get_xscale() == axis
        assert len(numbers.absent) == len(LOOK) - len({c.codec for c in here})
        assert numbers.rows[0][2] == "-" and numbers.anchor == numbers.rows[0][0] in str(numbers)
        plt.close(figure)


def test_the_explorers_numbers_are_those_of_bd_rate():
    part = scaled(0.5, codec="webp", images=10, complete=False)
    chosen = ("jpeg", "avif", "webp", "vtm")
    figure, numbers = at_curves([scaled(0.5, codec="avif"), BASE, part], "kodak", "psnr", chosen, "log")
    plt.close(figure)
    assert numbers.rows[0] == ("JPEG", "measured here", "-") and numbers.rows[1][2] == str(bd_rate(BASE, scaled(0.5)))
    assert numbers.rows[2][1] == "measured here, 10 images of the set"
    assert "not measured on the same images" in numbers.rows[2][2]
    assert numbers.absent == ("VTM",)


def test_the_explorer_with_nothing_chosen_says_so():
    figure, numbers = at_curves(CURVES, "kodak", "psnr", (), "linear")
    plt.close(figure)
    assert numbers.rows == () and "choose a codec" in str(numbers)
