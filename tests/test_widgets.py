"""Explorers over their whole range, the face that shows them, photos of one's own, and the dashboard."""

import copy
import datetime
import io
import json
import logging

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ainn_lib import AINNError, app, codec, data, entropy, widgets
from ainn_lib.benchmark import explorer_latency, latency_table
from ainn_lib.metrics import psnr
from ainn_lib.widgets import CLAMPS, DEEPEST, at_delta, at_depth, at_quality, at_rounding, at_step, bit_map, explore, own_photo

CHELSEA = data.photo("chelsea").crop((100, 40, 196, 104))


# -- explorers over their whole range ----------------------------------------------------------------------------------

def test_the_quality_explorer(tiny):
    last = 0
    for quality in np.arange(1, 8.01, 0.5):
        figure, numbers = at_quality(CHELSEA, tiny, float(quality))
        file = codec.encode(CHELSEA, tiny, float(quality))
        assert numbers.bytes == len(file) >= last and numbers.psnr == psnr(CHELSEA, codec.decode(file, tiny))
        assert f"{numbers.bpp:.3f}" in str(numbers)
        last = numbers.bytes
        plt.close(figure)
    with pytest.raises(AINNError, match="quality"):
        at_quality(CHELSEA, tiny, 9)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA"])
def test_the_quality_explorer_takes_any_mode_and_size(tiny, mode):
    image = CHELSEA.crop((0, 0, 37, 50)).convert(mode)
    _, numbers = at_quality(image, tiny, 4)
    assert numbers.bytes == len(codec.encode(image, tiny, 4))


def test_the_bit_map_adds_up(tiny):
    bits = bit_map(CHELSEA, tiny, 4.0)
    assert bits.shape == (4, 6)
    latent = 8 * codec.info(codec.encode(CHELSEA, tiny, 4.0)).latent_bytes
    assert bits.sum() == pytest.approx(latent, rel=0.02, abs=200)


def test_what_is_kept_is_made_anew_for_changed_weights(tiny):
    model = copy.deepcopy(tiny)
    before = at_quality(CHELSEA, model, 4)[1]
    with torch.no_grad():
        next(model.levels.parameters()).mul_(1.05)
    after = at_quality(CHELSEA, model, 4)[1]
    assert after != before and after.bytes == len(codec.encode(CHELSEA, model, 4))


def test_the_rounding_explorer(tiny):
    trained = at_rounding(CHELSEA, tiny, 4, 1)[1]
    assert trained.psnr == at_quality(CHELSEA, tiny, 4)[1].psnr
    assert trained.bytes == codec.info(codec.encode(CHELSEA, tiny, 4)).latent_bytes
    found = [at_rounding(CHELSEA, tiny, 4, delta)[1] for _, delta in app.STEPS]
    plt.close("all")
    assert [n.zeros for n in found] == sorted(n.zeros for n in found)
    assert [n.bytes for n in found] == sorted((n.bytes for n in found), reverse=True)
    assert found[-1].psnr < trained.psnr and f"{trained.bpp:.3f}" in str(trained)
    for wrong in (0.1, 9):
        with pytest.raises(AINNError, match="delta"):
            at_rounding(CHELSEA, tiny, 4, wrong)


def test_the_stream_of_the_rounding_explorer_decodes_with_its_step(tiny, monkeypatch):
    streams, real = [], entropy.LatentCoder.encode
    monkeypatch.setattr(entropy.LatentCoder, "encode", lambda self, *a: streams.append((real(self, *a), a)) or streams[-1][0])
    numbers = at_rounding(CHELSEA, tiny, 4, 2)[1]
    _, inverse_gain, bias = tiny.gains(4)
    coded, _ = streams[0]
    y_hat = entropy.latent_coder(tiny).decode(coded.data, 4, 6, bias, 2 * inverse_gain)
    picture = Image.fromarray(codec.synthesise(y_hat, tiny, 64, 96))
    assert numbers.bytes == len(coded.data) and numbers.psnr == psnr(CHELSEA, picture)


def test_a_photo_that_exif_turns(tiny):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    CHELSEA.resize((96, 64)).save(buffer, "JPEG", exif=exif, quality=95)
    image = Image.open(buffer)
    upright = ImageOps.exif_transpose(image)
    assert at_quality(image, tiny, 4)[1] == at_quality(upright, tiny, 4)[1]
    assert at_rounding(image, tiny, 4, 1)[1] == at_rounding(upright, tiny, 4, 1)[1]


def test_the_wavefront_explorer():
    steps = len(list(entropy.wavefront(12, 18)))
    done = 0
    for step in range(steps):
        figure, numbers = at_step(12, 18, step)
        assert numbers.done == done and numbers.batch >= 1
        done += numbers.batch
        plt.close(figure)
    assert done == 12 * 18
    with pytest.raises(AINNError, match="step"):
        at_step(12, 18, steps)


