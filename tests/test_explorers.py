"""Explorers over their whole range, their sliders, a user's own photos, and the dashboard."""

import base64
import copy
import datetime
import gc
import io
import itertools
import logging
import weakref
from types import SimpleNamespace

import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ainn_lib import AINNError, codec, load_pretrained, style
from ainn_lib.codec.weights import available
from ainn_lib.measure.datasets import photo
from ainn_lib.measure.metrics import psnr
from ainn_lib.network import coder
from ainn_lib.network.entropy_model import wavefront
from ainn_lib.studies.activations import coded, denoising, frequency_maps
from ainn_lib.ui import dashboard, explorers
from ainn_lib.ui.latency import explorer_latency
from ainn_lib.ui.photos import CORNERS, embedded_crop, own_photo
from ainn_lib.ui.stage import Picture, pictures_of, static_page

CHELSEA = photo("chelsea").crop((100, 40, 196, 104))


# -- explorers over their whole range --------------------------------------------------------------


def test_the_quality_explorer(tiny):
    last = 0
    for quality in np.arange(1, 8.01, 0.5):
        figure, numbers = explorers.at_quality(CHELSEA, tiny, float(quality))
        plt.close(figure)
        file = codec.encode(CHELSEA, tiny, float(quality))
        assert numbers.bytes == len(file) >= last
        assert numbers.psnr == psnr(CHELSEA, codec.decode(file, tiny))
        assert f"{numbers.bpp:.3f}" in str(numbers)
        last = numbers.bytes
    with pytest.raises(AINNError, match="quality"):
        explorers.at_quality(CHELSEA, tiny, 9)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA"])
def test_the_quality_explorer_takes_any_mode_and_size(tiny, mode):
    image = CHELSEA.crop((0, 0, 37, 50)).convert(mode)
    _, numbers = explorers.at_quality(image, tiny, 4)
    assert numbers.bytes == len(codec.encode(image, tiny, 4))


def test_the_bit_map_adds_up(tiny):
    bits = explorers.bit_map(CHELSEA, tiny, 4.0)
    assert bits.shape == (4, 6)
    latent = 8 * codec.info(codec.encode(CHELSEA, tiny, 4.0)).latent_bytes
    assert bits.sum() == pytest.approx(latent, rel=0.02, abs=200)


def test_the_rounding_explorer(tiny):
    trained = explorers.at_rounding(CHELSEA, tiny, 4, 1)[1]
    assert trained.psnr == explorers.at_quality(CHELSEA, tiny, 4)[1].psnr
    assert trained.bytes == codec.info(codec.encode(CHELSEA, tiny, 4)).latent_bytes
    found = [explorers.at_rounding(CHELSEA, tiny, 4, delta)[1] for _, delta in dashboard.ROUNDINGS]
    plt.close("all")
    assert [n.zeros for n in found] == sorted(n.zeros for n in found)
    sizes = [n.bytes for n in found]  # the means move with the step: a few words more may be needed
    assert all(after <= before + 16 for before, after in itertools.pairwise(sizes))
    assert found[-1].psnr < trained.psnr and f"{trained.bpp:.3f}" in str(trained)
    for wrong in (0.1, 9):
        with pytest.raises(AINNError, match="delta"):
            explorers.at_rounding(CHELSEA, tiny, 4, wrong)


def test_the_stream_of_the_rounding_explorer_decodes_with_its_step(tiny, monkeypatch):
    streams, real = [], coder.LatentCoder.encode

    def spy(self, *arguments):
        streams.append(real(self, *arguments))
        return streams[-1]

    monkeypatch.setattr(coder.LatentCoder, "encode", spy)
    numbers = explorers.at_rounding(CHELSEA, tiny, 4, 2)[1]
    _, inverse_gain, bias = tiny.gains(4)
    data = streams[0].data
    y_hat = coder.latent_coder(tiny).decode(data, 4, 6, bias, 2 * inverse_gain)
    picture = Image.fromarray(codec.coding.synthesise(y_hat, tiny, 64, 96))
    assert numbers.bytes == len(data) and numbers.psnr == psnr(CHELSEA, picture)


