"""The drawings of the architecture: what they say is what the network is, and it can be read."""

import re
from functools import cache
from itertools import combinations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.transforms import Bbox
from PIL import Image
from torch import nn

from ainn_lib import AINN, AINNError, architecture
from ainn_lib.architecture import KINDS, cfrm, draw, fdsm, framework, overview, save_figures
from ainn_lib.fdsm import FDSMSynthesis

FIGURES = (framework, overview, cfrm, fdsm)
CONFIGS = {
    "paper": ("paper", {}),
    "tiny": ("tiny", {}),
    "student, fixed rate": ("student", dict(variable_rate=False, input_offset=0.0)),
    "all off": ("tiny", dict(fdsm=False, cfrm=False, pdm="none")),
    "fdsm off, pdm none, ms_cfrm": ("paper", dict(fdsm=False, pdm="none", ms_cfrm=True)),
    "no squeeze": ("paper", dict(squeeze=False)),
    "ms_cfrm alone": ("tiny", dict(cfrm=False, ms_cfrm=True, pdm="dense", pdm_skip=True, couplings=(0, 1, 2, 10))),
    "M = 96, deep": ("student", dict(M=96, cfrm_layers=7, cfrm_growth=96, ms_cfrm=True, pdm="residual")),
    "wide numbers": ("paper", dict(hidden=(1024, 2048, 4096, 4096), kernels=(11, 11, 11, 11), cfrm_layers=0, M=4,
                                   mask_widths=(1024, 1024, 2048), pdm_widths=((1024, 2048),) + ((1024, 1024, 2048),)
                                   + ((1024, 1024, 1024, 2048),))),
}
everywhere = pytest.mark.parametrize("name", CONFIGS)


def fresh(preset: str, **overrides) -> AINN:
    with torch.device("meta"):  # shapes only: also the largest network costs nothing
        return AINN.from_preset(preset, **overrides).eval()


@cache
def model(name: str) -> AINN:
    return fresh(CONFIGS[name][0], **CONFIGS[name][1])


@cache
def diagrams(name: str) -> tuple:
    return tuple(figure(model(name)) for figure in FIGURES)


def names(diagram) -> set[str]:
    return {box.name for box in diagram.boxes}


def text(diagram, name: str) -> str:
    return "\n".join(diagram[name].lines)


def edges(box) -> tuple[float, float, float, float]:
    return box.x, box.y, box.x + box.width, box.y + box.height


# -- what the drawings say --------------------------------------------------------------------------------------------


