"""The drawings of the network: their numbers follow the config, and they can be read."""

import functools
import itertools
import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ainn_lib import AINN
from ainn_lib.measure.figures import save
from ainn_lib.network.transforms import TITLES
from ainn_lib.paths import FIGURES, NOTEBOOKS
from ainn_lib.reproduce import draw_maps
from ainn_lib.style import figure_style
from ainn_lib.ui.drawings import overview

CONFIGS = {
    "paper": ("paper", {}),
    "student": ("student", {}),
    "all off": ("tiny", dict(fdsm=False, cfrm=False, pdm="none")),
    "no squeeze": ("paper", dict(squeeze=False)),
    "untied": ("tiny", dict(tied=False, ms_cfrm=True, pdm="dense", couplings=(0, 1, 2, 10))),
    "wide numbers": ("paper", dict(
        M=96, cfrm_layers=7, cfrm_growth=1024, ms_cfrm=True, pdm="residual",
        hidden=(1024, 2048, 4096, 4096), kernels=(11, 11, 11, 11), mask_widths=(1024, 1024, 2048))),
    "tiny": ("tiny", {}),
}
everywhere = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def model(name: str) -> AINN:
    preset, changes = CONFIGS[name]
    with torch.device("meta"):  # shapes only: the largest network costs nothing
        return AINN.from_preset(preset, **changes).eval()


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


# -- numbers ---------------------------------------------------------------------------------------


@everywhere
def test_sizes_are_those_of_the_steps(name):
    net, words = model(name), texts(overview(model(name)))
    maps = (torch.empty(1, 3, 128, 128, device="meta"),)
    for transform in (net.g_a, net.g_s):
        for step, module in transform.steps:
            output = module(*maps)
            maps = output if isinstance(output, tuple) else (output,)
            of_step = [text for text in words if text.startswith(f"{TITLES[step]}: ")]
            sizes = [re.search(r": (\d+) × H(?:/(\d+))? ×", text).groups() for text in of_step]
            expected = maps[0].shape[1], 128 // maps[0].shape[2]
            assert expected in [(int(count), int(scale or 1)) for count, scale in sizes], step


@pytest.mark.parametrize("field, value, words", [
    ("couplings", (7, 1, 1, 1), "7 × coupling"),
    ("kernels", (11, 3, 3, 3), "kernel 11"),
    ("hidden", (123, 4, 4, 4), "width 123"),
    ("pdm_widths", ((16, 18), (2, 4, 6), (2, 4, 6, 8)), "unet, widths 16, 18"),
    ("pdm", "dense", "dense, widths 8, 7"),
    ("cfrm_growth", 55, "growth 55"),
    ("context_out", 33, "192 → 33"),
    ("parameter_widths", (99, 98), "160 → 99 → 98 → 384"),
    ("N", 44, "44 × H/64 × W/64"),
    ("M", 96, "$y$: 96 × H/16"),
    ("tied", False, "its own weights"),
])
def test_a_number_in_a_box_follows_its_field(field, value, words):
    with torch.device("meta"):
        changed = AINN.from_preset("tiny", **{field: value})
    before, after = ("\n".join(texts(overview(net))) for net in (model("tiny"), changed))
    assert words not in before and words in after


# -- that they can be read -------------------------------------------------------------------------


@functools.cache
def drawn(name: str) -> tuple:
    """Size of the picture; edges of every text and of its frame; ends of every arrow, in pixels."""
    figure = overview(model(name))
    figure.canvas.draw()
    renderer, axes = figure.canvas.get_renderer(), figure.axes[0]
    boxes = [text for text in axes.texts if text.get_text()]
    words = [text.get_window_extent(renderer).extents for text in boxes]
    frames = [text.get_bbox_patch().get_window_extent(renderer).extents for text in boxes]
    arrows = [axes.transData.transform((text.xy, text.get_position()))
              for text in axes.texts if not text.get_text()]
    plt.close(figure)
    return figure.get_size_inches() * figure.dpi, words, frames, arrows


@everywhere
def test_boxes_hold_their_text_and_do_not_overlap(name):
    (width, height), words, frames, _ = drawn(name)
    for (left, low, right, high), (x0, y0, x1, y1) in zip(words, frames, strict=True):
        assert x0 <= left and right <= x1 and y0 <= low and high <= y1
        assert 0 < x0 and x1 < width and 0 < y0 and y1 < height
    for (x0, y0, x1, y1), (u0, v0, u1, v1) in itertools.combinations(frames, 2):
        assert x1 < u0 or u1 < x0 or y1 < v0 or v1 < y0


@everywhere
def test_arrows_cross_no_box_but_those_at_their_ends(name):
    _, _, frames, arrows = drawn(name)
    way = np.linspace(0, 1, 200)[:, None]
    assert len(arrows) > 10
    for end, start in arrows:
        x, y = (start + way * (end - start)).T
        crossed = [bool(((x > x0) & (x < x1) & (y > y0) & (y < y1)).any())
                   for x0, y0, x1, y1 in frames]
        assert sum(crossed) == 2


@pytest.mark.parametrize("name", ["paper", "student"])
def test_the_letters_stay_large_in_two_columns_of_a_paper(name):
    figure = overview(model(name))
    shrunk = min(1, 7.16 / figure.get_size_inches()[0])
    assert all(text.get_fontsize() * shrunk >= 6 for text in figure.axes[0].texts)


def test_drawing_leaves_the_callers_style_alone():
    before = dict(plt.rcParams)
    overview(model("student"))
    assert dict(plt.rcParams) == before


# -- files -----------------------------------------------------------------------------------------


def test_both_files_are_written(tmp_path):
    with figure_style():  # it also says how text gets into a PDF
        save(overview(model("student")), "figure2", tmp_path / "new")
    assert plt.imread(tmp_path / "new" / "figure2.png").std() > 0.05
    content = (tmp_path / "new" / "figure2.pdf").read_bytes()
    assert b"/Type3" not in content and b"/FontFile2" in content  # text stays text
    assert b"/CreationDate" not in content  # the same network, the same bytes


@pytest.mark.parametrize("name, words", [
    ("figure1", "192 ×"), ("figure3", "192 → 768"), ("figure4", "FDSM")])
def test_the_fixed_drawings_show_the_papers_network(name, words):
    tree = ElementTree.parse(FIGURES / f"{name}.svg")
    assert words in "\n".join("".join(node.itertext()) for node in tree.iter())


def test_the_maps_of_the_notebooks_are_as_drawn(tmp_path):
    (tmp_path / "03a_entropy_model.ipynb").touch()
    draw_maps([tmp_path / "03a_entropy_model.ipynb"])
    drawn, kept = (plt.imread(folder / "here" / "03a.png") for folder in (tmp_path, NOTEBOOKS))
    assert drawn.shape == kept.shape and np.abs(drawn - kept).mean() < 0.01