def test_a_photo_that_exif_turns(tiny):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    CHELSEA.save(buffer, "JPEG", exif=exif, quality=95)
    image = Image.open(buffer)
    upright = ImageOps.exif_transpose(image)
    for explorer, more in ((explorers.at_quality, ()), (explorers.at_rounding, (1,))):
        assert explorer(image, tiny, 4, *more)[1] == explorer(upright, tiny, 4, *more)[1]


def test_the_wavefront_explorer():
    steps = len(list(wavefront(12, 18)))
    done = 0
    for step in range(steps):
        figure, numbers = explorers.at_step(12, 18, step)
        plt.close(figure)
        assert numbers.done == done and numbers.batch >= 1
        done += numbers.batch
    assert done == 12 * 18
    with pytest.raises(AINNError, match="step"):
        explorers.at_step(12, 18, steps)


def test_the_depth_explorer():
    float64 = explorers.round_trip_errors(1.0, torch.float64)
    for clamp in explorers.CLAMPS:
        for depth in (1, 7, explorers.DEEPEST):
            figure, numbers = explorers.at_depth(clamp, depth)
            plt.close(figure)
            assert numbers.float32 == explorers.round_trip_errors(clamp)[depth - 1]
            assert numbers.float32 > numbers.float64 > 0
            assert "inf" not in str(numbers)
    assert float64[0] < 1e-14 < float64[-1]
    assert explorers.round_trip_errors(4.0)[0] < 1e-5
    assert explorers.round_trip_errors(4.0)[-1] == float("inf")
    with pytest.raises(AINNError, match="clamp"):
        explorers.at_depth(0.3, 1)
    with pytest.raises(AINNError, match="depth"):
        explorers.at_depth(1.0, explorers.DEEPEST + 1)


def test_the_delta_explorer():
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for log2 in range(-5, 6):
        numbers = explorers.at_delta(torch.nn.Identity(), x, x, 0.1, 2.0**log2)[1]
        plt.close("all")
        assert numbers.predicted == pytest.approx((0.1 * 2.0**log2) ** 2 / 12)  # J is the identity
        # 768 values: five standard errors of their mean
        assert numbers.measured == pytest.approx(numbers.predicted, rel=0.15)
    with pytest.raises(AINNError, match="delta"):
        explorers.at_delta(torch.nn.Identity(), x, x, 0.1, 0.01)


def test_the_wipe_gives_each_picture_its_size_and_error():
    black = Image.new("RGB", CHELSEA.size)
    pictures, numbers = explorers.at_wipe(CHELSEA, {"black": (black, 768), "same": (CHELSEA, 96)})
    assert [picture.title for picture in pictures] == ["original", "black", "same"]
    assert pictures[1].image.tobytes() == black.tobytes()
    assert numbers.bpp == 1 and numbers.times == 24 and numbers.psnr == psnr(CHELSEA, black)
    assert pictures[1].words == f"768 bytes, 1.000 bpp, {numbers.psnr:.2f} dB"
    assert "24 times smaller" in str(numbers) and "same: **inf dB**" in str(numbers)


def test_a_jpeg_of_our_size_is_no_larger():
    pictures, numbers = explorers.with_jpeg(CHELSEA, CHELSEA, 1500)
    size = int(pictures[2].words.split()[0].replace(",", ""))
    assert 1000 < size <= 1500 and "JPEG of that size" in str(numbers)
    pictures, numbers = explorers.with_jpeg(CHELSEA, CHELSEA, 300)
    assert len(pictures) == 2 and "no JPEG is that small" in str(numbers)


def test_a_file_that_is_shown_is_the_codecs_own(tiny):
    file = explorers.as_file(CHELSEA, tiny, 3.0)
    assert file.data == codec.encode(CHELSEA, tiny, 3.0)
    assert file.decoded.tobytes() == codec.decode(file.data, tiny).tobytes()