@everywhere
def test_sizes_are_those_of_the_network(name):
    """Pass an image of no values through all stages, and compare every map with what its box says."""
    net, diagram, found = model(name), overview(model(name)), []
    with torch.no_grad():
        maps = (torch.empty(1, 3, 64, 128, device="meta"),)
        for stage in net.analysis_stages():
            maps = stage.run(*maps)
            found.append((stage.name, maps[0].shape))
        found.append(("y", maps[0].shape))
        found.append(("z coder", net.h_a(maps[0]).shape))
        for stage in net.synthesis_stages():
            maps = stage.run(*maps)
            found.append((stage.name, maps[0].shape))
        found.append(("x_hat", maps[0].shape))
    compared = 0
    for box, (_, channels, height, width) in found:
        box = "squeeze" if box == "channel squeeze" else box
        if box not in names(diagram):
            assert box.startswith("PDM")
            continue
        for size in re.findall(r"(\d+) × H(?:/(\d+))? × W", text(diagram, box)):
            factor = int(size[1] or 1)
            assert (int(size[0]), 64 // factor, 128 // factor) == (channels, height, width), box
            compared += 1
    assert compared >= 11  # eight levels, y, z, x_hat


@everywhere
def test_the_way_through_the_overview_is_the_order_of_the_stages(name):
    net, diagram = model(name), overview(model(name))
    forward = {}
    for arrow in diagram.arrows:
        if not arrow.weights:
            forward.setdefault(arrow.source, []).append(arrow.target)

    def walk(start: str, end: str, avoid: tuple[str, ...]) -> list[str]:
        way = [start]
        while way[-1] != end:
            way.append(next(box for box in forward[way[-1]] if not box.startswith(avoid)))
        return way

    extra = {"x", "x_hat", "y", "y_hat", "offset", "offset back", "gain", "inverse gain"}
    for branch in ("low", "high"):
        stages = [stage.name.replace("channel squeeze", "squeeze") for stage in net.analysis_stages()]
        assert [box for box in walk("x", "y", ()) if box not in extra] == stages
        other = tuple(f"PDM {k} {'high' if branch == 'low' else 'low'}" for k in (2, 3, 4))
        way = walk("y_hat", "CFRM", ("context", "MS-CFRM")) + walk("CFRM", "x_hat", other)[1:]
        assert [box.removesuffix(f" {branch}") for box in way if box not in extra] == [
            stage.name for stage in net.synthesis_stages()]
    for way in (("y", "Q", "AE", "AD"), ("y", "h_a", "z coder", "h_s", "entropy parameters", "AE"),
                ("y_hat", "context", "entropy parameters", "AD")):
        assert all(b in forward[a] for a, b in zip(way, way[1:], strict=False))
    weights = {(arrow.source, arrow.target) for arrow in diagram.arrows if arrow.weights}
    assert weights == {(f"level {k}", f"inverse level {k}") for k in (1, 2, 3, 4)}


@everywhere
def test_levels_say_couplings_kernels_and_widths(name):
    net, diagram = model(name), overview(model(name))
    c = net.config
    for k, (couplings, kernel, hidden) in enumerate(zip(c.couplings, c.kernels, c.hidden, strict=True), start=1):
        said = text(diagram, f"level {k}")
        if couplings:
            assert f"{couplings} coupling" in said and f"{kernel}×{kernel}, {hidden} wide" in said
            assert ("joint nets" in said) == c.shared_nets
        else:
            assert "no couplings" in said
        assert ("fixed" in said) != c.trainable_1x1[k - 1]


def test_the_authors_network():
    pictured = {figure.__name__: figure(model("paper")) for figure in FIGURES}
    shown = pictured["overview"]
    assert text(shown, "level 1") == ("level 1: 12 × H/2 × W/2\nsqueeze ×2, 1×1 conv 12 × 12\n"
                                      "3 couplings, nets $G$, $H$ 5×5, 12 wide")
    assert "3×3, 768 wide" in text(shown, "level 4") and "768 × 768" in text(shown, "level 4")
    assert "mean over 8 groups: 1536 → 192" in text(shown, "squeeze")
    assert "96, 192, 384, 384\nup 192, 96, 48" in text(shown, "PDM 2 low")
    assert "(v + \\mathrm{net}(v))" in text(shown, "PDM 2")
    assert "768 → 640 → 512 → 384" in text(shown, "entropy parameters")
    assert "masked conv 5×5: 192 → 384" in text(shown, "context")
    assert "192 × H/64 × W/64" in text(shown, "z coder")
    assert "215.8 M" in text(pictured["framework"], "ainn heading")
    assert "12 couplings" in text(pictured["framework"], "ainn F")
    assert text(pictured["fdsm"], "up 2").startswith("concat, conv 3×3: 256 → 128")
    assert not any(box.kind == "off" for diagram in pictured.values() for box in diagram.boxes)
    shown = {box for diagram in pictured.values() for box in names(diagram)}
    assert not any("gain" in box or "MS" in box or "offset" in box for box in shown)


@everywhere
def test_cfrm_shows_every_convolution(name):
    net, diagram = model(name), cfrm(model(name))
    blocks = {f"{prefix}{branch}": getattr(module, branch) for branch in ("low", "high")
              for prefix, module in (("", getattr(net, "cfrm", None)), ("MS ", getattr(net, "ms_cfrm", None))) if module}
    expected = {}
    for block_name, block in blocks.items():
        expected |= {f"{block_name} conv {i}": conv for i, conv in enumerate(block.layers, start=1)}
        expected[f"{block_name} fuse"] = block.fuse
        if block.skip is not None:
            expected[f"{block_name} skip"] = block.skip
    assert {box.name for box in diagram.boxes if box.kind == "cfrm"} == set(expected)
    for box, conv in expected.items():
        assert diagram[box].lines[:2] == (f"conv {conv.kernel_size[0]}×{conv.kernel_size[0]}",
                                          f"{conv.in_channels} → {conv.out_channels}")
    links = {(arrow.source, arrow.target) for arrow in diagram.arrows}
    for block_name, block in blocks.items():  # each input goes past its convolution into the concatenation
        for i in range(1, len(block.layers) + 1):
            source = f"{block_name} concat {i - 1}" if i > 1 else f"{block_name} in" if "MS" in block_name else "y_hat"
            assert {(source, f"{block_name} conv {i}"), (source, f"{block_name} concat {i}")} <= links


@pytest.mark.parametrize("name", ["paper", "tiny"])
def test_fdsm_shows_every_convolution_of_the_mask_net(name):
    net, diagram, seen = model(name).fdsm_s.masknet, fdsm(model(name)), {}
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda conv, args, out: seen.__setitem__(conv, out.shape))
    net(torch.empty(1, 6, 64, 128, device="meta"))
    boxes = {conv: f"down {i}" for i, conv in enumerate(net.down)}
    boxes |= {conv: f"up {2 - i}" for i, conv in enumerate(net.up)} | {net.bottleneck: "bottleneck", net.out: "mask"}
    assert set(seen) == set(boxes)
    for conv, (_, channels, height, _) in seen.items():
        said = text(diagram, boxes[conv])
        assert f"conv {conv.kernel_size[0]}×{conv.kernel_size[0]}: {conv.in_channels} → {conv.out_channels}" in said
        assert f"{channels} × H/{64 // height} × " in said.replace("H × W", "H/1 × W/1")
    assert [a.target for a in diagram.arrows if a.label == "skip"] == ["up 0", "up 1", "up 2"]


