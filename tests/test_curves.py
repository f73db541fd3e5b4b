"""Curves, BD-rate, Figure 5 and the table."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ainn_lib import AINNError
from ainn_lib.measure.bd_rate import BDRate, bd_rate, bd_table
from ainn_lib.measure.curves import Curve, better_jpeg, gains, measured, per_image, published
from ainn_lib.measure.figures import rd_figure, save
from ainn_lib.paths import FIGURES
from ainn_lib.style import LOOK, OURS

RATES = (0.1, 0.2, 0.4, 0.8, 1.6)
PSNR = (26.0, 29.0, 32.0, 35.0, 38.0)
BASE = Curve("jpeg", "kodak", "measured here", "test", 24, True, RATES, PSNR, (None,) * 5)


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


@pytest.mark.parametrize("shift, text", [(11.9, "no BD-rate: overlap of 0.1 dB"),
                                         (11.1, "no BD-rate: overlap of 0.9 dB")])
def test_a_small_overlap_gives_no_number(shift, text):
    above = dataclasses.replace(BASE, psnr=tuple(value + shift for value in PSNR))
    result = bd_rate(BASE, above)
    assert result.percent is None and str(result) == text
    assert bd_table([BASE, dataclasses.replace(above, codec="webp")], "jpeg").iat[0, 0] == text


def test_an_overlap_of_one_decibel_is_enough():
    assert bd_rate(BASE, dataclasses.replace(BASE, psnr=tuple(v + 11 for v in PSNR))).percent < 0


def test_a_subset_and_a_whole_set_share_no_bd_rate():
    part = dataclasses.replace(BASE, images=10, complete=False)
    assert str(bd_rate(BASE, part)) == "not measured on the same images"


@pytest.mark.parametrize("points", [0, 1, 3])
def test_too_few_points_are_said_in_the_tables_cell(points):
    few = scaled(0.5, codec="webp").part(slice(points))
    assert bd_rate(BASE, few).percent is None and bd_rate(few, BASE).percent is None
    table = bd_table([BASE, few, scaled(2, codec="avif")], "jpeg")
    assert table.loc[("AVIF 4:4:4", "measured here"), "Kodak"].startswith("+100.0 %")
    if points:  # a curve without points is no row
        text = f"no BD-rate: a curve of {points} points"
        assert table.loc[("WebP", "measured here"), "Kodak"] == text


def test_points_that_do_not_rise_are_not_counted():
    flat = dataclasses.replace(BASE, psnr=(26.0, 29.0, 32.0, 31.0, 32.0))
    assert str(bd_rate(BASE, flat)) == "no BD-rate: a curve of 3 points"


def test_equal_rates_with_a_missing_psnr_are_read(tmp_path):
    results = {"bpp": [0.4, 0.2, 0.2], "psnr-rgb": [32.0, 31.0, None], "ms-ssim-rgb": [None] * 3}
    facts = {"codec": "webp", "dataset": "mine", "source": "measured here", "images": 2}
    (tmp_path / "r.json").write_text(json.dumps({**facts, "results": results}))
    [curve] = measured(tmp_path)
    assert curve.bpp == (0.2, 0.2, 0.4) and curve.points()[1].tolist() == [31.0, 32.0]
    assert len(curve.points("ms-ssim")[0]) == 0
    rows = "webp,kodak,0.2,31,,them\nwebp,kodak,0.2,,0.9,them\n"
    (tmp_path / "p.csv").write_text(f"codec,dataset,bpp,psnr_db,ms_ssim,source\n{rows}")
    [curve] = published(tmp_path)
    assert [len(curve.points(metric)[0]) for metric in ("psnr", "ms-ssim")] == [1, 1]


def test_data_sets_without_ms_ssim_have_no_better_jpeg():
    whole = dataclasses.replace(BASE, codec="jpeg444")
    assert better_jpeg([BASE, whole], "ms-ssim") == {}


def test_the_better_of_two_is_never_below_either():
    other = dataclasses.replace(BASE, codec="jpeg444", psnr=(24.0, 28.0, 32.5, 36.0, 40.0))
    best = better_jpeg([BASE, other])["kodak"]
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
    assert list(table.columns) == ["Kodak"]
    assert list(table.index.get_level_values(0)) == ["JPEG", "JPEG 4:4:4", "WebP"]
    assert table.loc[("WebP", "measured here"), "Kodak"] == str(bd_rate(best, webp))
    other = dataclasses.replace(BASE, bpp=(0.05, 0.2, 0.4, 0.8, 1.7),
                                psnr=(26.5, 30.0, 33.0, 35.0, 50.0))
    above = gains(best, other)
    assert above[:4] == pytest.approx([0.5, 1.0, 0.5, -1.0]) and np.isnan(above[4])
    with pytest.raises(AINNError, match="no curve of 'jpegbest'"):
        bd_table([BASE, webp], "jpegbest")


def test_published_points_name_their_source():
    curves = published()
    assert len(curves) > 60 and all(c.source and c.origin == "published as numbers" for c in curves)
    assert not [c for c in curves if c.codec == "ainn-authors"]  # the slot is empty
    assert {c.dataset for c in curves} == {"kodak", "clic2020-mobile-valid",
                                           "clic2020-professional-valid", "tecnick"}


HEADER = "codec,dataset,bpp,psnr_db,ms_ssim,source\n"


def test_a_filled_slot_is_read(tmp_path):
    rows = "ainn-authors,kodak,0.2,31,,them\nainn-authors,kodak,0.1,30,,them\n"
    (tmp_path / "authors.csv").write_text(HEADER + rows)
    [curve] = published(tmp_path)
    assert curve.bpp == (0.1, 0.2) and curve.title == "A-INN (authors)"


def test_a_slot_that_excel_saved_is_read(tmp_path):
    rows = "ainn-authors,kodak,0.2,31,,them\n"
    (tmp_path / "authors.csv").write_text(HEADER + rows, encoding="utf-8-sig")
    assert [curve.bpp for curve in published(tmp_path)] == [(0.2,)]
    rows = ";;;;;\r\n".join(["", "ainn-authors;kodak;0,2;31,25;;them\r\n", ""])
    text = HEADER.replace(",", ";").replace("\n", "\r\n")
    for encoding in ("utf-8-sig", "utf-16", "cp1252"):
        for start in ("", "sep=;\r\n"):
            (tmp_path / "authors.csv").write_bytes((start + text + rows).encode(encoding))
            [curve] = published(tmp_path)
            assert (curve.bpp, curve.psnr) == ((0.2,), (31.25,)) and curve.source == "them"


@pytest.mark.parametrize("text, words", [
    (HEADER + "ainn-authors,kodak,-0.2,31,,them\n", "line 2, column bpp: '-0.2' is no bpp above 0"),
    (HEADER + "ainn-authors,kodak,much,31,,them\n", "'much'"),
    (HEADER + "ainn-authors,kodak,0.3,31,,them\nainn-authors,kodak,0.3,31,,\n", "line 3: .*source"),
    (HEADER + "ainn-authors,kodak,,31,,them\n", "line 2: .*bpp"),
    (HEADER + "\"two\nlines\",kodak,0.3,31,,them\na,kodak,0.3,nan,,them\n",
     "line 4, column psnr_db: 'nan'"),
    (HEADER + "a,kodak,0.3,-31,,them\n", "line 2, column psnr_db: '-31' is no PSNR"),
    (HEADER + "a,kodak,inf,31,,them\n", "line 2, column bpp: 'inf'"),
    (HEADER + "a,kodak,0.3,,17.2,them\n", "line 2, column ms_ssim: '17.2' is no MS-SSIM from 0"),
    (HEADER + "a,kodak,0,3,31,,them\n", "line 2: 7 values, but 6 columns"),
    ("codec,bpp\njpeg,1\n", "no column dataset, source"), ("", "cannot be read")])
def test_a_bad_row_is_named(tmp_path, text, words):
    (tmp_path / "authors.csv").write_text(text)
    with pytest.raises(AINNError, match=f"authors.csv.*{words}"):
        published(tmp_path)


def test_networks_are_compared_in_the_metric_they_were_trained_for():
    curves = [*measured(), *published()]
    for metric in ("psnr", "ms-ssim"):
        figure = rd_figure(curves, metric)
        titles = [ax.get_title()[4:] for ax in figure.axes[4:]]
        assert titles == ["Kodak", "CLIC Mobile", "CLIC Professional", "Tecnick"]
        plt.close(figure)
    table = bd_table(curves, "jpeg2000")
    on_kodak = {(c.codec, c.origin): c for c in curves if c.dataset == "kodak"}
    factorized = on_kodak["compressai-bmshj2018-factorized_mse_cuda", "published as numbers"]
    expected = str(bd_rate(on_kodak["jpeg2000", "measured here"], factorized))
    assert table.loc[("Factorized (2018)", "published as numbers"), "Kodak"] == expected


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
    part = dataclasses.replace(BASE, dataset="clic2020-professional-valid", images=10,
                               complete=False)
    whole = dataclasses.replace(part, images=41, complete=True, origin="published as numbers")
    figure = rd_figure([part, whole])
    assert {line.get_linestyle() for line in figure.axes[2].get_lines()} == {":", "--"}
    assert "10 of 41" in figure.axes[2].texts[0].get_text()
    plt.close(figure)


def test_the_caption_says_whether_the_authors_curve_is_there():
    theirs = scaled(0.5, codec="ainn-authors", origin="published as numbers", source="them")
    for curves, words in (([BASE], "its slot, data/published/authors.csv, is empty"),
                          ([BASE, theirs], "see data/published/authors.csv")):
        figure = rd_figure(curves)
        assert words in figure.get_supxlabel()
        for ax in (figure.axes[0], figure.axes[4]):  # both panels of Kodak
            labels = [line.get_label() for line in ax.get_lines()]
            assert ("A-INN (authors)" in labels) == (len(curves) == 2)
        plt.close(figure)


def test_every_measured_codec_has_a_colour_of_its_own():
    for dataset in {c.dataset for c in measured()}:
        colours = [LOOK[c.codec][1] for c in measured() if c.dataset == dataset]
        assert len(colours) == len(set(colours))
    assert set(OURS) <= set(LOOK)


def test_an_anchor_that_is_not_there_or_alone():
    with pytest.raises(AINNError, match="no curve of 'gif'"):
        bd_table([BASE], "gif")
    assert bd_table([BASE], "jpeg").empty


def test_tables_and_figures_are_saved(tmp_path):
    table = bd_table([BASE, scaled(0.5, codec="webp"), scaled(2, codec="jpeg2000")], "jpeg")
    csv_file, tex = save(table, "t", tmp_path, "what it is")
    assert "WebP,measured here,-50.0 %" in csv_file.read_text()
    assert r"-50.0 \%" in tex.read_text() and tex.read_text().count(r"\\") == 3
    figure = rd_figure([BASE])
    assert [p.suffix for p in save(figure, "f", tmp_path)] == [".png", ".pdf"]
    plt.close(figure)


@pytest.mark.parametrize("anchor, metric, name", [
    ("jpegbest", "psnr", "jpeg"), ("jpegbest", "ms-ssim", "jpeg_ms_ssim"),
    ("jpeg2000", "psnr", "jpeg2000")])
def test_the_committed_table_is_the_one_that_the_data_give(tmp_path, anchor, metric, name):
    [again, _] = save(bd_table([*measured(), *published()], anchor, metric), "t", tmp_path)
    assert again.read_text() == (FIGURES / f"bd_rate_{name}.csv").read_text()


def test_a_codec_that_spends_by_another_rule_is_neither_drawn_nor_ranked():
    apart = scaled(0.5, codec="jpeg2000rate")
    figure = rd_figure([BASE, apart])
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["JPEG"]
    plt.close(figure)
    table = bd_table([BASE, apart, scaled(2, codec="webp")], "jpeg")
    assert [title for title, _ in table.index] == ["WebP"]


def test_the_legend_is_dashed_where_nothing_was_measured():
    elsewhere = {"origin": "published as numbers"}
    theirs = [scaled(0.5, codec=name, **elsewhere) for name in ("jpeg", "vtm")]
    figure = rd_figure([BASE, *theirs])
    [legend] = figure.subfigs[0].legends
    labels = [text.get_text() for text in legend.get_texts()]
    dashed = [line.is_dashed() for line in legend.get_lines()]
    assert labels == ["JPEG", "VTM"] and dashed == [False, True]
    plt.close(figure)


# -- images one by one ----------------------------------------------------------------------------


def test_the_mean_over_images_is_the_curve():
    for curve in [c for c in measured() if c.dataset == "kodak"]:
        bpp, psnr = per_image(curve.codec)
        np.testing.assert_allclose(bpp.mean(0), curve.bpp, atol=2e-6)  # six decimals in the file
        np.testing.assert_allclose(psnr.mean(0), curve.psnr, atol=2e-6)


def test_a_codec_that_was_not_measured_is_named():
    with pytest.raises(AINNError, match="'gif' was not measured on kodak"):
        per_image("gif")


# -- the explorer ---------------------------------------------------------------------------------

CURVES = [*measured(), *published()]


@pytest.fixture(scope="module")
def at_curves():
    from ainn_lib.ui.explorers import at_curves

    return at_curves


@pytest.mark.parametrize("dataset", sorted({c.dataset for c in CURVES}))
@pytest.mark.parametrize("metric", ("psnr", "ms-ssim"))
def test_the_explorer_over_all_data_sets_and_codecs(at_curves, dataset, metric):
    here = [c for c in CURVES if c.dataset == dataset and c.codec in LOOK]
    here = [c for c in here if len(c.points(metric)[0])]
    for axis in ("linear", "log"):
        figure, numbers = at_curves(CURVES, dataset, metric, tuple(LOOK), axis)
        [ax] = figure.axes
        assert len(ax.get_lines()) == len(numbers.rows) == len(here) and ax.get_xscale() == axis
        titles = {title for title, _ in LOOK.values()}
        assert set(numbers.absent) == titles - {LOOK[c.codec][0] for c in here}
        assert numbers.rows[0][2] == "-" and numbers.anchor == numbers.rows[0][0] in str(numbers)
        plt.close(figure)


def test_the_explorers_numbers_are_those_of_bd_rate(at_curves):
    part = scaled(0.5, codec="webp", images=10, complete=False)
    avif, chosen = scaled(0.5, codec="avif"), ("jpeg", "avif", "webp", "vtm")
    figure, numbers = at_curves([avif, BASE, part], "kodak", "psnr", chosen, "log")
    plt.close(figure)
    assert numbers.rows[0] == ("JPEG", "measured here", "-")
    assert numbers.rows[1][2] == str(bd_rate(BASE, scaled(0.5)))
    assert numbers.rows[2][1] == "measured here, 10 images of the set"
    assert "not measured on the same images" in numbers.rows[2][2]
    assert numbers.absent == ("VTM",)


def test_the_explorer_with_nothing_chosen_says_so(at_curves):
    figure, numbers = at_curves(CURVES, "kodak", "psnr", (), "linear")
    plt.close(figure)
    assert numbers.rows == () and "choose a codec" in str(numbers)