@pytest.fixture(scope="module")
def maps(tiny):
    return frequency_maps(tiny, CHELSEA, 4.0)


def test_the_mask_explorer(maps):
    for value in np.linspace(0, 1, 5):
        figure, numbers = explorers.at_mask(maps, float(value))
        plt.close(figure)
        assert numbers.psnr == maps.psnr(float(value)) and f"{numbers.psnr:.2f}" in str(numbers)
        assert numbers.trained == maps.psnr() and numbers.bpp == maps.bpp
    with pytest.raises(AINNError, match="mask"):
        explorers.at_mask(maps, 1.1)


def test_the_frequency_explorer(maps):
    energy, error = [], []
    for cut in np.linspace(0, 0.5, 6):
        figure, numbers = explorers.at_cut(maps, float(cut))
        plt.close(figure)
        energy.append(numbers.energy)
        error.append(numbers.error)
        assert f"{cut:.3f}" in str(numbers)
    assert energy[0] == pytest.approx(1, abs=1e-4) and error[0] <= 1
    assert energy == sorted(energy, reverse=True) and error == sorted(error, reverse=True)
    with pytest.raises(AINNError, match="cut"):
        explorers.at_cut(maps, 0.6)


def test_the_strength_explorer(tiny):
    start = coded(tiny, CHELSEA, 4.0)
    trained = denoising(tiny, start)
    for strengths in ((0, 0, 0), (1, 1, 1), (1, 0.5, 2)):
        figure, numbers = explorers.at_strength(tiny, start, *strengths)
        plt.close(figure)
        result = denoising(tiny, start, strengths=strengths)
        assert numbers.psnr == result.psnr and numbers.trained == trained.psnr
        assert (numbers.psnr == numbers.trained) == (strengths == (1, 1, 1))
        assert numbers.rho == tuple(error.rho for error in result.levels)
        assert r"$\rho_4$" in str(numbers) and numbers.bpp == start.bpp
    with pytest.raises(AINNError, match="strengths"):
        explorers.at_strength(tiny, start, 1, 1, 3)


# -- changed weights: nothing that was kept may be used --------------------------------------------


def changed_in_place(model):
    with torch.no_grad():
        for level in model.levels:
            level.conv1x1.weight.data.mul_(1.02)  # past PyTorch's version counter


def test_the_quality_explorer_sees_changed_weights(tiny):
    model = copy.deepcopy(tiny)
    before = explorers.at_quality(CHELSEA, model, 4)[1]
    changed_in_place(model)
    after = explorers.at_quality(CHELSEA, model, 4)[1]
    assert after != before and after.bytes == len(codec.encode(CHELSEA, model, 4))


def test_the_strength_explorer_sees_changed_weights(tiny):
    model = copy.deepcopy(tiny)
    start = coded(model, CHELSEA, 4.0)
    before = explorers.at_strength(model, start, 1, 1, 1)[1]
    changed_in_place(model)
    after = explorers.at_strength(model, start, 1, 1, 1)[1]
    assert before.trained == before.psnr != after.psnr == after.trained


def test_the_delta_explorer_sees_changed_weights():
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    g = torch.nn.Conv2d(3, 3, 1, bias=False)
    first, before = explorers.at_delta(g, x, x, 0.1, 1.0)
    g.weight.data.mul_(2)
    second, after = explorers.at_delta(g, x, x, 0.1, 1.0)
    assert after.predicted - after.zero == pytest.approx(4 * (before.predicted - before.zero))
    points = [figure.axes[0].get_lines()[1].get_ydata() for figure in (first, second)]
    assert not np.isclose(*points).any()


# -- sliders ---------------------------------------------------------------------------------------


def test_the_function_is_called_with_the_sliders_value():
    seen = []

    def function(x_of):
        seen.append(x_of)
        return plt.figure(figsize=(1, 1)), f"words **{x_of}**"

    slider = ipywidgets.IntSlider(value=2, min=0, max=9)
    explorer = explorers.explore(function, x_of=slider)
    slider.value = 7
    assert seen == [2, 7] and slider.description == "x of" and not plt.get_fignums()
    [frame] = explorer.stage.view["frames"]
    assert frame["words"] == "<p>words <b>7</b></p>" and not explorer.stage.busy
    assert pixels(frame["pictures"][0]["src"]).size == (100, 100)
    assert "children" not in repr(explorer)