def test_what_is_drawn_is_the_instance_not_its_config():
    net = fresh("tiny")
    with torch.device("meta"):
        net.fdsm_s = FDSMSynthesis((3, 5, 7))
        net.context_prediction = nn.Conv2d(192, 77, 7)
        net.cfrm.low.layers.append(nn.Conv2d(224, 99, 5))
        net.levels[2].couplings.append(nn.Identity())
        net.pdm[0][1].net.inc[0] = nn.Conv2d(1, 55, 3)
        net.pdm[0][1].net.inc[2] = nn.Conv2d(1, 66, 3)
    assert "6 → 3" in text(fdsm(net), "down 0") and "14 → 7" in text(fdsm(net), "up 2")
    assert "conv 7×7: 192 → 77" in text(overview(net), "context")
    assert cfrm(net)["low conv 3"].lines[:2] == ("conv 5×5", "224 → 99")
    assert "high conv 3" not in names(cfrm(net))
    assert text(overview(net), "level 3").count("2 couplings") == 1
    assert "66, 16" in text(overview(net), "PDM 4 high") and "66" not in text(overview(net), "PDM 4 low")


def test_kinds_of_pdm():
    for kind, word in (("unet", "U-Net"), ("residual", "residual"), ("dense", "dense")):
        net = fresh("tiny", pdm=kind)
        assert word in text(overview(net), "PDM 3 low") and word in text(framework(net), "ainn PDM")
        if kind != "unet":
            chain = net.pdm[1][0].net
            assert f"{len(chain.blocks)} blocks\n{chain.first.out_channels} wide" in text(overview(net), "PDM 3 low")


