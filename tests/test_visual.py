import json

import matplotlib.pyplot as plt
import pytest
from conftest import shaken
from PIL import Image

from ainn_lib import AINN, AINNError, codec, curves, data, visual
from ainn_lib.codecs import CODECS
from ainn_lib.evaluate import as_codec
from ainn_lib.metrics import psnr

CHELSEA = data.photo("chelsea").crop((100, 40, 196, 104))
SMALL = dict(N=8, context_out=8, hyper_out=8, parameter_widths=(8, 8), hidden=(8, 8, 8, 8))


@pytest.mark.parametrize("name", ["jpeg", "jpeg2000rate", "hevc"])  # rising, falling and falling settings
def test_the_largest_file_that_fits_by_brute_force(name):
    subject = CODECS[name]
    first, last = int(subject.settings[0]), int(subject.settings[-1])
    every = {s: len(subject.encode(CHELSEA, s)) for s in range(min(first, last), max(first, last) + 1)}
    ladder = sorted(every.values())
    for limit in (ladder[0], ladder[len(ladder) // 4], ladder[len(ladder) // 2], ladder[-3], ladder[-1]):
        found = visual.at_rate(subject, CHELSEA, 8 * limit / (96 * 64))
        assert len(found.data) <= limit and every[int(found.setting)] == len(found.data)
        following = int(found.setting) + (1 if last > first else -1)
        assert every.get(following, 1e9) > limit
        assert found.bpp == pytest.approx(8 * len(found.data) / (96 * 64))
        assert found.psnr == psnr(CHELSEA, subject.decode(found.data))


def test_a_file_fits_into_its_own_rate_though_quotients_are_rounded():
    image, jpeg = CHELSEA.crop((0, 0, 94, 61)), CODECS["jpeg"]
    for size in {len(jpeg.encode(image, quality)) for quality in range(6, 94)}:
        assert len(visual.at_rate(jpeg, image, 8 * size / 94 / 61).data) == size


def test_ours_comes_within_a_few_bytes_of_the_budget(tiny):
    found = visual.at_rate(as_codec(tiny, "tiny"), CHELSEA, 0.8)
    assert 0.77 < found.bpp <= 0.8 and len(codec.encode(CHELSEA, tiny, found.setting)) == len(found.data)
    assert 16 * visual.at_rate(CODECS["jpeg2000"], CHELSEA, 1.0).setting % 1 == 0


def test_a_budget_below_the_smallest_file_is_refused():
    with pytest.raises(AINNError, match="no file of 0.01"):
        visual.at_rate(CODECS["jpeg"], CHELSEA, 0.01)


def test_a_network_with_one_rate_has_one_file():
    model = shaken(AINN.from_preset("tiny", **SMALL, variable_rate=False)).eval()
    model.update(force=True)
    found = visual.at_rate(as_codec(model, "fixed"), CHELSEA, 0.001)
    assert found.setting == 0.0 and found.bpp > 0.001


def test_the_figure_shows_the_files_and_their_numbers():
    grey = Image.new("RGB", data.photo("astronaut").size, (90, 90, 90))
    files = {"astronaut": [visual.Sized(name, 1.0, bytes(100), 0.25 + i, 30.5, grey)
                           for i, name in enumerate(("tiny", *visual.RIVALS))]}
    figure = visual.figure6(files)
    assert len(figure.axes) == 6
    for ax, file in zip(figure.axes[1:], files["astronaut"], strict=True):
        assert f"{file.bpp:.3f} bpp, 30.50 dB" == ax.get_xlabel()
        assert (ax.get_images()[0].get_array() == 90).all()
        assert plt.matplotlib.colors.to_hex(ax.spines["left"].get_edgecolor()).upper() == curves.LOOK[file.codec][1].upper()
    left, top = visual.DETAILS["astronaut"]
    shown = Image.fromarray(figure.axes[0].get_images()[0].get_array())
    assert shown.tobytes() == data.photo("astronaut").crop((left, top, left + visual.SIDE, top + visual.SIDE)).tobytes()
    plt.close(figure)
    facts = json.loads(visual.record(files))
    assert facts["source"] == "measured here" and [f["bpp"] for f in facts["files"]] == [0.25 + i for i in range(5)]
    assert facts["files"][0] == {"photo": "astronaut", "codec": "tiny", "setting": 1.0, "bytes": 100, "bpp": 0.25,
                                 "psnr-rgb": 30.5}


def test_details_lie_inside_their_photos():
    for name, (left, top) in visual.DETAILS.items():
        photo = data.photo(name)
        assert left + visual.SIDE <= photo.width and top + visual.SIDE <= photo.height