def pixels(src: str) -> Image.Image:
    """The image in an address that holds it."""
    return Image.open(io.BytesIO(base64.b64decode(src.partition("base64,")[2])))


def test_photos_reach_the_page_unchanged(tiny):
    view = explorers.explore(lambda: explorers.at_quality(CHELSEA, tiny, 4)).stage.view
    decoded, bits = view["frames"][0]["pictures"]
    file = explorers.as_file(CHELSEA, tiny, 4)
    assert pixels(decoded["src"]).tobytes() == file.decoded.tobytes()
    assert bits["scale"]["high"] == "512 bits, or more"  # the same for every quality
    assert pixels(bits["src"]).size == CHELSEA.size


def test_errors_are_shown_in_words_and_vanish(caplog):
    def function(x):
        if x == 1:
            raise AINNError("choose something else")
        if x == 2:
            raise ZeroDivisionError("by zero")
        return plt.figure(figsize=(1, 1)), "fine"

    slider = ipywidgets.IntSlider(value=0)
    explorer = explorers.explore(function, x=slider)
    with caplog.at_level(logging.ERROR):
        slider.value = 1
        assert explorer.stage.view["error"] == "This could not be drawn: choose something else"
        assert not caplog.records  # the user's mistake, not ours
        slider.value = 2
        assert "by zero" in explorer.stage.view["error"] and not explorer.stage.busy
        assert "Traceback" in caplog.text
    slider.value = 3
    assert "error" not in explorer.stage.view and explorer.stage.view["frames"]


def test_a_closed_explorer_frees_its_network():
    model = copy.deepcopy(load_pretrained("tiny"))
    start = coded(model, CHELSEA, 4.0)
    slider = ipywidgets.FloatSlider(value=1, min=0, max=2)
    explorer = explorers.explore(
        lambda s, network=model: explorers.at_strength(network, start, s, 1, 1), s=slider)
    gone = weakref.ref(model)
    explorer.close()
    del model, explorer
    gc.collect()
    assert gone() is None


def test_no_setting_of_the_process_is_changed():
    before = gc.get_freeze_count()
    dashboard.Dashboard()
    assert gc.get_freeze_count() == before


# -- pages without a kernel ------------------------------------------------------------------------


def test_the_positions_of_a_page():
    def function(kind, x):
        return [Picture(f"{kind} {x:g}", Image.new("RGB", (200, 170), (int(20 * x),) * 3))], "**w**"

    controls = {"kind": ipywidgets.Dropdown(options=["a", "b"], value="b"),
                "x": ipywidgets.FloatSlider(value=2.5, min=0, max=8, step=0.5)}
    view, first = explorers.prepared(function, controls, 7)
    labels = [frame["label"] for frame in view["frames"]]
    assert len(labels) == 7 and labels[0] == "0" and labels[-1] == "8"
    assert labels[view["start"]] == "2.5" and view["wipe"] and view["name"] == "x"
    assert first.pictures[0].title == "b 2.5" and first.pictures[0].image.size == (160, 160)
    page = static_page(view, first.words)
    assert "</script>" not in page.partition("<script>")[2].removesuffix("</script>")
    assert "http" not in page


def test_a_page_is_made_where_the_runner_asks_for_one(monkeypatch):
    shown = []
    monkeypatch.setattr(explorers, "display", lambda data, raw: shown.append(data))
    monkeypatch.setenv(explorers.POSITIONS, "7")
    grey = Image.new("RGB", (32, 16), "grey")
    found = explorers.explore(lambda: explorers.at_wipe(grey, {"same": (grey, 10)}))
    assert found is None and [set(data) for data in shown] == [
        {"image/png", "text/plain"}, {"text/html", "text/plain"}]
    assert Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"]))).size == (72, 16)
    with pytest.raises(ZeroDivisionError):  # the cell fails
        explorers.explore(lambda: 1 / 0)