def test_the_depth_explorer():
    for clamp in CLAMPS:
        errors = [at_depth(clamp, depth)[1] for depth in (1, DEEPEST)]
        plt.close("all")
        assert all(n.float64 < n.float32 for n in errors) and errors[0].float32 < errors[1].float32
    with pytest.raises(AINNError, match="clamp"):
        at_depth(0.3, 1)


def test_the_delta_explorer():
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for log2 in range(-5, 6):
        numbers = at_delta(torch.nn.Identity(), x, x, 0.1, 2.0**log2)[1]
        plt.close("all")
        assert numbers.predicted == pytest.approx((0.1 * 2.0**log2) ** 2 / 12)  # exact: J is the identity
        assert numbers.measured == pytest.approx(numbers.predicted, rel=0.15)  # 768 values: five standard errors of their mean
    with pytest.raises(AINNError, match="delta"):
        at_delta(torch.nn.Identity(), x, x, 0.1, 0.01)


def test_the_wipe_says_which_part_it_shows():
    for zoom in (1, 2, 4):
        for middle in (0, 0.5, 1):
            _, numbers = widgets.at_wipe(CHELSEA, CHELSEA, 100, 0.5, zoom, middle)
            left, top, right, bottom = numbers.box
            assert (right - left, bottom - top) == (96 // zoom, 64 // zoom) and top == round(middle * (64 - 64 // zoom))
            assert f"rows {top} to {bottom}" in str(numbers)
    plt.close("all")
    with pytest.raises(AINNError, match="middle"):
        widgets.at_wipe(CHELSEA, CHELSEA, 100, 0.5, 2, 1.5)


# -- the face ----------------------------------------------------------------------------------------------------------

def outputs(explorer) -> list[dict]:
    return list(explorer.output.outputs)


def test_the_face_calls_the_function_with_the_sliders_value():
    seen = []

    def function(x_of):
        seen.append(x_of)
        return plt.figure(figsize=(1, 1)), f"words **{x_of}**"

    slider = ipywidgets.IntSlider(value=2, min=0, max=9)
    explorer = explore(function, x_of=slider)
    slider.value = 7
    assert seen == [2, 7] and slider.description == "x of" and not plt.get_fignums()
    shown, words = (output["data"] for output in outputs(explorer))
    assert words["text/markdown"] == "words **7**" and shown["image/jpeg"]


def test_errors_are_shown_in_words_and_stay_to_be_found(caplog):
    def function(x):
        if x == 1:
            raise AINNError("choose something else")
        if x == 2:
            raise ZeroDivisionError("by zero")
        return plt.figure(figsize=(1, 1)), "fine"

    slider = ipywidgets.IntSlider(value=0)
    explorer = explore(function, x=slider)
    with caplog.at_level(logging.ERROR):
        slider.value = 1
        assert [(o["output_type"], o["traceback"]) for o in outputs(explorer)] == [
            ("error", ["This could not be drawn: choose something else"])]
        assert not caplog.records  # the user's mistake, not ours
        slider.value = 2
        assert outputs(explorer)[0]["ename"] == "ZeroDivisionError" and "by zero" in outputs(explorer)[0]["traceback"][0]
        assert "Traceback" in caplog.text
    slider.value = 3
    assert [o["output_type"] for o in outputs(explorer)] == ["display_data"] * 2


# -- photos of one's own -----------------------------------------------------------------------------------------------

def packed(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("image, size, words", [
    (Image.new("RGB", (1200, 600), "red"), (256, 256), ["1200x600 pixels, shrunk", "middle 256x256"]),
    (Image.new("RGB", (200, 40), "red"), (192, 32), ["200x40 pixels", "middle 192x32"]),
    (Image.new("RGB", (64, 4000), "red"), (64, 256), ["middle 64x256"]),
    (Image.new("RGB", (64, 32), "red"), (64, 32), ["64x32 pixels"]),
    (Image.new("L", (64, 32), 9), (64, 32), ["64x32 pixels"]),
    (Image.new("RGBA", (64, 32), (255, 0, 0, 0)), (64, 32), ["transparent is laid on white"]),
    (Image.fromarray(np.full((32, 64), 40000, np.uint16)), (64, 32), ["reduced to 8 bits"]),
])
def test_photos_that_are_taken(image, size, words):
    photo, said = own_photo(packed(image))
    assert photo.size == size and photo.mode == "RGB" and all(word in said for word in words), said
    if image.mode == "RGBA":
        assert photo.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("content, words", [
    (b"", "no image"), (b"words", "no image"), (packed(CHELSEA)[:2000], "cannot be read|no image"),
    (packed(Image.new("RGB", (15, 400))), "15x400 pixels; each side needs 16"),
    (packed(Image.new("1", (9000, 9000))), "at most"), (packed(Image.new("1", (15000, 15000))), "too many pixels"),
])
def test_photos_that_are_refused_in_a_sentence(content, words):
    with pytest.raises(AINNError, match=words) as caught:
        own_photo(content)
    assert "\n" not in str(caught.value)


# -- the dashboard -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def material(tiny):
    return app.Material(data.photo("chelsea").crop((100, 40, 228, 136)), tiny)


@pytest.mark.parametrize("entry", app.EXPLORERS, ids=lambda entry: entry.title)
def test_every_explorer_at_the_ends_of_every_control(material, entry):
    controls = entry.controls()
    start = {name: control.value for name, control in controls.items()}
    moves = [{name: value} for name, control in controls.items() for value in (app.values_of(control)[i] for i in (0, -1))]
    for move in ({}, *moves):
        figure, numbers = entry.function(material, **{**start, **move})
        assert len(widgets.rendered(figure)) > 1000 and str(numbers)
        plt.close(figure)


@pytest.mark.parametrize("name", app.CORNERS)
def test_the_crops_of_the_dashboard_hold_nothing_but_photo(name):
    crop = app.embedded_crop(name)
    assert crop.width == 256 and crop.height in (208, 256)
    assert np.asarray(crop).std((0, 2)).min() > 0 and np.asarray(crop).std((1, 2)).min() > 0  # a crop beyond the border is black


def upload(page: app.Dashboard, name: str, content: bytes) -> None:
    page.upload.value = ({"name": name, "type": "", "size": len(content), "content": memoryview(content),
                          "last_modified": datetime.datetime(2026, 1, 1)},)


def test_the_dashboard_draws_what_is_in_sight(monkeypatch):
    draws, update = [], widgets.Explorer.update
    monkeypatch.setattr(widgets.Explorer, "update", lambda self, change=None: draws.append(self) or update(self))
    page = app.Dashboard()
    assert [bool(explorer.output.outputs) for explorer in page.explorers] == [True] + [False] * (len(app.EXPLORERS) - 1)
    first = page.explorers[0].output.outputs
    page.photo.value = "rocket"
    assert page.explorers[0].output.outputs != first and not page.explorers[2].output.outputs
    page.tabs.selected_index = 2
    assert page.explorers[2].output.outputs[0]["output_type"] == "display_data"
    drawn = page.explorers[0].output.outputs
    page.weights.value = "tiny"
    assert page.explorers[0].output.outputs == drawn  # out of sight: not yet
    page.tabs.selected_index = 0
    assert page.explorers[0].output.outputs != drawn
    so_far = len(draws)
    page.tabs.selected_index = 2
    assert len(draws) == so_far  # nothing has changed since it was drawn


def test_the_dashboard_takes_a_photo_and_refuses_others_in_words():
    page = app.Dashboard()
    first = page.explorers[0].output.outputs
    page.photo.value = app.OWN
    assert "choose a file" in page.message.value and page.explorers[0].output.outputs == first
    upload(page, "<no>.txt", b"words")
    assert page.message.value == "<b>&lt;no&gt;.txt: this file is no image that can be read</b>"
    upload(page, "a.png", packed(CHELSEA))
    assert "96x64 pixels" in page.message.value and page.material.photo.tobytes() == CHELSEA.tobytes()
    assert page.explorers[0].output.outputs != first and page.upload.value == ()
    upload(page, "b.png", packed(CHELSEA.transpose(Image.Transpose.ROTATE_90)))
    assert page.material.photo.size == (64, 96)


@pytest.mark.slow
def test_the_latency_is_measured_for_every_explorer(tmp_path):
    results = explorer_latency(moves=2)
    assert [r["explorer"] for r in results] == [entry.title for entry in app.EXPLORERS]
    assert all(0 < r["median"] <= r["p95"] <= r["largest"] for r in results)
    (tmp_path / "b.json").write_text(json.dumps({"explorers": results, "hardware": {"processor": "a fast one", "cores": 2}}))
    table = latency_table(tmp_path / "b.json")
    assert list(table.index) == [entry.title for entry in app.EXPLORERS] and table.index.name == "a fast one, 2 cores"


def test_an_explorer_that_fails_stops_the_benchmark(monkeypatch):
    monkeypatch.setattr(widgets, "at_quality", lambda *a: 1 / 0)
    with pytest.raises(AINNError, match="Quality failed"):
        explorer_latency(moves=1)