def test_modules_that_are_off():
    first, second, third, fourth = diagrams("all off")
    assert not {"pdm", "cfrm", "fdsm"} & {box.kind for d in (first, second, third, fourth) for box in d.boxes}
    assert "copied to all 8 groups" in text(second, "CFRM") and second["CFRM"].kind == "off"
    assert "x_L = x_H = x" in text(second, "FDSM-D") and "/ 2" in text(second, "FDSM-S")
    assert {box.name for box in third.boxes if box.kind == "off"} == {"copy"}
    assert {box.name for box in fourth.boxes if box.kind == "off"} == {"copy", "mean"}
    first, second, third, _ = diagrams("no squeeze")
    assert not {"ainn S", "ainn CFRM"} & names(first) and "1536 ×" in text(first, "ainn Q")
    assert "squeeze off" in text(second, "squeeze") and "1536 × H/16" in text(second, "y")
    assert "two halves of 768" in text(third, "copy")
    assert {"MS-CFRM", "CFRM"} <= names(diagrams("fdsm off, pdm none, ms_cfrm")[1])


def test_rate_and_quantization():
    fixed, variable = diagrams("paper")[1], diagrams("tiny")[1]
    assert {"gain", "inverse gain", "offset", "offset back"} == names(variable) - names(fixed)
    assert "noise" in text(fixed, "Q") and "straight-through" in text(variable, "Q")
    assert "bias" in text(variable, "entropy parameters") and "bias" not in text(fixed, "entropy parameters")


# -- that they can be read --------------------------------------------------------------------------------------------