def test_a_notebook_shows_pictures_without_loss(monkeypatch):
    said = []
    shell = SimpleNamespace(run_line_magic=lambda *words: said.append(words))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    with matplotlib.rc_context():
        style.notebook_style()
        assert matplotlib.rcParams["figure.dpi"] >= 110
    assert said == [("matplotlib", "inline"),
                    ("config", "InlineBackend.figure_formats = ['png']")]


def test_every_kind_of_control_has_values():
    log = ipywidgets.FloatLogSlider(value=10, base=10, min=0, max=2, step=1)
    assert [value for _, value in explorers.values_of(log)] == [1, 10, 100]
    several = ipywidgets.SelectMultiple(options=[("A", 1), ("B", 2)])
    assert explorers.values_of(several) == [("A", (1,)), ("B", (2,))]


# -- a user's own photos ---------------------------------------------------------------------------


def packed(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


DEEP = Image.fromarray(np.full((32, 64), 40000, np.uint16))


@pytest.mark.parametrize("image, size, words", [
    (Image.new("RGB", (1200, 600)), (256, 256), ["1200x600 pixels, shrunk", "middle 256x256"]),
    (Image.new("RGB", (200, 40)), (192, 32), ["200x40 pixels", "middle 192x32"]),
    (Image.new("RGB", (64, 4000)), (64, 256), ["middle 64x256"]),
    (Image.new("RGB", (64, 32)), (64, 32), ["64x32 pixels"]),
    (Image.new("L", (64, 32)), (64, 32), ["64x32 pixels"]),
    (Image.new("RGBA", (64, 32), (255, 0, 0, 0)), (64, 32), ["transparent is laid on white"]),
    (DEEP, (64, 32), ["reduced to 8 bits"]),
])
def test_photos_that_are_taken(image, size, words):
    picture, said = own_photo(packed(image))
    assert picture.size == size and picture.mode == "RGB" and all(word in said for word in words)
    if image.mode == "RGBA":
        assert picture.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("content, words", [
    (b"", "no image"),
    (b"words", "no image"),
    (packed(CHELSEA)[:2000], "cannot be read|no image"),
    (packed(Image.new("RGB", (15, 400))), "15x400 pixels; each side needs 16"),
    (packed(Image.new("1", (9000, 9000))), "at most"),
    (packed(Image.new("1", (15000, 15000))), "too many pixels"),
])
def test_photos_that_are_refused_in_a_sentence(content, words):
    with pytest.raises(AINNError, match=words) as caught:
        own_photo(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CORNERS)
def test_the_crops_of_the_dashboard_hold_nothing_but_photo(name):
    crop = embedded_crop(name)
    assert crop.width == 256 and crop.height in (208, 256)
    for across in ((0, 2), (1, 2)):  # beyond the border a crop is black
        assert np.asarray(crop).std(across).min() > 0


# -- the dashboard ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def material(tiny):
    return dashboard.Material(photo("chelsea").crop((100, 40, 228, 136)), tiny)


@pytest.mark.parametrize("entry", dashboard.EXPLORERS, ids=lambda entry: entry.title)
def test_every_explorer_at_the_ends_of_every_control(material, entry):
    controls = entry.controls()
    start = {name: control.value for name, control in controls.items()}
    moves = [{}]
    for name, control in controls.items():
        if name != "effort":  # seconds each
            (_, first), *_, (_, last) = explorers.values_of(control)
            moves += [{name: first}, {name: last}]
    for move in moves:
        shown, numbers = entry.function(material, **{**start, **move})
        pictures = pictures_of(shown)
        assert all(np.asarray(p.image).std() > 1 for p in pictures) and str(numbers)
        plt.close("all")


def test_frequencies_need_no_fdsm():
    model = load_pretrained("ablation-pdm-residual")
    assert not model.config.fdsm
    found = dashboard.Material(CHELSEA, model).split(4.0)
    assert 0 < explorers.at_cut(found, 0.1)[1].energy < 1


def test_frequencies_of_the_whole_decoder(material):
    both = [explorers.at_cut(maps, 0.1)[1] for maps in (material.split(4.0), material.maps(4.0))]
    assert both[0].error == pytest.approx(both[1].error, abs=1e-4)


def test_a_refined_file_says_how_far_it_is():
    said = []
    model = load_pretrained("tiny")
    file = dashboard.Material(CHELSEA.crop((0, 0, 64, 64)), model, said.append).file(3.0, 1)
    assert said[0] == "refining: step 1 of 30" and said[29] == "refining: step 30 of 30"
    assert file.data == codec.encode(CHELSEA.crop((0, 0, 64, 64)), model, 3.0, effort=1)
    assert not model.g_s._forward_hooks


def upload(page: dashboard.Dashboard, name: str, content: bytes) -> None:
    page.upload.value = ({
        "name": name, "type": "", "size": len(content), "content": memoryview(content),
        "last_modified": datetime.datetime(2026, 1, 1)},)


def sources(page: dashboard.Dashboard, number: int) -> list[str]:
    """What the pictures of a tab show; empty: it was not drawn."""
    frames = page.explorers[number].stage.view["frames"]
    return [picture["src"] for frame in frames for picture in frame["pictures"]]


def test_the_dashboard_draws_what_is_in_sight():
    page = dashboard.Dashboard()
    assert [bool(sources(page, n)) for n in range(len(page.explorers))] == [True] + [False] * 9
    first = sources(page, 0)
    page.photo.value = "rocket"
    assert sources(page, 0) != first and not sources(page, 2)
    page.tabs.selected_index = 2
    drawn, hidden = sources(page, 2), sources(page, 0)
    assert drawn
    page.quality.value = 5  # one quality for all
    assert sources(page, 2) != drawn and sources(page, 0) == hidden
    drawn = sources(page, 2)
    page.tabs.selected_index = 0
    assert sources(page, 0) != hidden and sources(page, 2) == drawn
    page.tabs.selected_index = 6
    assert page.choices.layout.display == "none"  # the wavefront is of no photo
    page.tabs.selected_index = 0
    page.weights.value = "tiny"
    page.reset.click()
    assert page.choices.layout.display is None and page.quality.value == 3
    assert sources(page, 0) == first and page.weights.value == explorers.default_weights()


def test_the_first_view_compares_and_can_be_saved():
    page = dashboard.Dashboard()
    view = page.explorers[0].stage.view
    titles = [picture["title"] for picture in view["frames"][0]["pictures"]]
    assert titles == ["original", "ours", "JPEG of that size"]
    assert "times smaller" in view["frames"][0]["words"] and view["wipe"]
    ours, png = view["files"]
    data = base64.b64decode(ours["href"].partition("base64,")[2])
    decoded = codec.decode(data, page.material.model)
    assert png["picture"] == 1
    assert pixels(sources(page, 0)[1]).tobytes() == decoded.tobytes()


def test_the_address_says_what_is_shown_and_brings_it_back():
    page = dashboard.Dashboard()
    page.photo.value, page.quality.value, page.tabs.selected_index = "rocket", 5.25, 3
    page.explorers[3].controls["level4"].value = 0.3
    words = page.address.now
    assert words == ("tab=PDM&photo=rocket&weights=student&quality=5.25&level4=0.3&level3=1"
                     "&level2=0")
    other, drawn = dashboard.Dashboard(), []
    other.explorers[3].stage.observe(drawn.append, names="view")
    other.address.first = words
    assert other.address.now == words and sources(other, 3) == sources(page, 3)
    assert len(drawn) <= 2  # for the tab and the photo, not for each control
    page.tabs.selected_index = 9
    page.explorers[9].controls["codecs"].value = ["JPEG", "JPEG 2000, fixed rate"]
    words = page.address.now
    other.address.first = words
    assert other.address.now == words
    other.address.first = "tab=none&photo=x&quality=99&codecs=&level4=nan"
    assert other.address.now == words


def test_a_refinement_can_be_stopped():
    """By its button, which shows the quick file, or by any control that moves."""
    page = dashboard.Dashboard()
    explorer, quick = page.explorers[0], sources(page, 0)
    effort = explorer.controls["effort"]
    effort.value = 3
    assert explorer.stage.stoppable and explorer.work.is_alive()
    explorer.stage.stops += 1
    assert effort.value == 0 and sources(page, 0) == quick
    effort.value = 3
    worker = explorer.work
    page.quality.value = 5
    assert not worker.is_alive() and effort.value == 0 and sources(page, 0) != quick
    assert not explorer.stage.stoppable and not explorer.stage.busy
    assert "error" not in explorer.stage.view
    effort.value = 3
    page.tabs.selected_index = 1
    assert not explorer.work


def test_check_boxes_choose_codecs():
    page = dashboard.Dashboard()
    page.tabs.selected_index = 9
    codecs = page.explorers[9].controls["codecs"]
    before = sources(page, 9)
    codecs.value = ["WebP", "HEVC intra 4:4:4 (x265)"]
    words = page.explorers[9].stage.view["frames"][0]["words"]
    assert sources(page, 9) != before and "BD-rate against WebP" in words and "JPEG" not in words
    assert all(choice["colour"].startswith("#") for choice in codecs.choices)
    assert all(choice["image"].startswith("data:image/webp") for choice in page.photo.choices)


def test_the_dashboard_takes_a_photo_and_refuses_others_in_words():
    page = dashboard.Dashboard()
    first = sources(page, 0)
    assert dashboard.OWN not in page.photo.options  # there is none yet
    upload(page, "<no>.txt", b"words")
    assert page.message.value == "<b>&lt;no&gt;.txt: this file is no image that can be read</b>"
    assert sources(page, 0) == first
    page.photo.value = "coffee"
    assert not page.message.value  # it was about something else
    upload(page, "a.png", packed(CHELSEA))
    assert "96x64 pixels" in page.message.value and page.photo.value == dashboard.OWN
    assert page.material.photo.tobytes() == CHELSEA.tobytes()
    assert sources(page, 0) != first and page.upload.value == ()
    upload(page, "b.png", packed(CHELSEA.transpose(Image.Transpose.ROTATE_90)))
    assert page.material.photo.size == (64, 96)


def test_weights_have_groups_and_a_line_each():
    names = [name for _, name in dashboard.weight_choices()]
    assert sorted(names) == available()
    assert [n.startswith("ablation-") for n in names] == sorted(
        n.startswith("ablation-") for n in names)
    assert "million parameters" in dashboard.about_weights("tiny")
    assert "not the best" in dashboard.about_weights("ablation-pdm-unet")


def test_the_server_ends_kernels_that_nobody_looks_at(monkeypatch):
    from voila.app import Voila

    monkeypatch.setenv("JUPYTER_PATH", "")
    calls = []
    monkeypatch.setattr(Voila, "launch_instance", lambda arguments, **k: calls.append(arguments))
    dashboard.main(["--no-browser", "--MappingKernelManager.cull_idle_timeout=5"])
    assert "--MappingKernelManager.cull_connected=False" in calls[0]
    assert sum("cull_idle_timeout" in argument for argument in calls[0]) == 1  # the user's


# -- latency ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_latency_is_measured_for_every_explorer():
    results = explorer_latency(moves=2)
    titles = [entry.title for entry in dashboard.EXPLORERS]
    assert [r["explorer"] for r in results] == titles
    assert all(0 < r["median"] <= r["p95"] <= r["largest"] for r in results)


def test_an_explorer_that_fails_stops_the_benchmark(monkeypatch):
    monkeypatch.setattr(explorers, "with_jpeg", lambda *a: 1 / 0)
    with pytest.raises(AINNError, match="Compare: "):
        explorer_latency(moves=1)