@everywhere
def test_boxes_do_not_overlap_and_lie_in_the_picture(name):
    for diagram in diagrams(name):
        boxes = diagram.boxes + diagram.legend
        assert len({box.name for box in boxes}) == len(boxes)
        for box in boxes:
            x0, y0, x1, y1 = edges(box)
            assert 0 < x0 < x1 < diagram.width and 0 < y0 < y1 < diagram.height, box
        for a, b in combinations(boxes, 2):
            (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = edges(a), edges(b)
            assert ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0, (diagram.title, a.name, b.name)


@everywhere
def test_arrows_join_edges_and_cross_no_box(name):
    tiny = 1e-6
    for diagram in diagrams(name):
        touched = set()
        for arrow in diagram.arrows:
            touched |= {arrow.source, arrow.target}
            for end, (x, y) in ((arrow.source, arrow.points[0]), (arrow.target, arrow.points[-1])):
                x0, y0, x1, y1 = edges(diagram[end])
                assert x0 - tiny <= x <= x1 + tiny and y0 - tiny <= y <= y1 + tiny
                assert min(abs(x - x0), abs(x - x1), abs(y - y0), abs(y - y1)) < tiny, (diagram.title, arrow)
            for (ax, ay), (bx, by) in zip(arrow.points, arrow.points[1:], strict=False):
                assert (ax == bx) != (ay == by), (diagram.title, arrow)
                for box in diagram.boxes:
                    x0, y0, x1, y1 = edges(box)
                    clear = (max(ax, bx) <= x0 + tiny or min(ax, bx) >= x1 - tiny
                             or max(ay, by) <= y0 + tiny or min(ay, by) >= y1 - tiny)
                    assert clear, (diagram.title, arrow.source, arrow.target, box.name)
        alone = {box.name for box in diagram.boxes if KINDS[box.kind][0]} - touched
        assert not alone, (diagram.title, alone)


@everywhere
def test_text_fits_its_box_and_labels_touch_nothing(name):
    for diagram in diagrams(name):
        figure = draw(diagram)
        axes, renderer = figure.axes[0], figure.canvas.get_renderer()
        frames = {box.name: Bbox.from_extents(*edges(box)) for box in diagram.boxes + diagram.legend}
        labels, lines = [], 0
        for artist in axes.texts:
            extent = artist.get_window_extent(renderer).transformed(axes.transData.inverted())
            (x0, x1), (y0, y1) = sorted(extent.intervalx), sorted(extent.intervaly)  # y grows downwards
            if artist.get_gid() == "label":
                labels.append((artist.get_text(), Bbox.from_extents(x0, y0, x1, y1)))
                continue
            frame, lines = frames[artist.get_gid()], lines + 1
            assert frame.x0 <= x0 and x1 <= frame.x1, (diagram.title, artist.get_gid(), artist.get_text())
            assert frame.y0 <= y0 + 0.01 and y1 - 0.01 <= frame.y1, (diagram.title, artist.get_gid(), artist.get_text())
        assert lines == sum(len(box.lines) for box in diagram.boxes + diagram.legend)
        assert len(labels) == sum(bool(arrow.label) for arrow in diagram.arrows)
        strokes = [Bbox.from_extents(*(min(p) for p in zip(a, b, strict=True)), *(max(p) for p in zip(a, b, strict=True)))
                   for arrow in diagram.arrows for a, b in zip(arrow.points, arrow.points[1:], strict=False)]
        for word, extent in labels:
            inner = extent.padded(-0.005)
            for other in [*frames.values(), *strokes]:
                apart = inner.x1 <= other.x0 or other.x1 <= inner.x0 or inner.y1 <= other.y0 or other.y1 <= inner.y0
                assert apart, (diagram.title, word, other)
        for (word, a), (other, b) in combinations(labels, 2):
            assert not a.overlaps(b), (diagram.title, word, other)
        plt.close(figure)


@everywhere
def test_legend_names_every_kind_once(name):
    for diagram in diagrams(name):
        used = {box.kind for box in diagram.boxes if KINDS[box.kind][0]}
        assert sorted(box.kind for box in diagram.legend) == sorted(used)
        assert all(box.lines == (KINDS[box.kind][0],) for box in diagram.legend)


def test_colours_differ():
    coloured = [colour for kind, (label, colour) in KINDS.items() if label and kind != "off"]  # "off" is dashed
    assert len(set(coloured)) == len(coloured)


@pytest.mark.parametrize("name", ["paper", "tiny"])
def test_readable_in_two_columns(name):
    """No wider than leaves 6 points of text where a page of two columns (7.16 inches) shows it."""
    for diagram in diagrams(name):
        assert architecture.FONT * min(1, 7.16 / diagram.width) >= 6, diagram.title


# -- files ------------------------------------------------------------------------------------------------------------


def test_drawing_leaves_the_callers_style_alone():
    before = dict(plt.rcParams)
    plt.close(draw(diagrams("tiny")[2]))
    assert dict(plt.rcParams) == before


def test_save_figures(tmp_path):
    files = save_figures(model("tiny"), tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        f"{name}.{suffix}" for name in ("fig1_framework", "fig2_overview", "fig3_cfrm", "fig4_fdsm")
        for suffix in ("png", "pdf")]
    for file, diagram in zip(files[::2], diagrams("tiny"), strict=True):
        with Image.open(file) as image:
            assert image.size == pytest.approx((200 * diagram.width, 200 * diagram.height), abs=1)
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert len(image.convert("RGB").getcolors(1 << 16)) > 20
        assert 10_000 < file.stat().st_size < 300_000
    for file in files[1::2]:
        content = file.read_bytes()
        assert content.startswith(b"%PDF") and b"/Type3" not in content and b"/FontFile2" in content  # text stays text
        assert b"/CreationDate" not in content  # the same network, the same bytes
    assert not plt.get_fignums()


def test_errors(tmp_path):
    for figure in FIGURES:
        with pytest.raises(AINNError, match="a figure is drawn of an AINN, got Conv2d"):
            figure(nn.Conv2d(1, 1, 1))
    (tmp_path / "file").write_text("")
    with pytest.raises(AINNError, match="cannot write figures to"):
        save_figures(model("tiny"), tmp_path / "file")
    with pytest.raises(AINNError, match="no box 'PDM 1'"):
        diagrams("tiny")[1]["PDM 1"]
