"""The paper's figures 1-4 as our own drawings of one `AINN`: every box, width, size and arrow is read from its modules.

`framework`, `overview`, `cfrm` and `fdsm` say what is to be seen (a `Diagram`, plain data), `draw` paints it and
`save_figures` writes all four to files. Only shapes are read: a network built under ``torch.device("meta")`` will do.
"""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Line
from matplotlib.textpath import text_to_path
from PIL import Image
from torch import nn

from .cfrm import ResidualDenseBlock
from .errors import AINNError
from .fdsm import POOLS
from .invertible import Level
from .model import AINN, AINNConfig
from .pdm import STRENGTH, DenseBlock, UNet, count_parameters

STYLE = Path(__file__).with_name("ainn.mplstyle")
POINT, CORNER = 1 / 72, 0.04  # inches; all lengths of a diagram are inches at its natural size
FONT, SMALL, LINE, PAD, MARGIN, GAP, SIDE = 6.8, 6.2, 0.122, 0.05, 0.06, 0.15, 0.12
KINDS = {  # what a box is: its name in the legend, and its colour, which is Okabe and Ito's (None: no box is drawn)
    "heading": (None, None),
    "note": (None, None),
    "signal": ("signal", "#FFFFFF"),
    "fdsm": ("FDSM", "#56B4E9"),
    "core": ("invertible core", "#0072B2"),
    "cfrm": ("CFRM", "#E69F00"),
    "pdm": ("PDM", "#009E73"),
    "rate": ("quantization and coding", "#CC79A7"),
    "net": ("without an inverse", "#D55E00"),
    "fixed": ("fixed operation", "#999999"),
    "off": ("stands in for a module that is off", "#FFFFFF"),
}


@dataclass(frozen=True)
class Box:
    """A rectangle around lines of text. ``x`` and ``y``: its left and its upper edge; y grows downwards."""

    name: str
    lines: tuple[str, ...]
    kind: str  #: a key of `KINDS`
    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Arrow:
    """A way from the edge of box ``source`` to the edge of box ``target`` along horizontal and vertical lines."""

    source: str
    target: str
    points: tuple[tuple[float, float], ...]
    label: str = ""
    weights: bool = False  #: dashed and without heads: nothing flows, the two boxes have the same weights
    both: bool = False  #: a head at either end


@dataclass(frozen=True)
class Diagram:
    """A picture as data, in inches. ``legend``: one more box for each kind in use."""

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    legend: tuple[Box, ...]
    width: float
    height: float

    def __getitem__(self, name: str) -> Box:
        for box in self.boxes:
            if box.name == name:
                return box
        raise AINNError(f"the diagram has no box {name!r}; it has {', '.join(box.name for box in self.boxes)}")


# -- the four figures -------------------------------------------------------------------------------------------------


def framework(model: AINN) -> Diagram:
    """The paper's framework figure: three ways from an image to a latent and back.

    (a) an autoencoder, analysis and synthesis with weights of their own; (b) an INN, the exact inverse, which
    quantization breaks; (c) this ``model``: its core both ways, with what makes the inverse an approximate one.
    """
    (c, M), C = _config_and_latent(model), _channels(model.levels[-1])
    sheet = _Sheet("A-INN against an autoencoder and an invertible network")

    def panel(row: int, name: str, heading: str, latent: int, parts: tuple[tuple, ...], *remark: str) -> None:
        chain = sorted([("x", "signal", "$x$", 0), ("Q", "rate", f"$Q$, AE, AD\n{latent} ×\n{_at(16)}", 4),
                        ("x_hat", "signal", r"$\hat{x}$", 9), *parts], key=lambda part: part[3])
        sheet.put(f"{name} heading", "heading", heading, *remark, row=row, col=0, to=9)
        for part, kind, text, col in chain:
            sheet.put(f"{name} {part}", kind, *text.split("\n"), row=row + 1, col=col)
        sheet.link(*(f"{name} {part}" for part, *_ in chain))

    panel(0, "autoencoder", "(a) autoencoder", M, (("g_a", "net", "$g_a$\nweights\n$\\theta$", 2),
                                                   ("g_s", "net", "$g_s$\nweights\n$\\phi$", 6)),
          "$g_s$ is trained to undo $g_a$; nothing ties their weights.")
    panel(3, "inn", "(b) invertible neural network", 3 * 4 ** len(model.levels),  # as many values as the image has
          (("f", "core", "$f$\nweights\n$\\theta$", 2), ("f inverse", "core", "$f^{-1}$\nweights\n$\\theta$", 6)),
          "$f^{-1}(f(x)) = x$ exactly; with $Q$ in between, $f^{-1}$ meets the noise $n = \\hat{y} - y$ unprepared.")
    couplings = sum(len(level.couplings) for level in model.levels)
    parts = [("F", "core", f"$F$\n{len(model.levels)} levels,\n{couplings} couplings\n{_millions(model.levels)}", 2),
             ("F inverse", "core", "$F^{-1}$\nthe same\nlevels,\nbackwards", 6)]
    parts += ([("FDSM-D", "fdsm", "FDSM-D\nlow, high", 1), ("FDSM-S", "fdsm", "FDSM-S\nmask $m$", 8)] if c.fdsm else
              [("FDSM-D", "off", "FDSM off\n$x_L = x_H = x$", 1), ("FDSM-S", "off", "FDSM off\nmean", 8)])
    if c.squeeze:
        parts += [("S", "fixed", f"squeeze $S$\n{2 * C} → {M}", 3),
                  ("CFRM", "cfrm", f"CFRM\n{M} → {2 * C}\n{_millions(model.cfrm)}", 5) if c.cfrm
                  else ("CFRM", "off", f"CFRM off\ncopy\n{M} → {2 * C}", 5)]
    learned = [name for name, on in (("CFRM", c.squeeze and c.cfrm), ("MS-CFRM", c.ms_cfrm), ("PDM", c.pdm != "none")) if on]
    remark = f"trained to make up for the loss: {', '.join(learned)}" if learned else "nothing makes up for the loss"
    panel(6, "ainn", "(c) A-INN, approximately invertible", M, tuple(parts),
          f"$g_s(\\hat{{y}}) \\approx x$; {remark}.", f"{_millions(model)} parameters in all.")
    if c.ms_cfrm:
        sheet.put("ainn MS-CFRM", "cfrm", "MS-CFRM", "our reading", _millions(model.ms_cfrm), row=8, col=4, to=5)
        sheet.link("ainn F inverse", "ainn MS-CFRM", route="vh", both=True)
    if c.pdm != "none":
        sheet.put("ainn PDM", "pdm", "PDM", _net_text(model.pdm[0][0].net)[0], _millions(model.pdm), row=8, col=7, to=8)
        sheet.link("ainn F inverse", "ainn PDM", route="vh", both=True)
    sheet.link("inn f", "inn f inverse", label="same weights", route="over", weights=True)
    sheet.link("ainn F", "ainn F inverse", label="same weights", route="over", weights=True)
    return sheet.finish()


def overview(model: AINN) -> Diagram:
    """The paper's overview figure: the whole codec, analysis down the left side, synthesis up the right side.

    Sizes are channels × height × width of what leaves a box. Dashed: a level and its inverse have the same weights.
    """
    c, M = _config_and_latent(model)
    sheet = _Sheet("Overview of A-INN", lanes={7: 0.1} if c.ms_cfrm else {})
    left, right = dict(col=0, to=1), dict(col=5, to=6)
    sheet.put("x", "signal", f"$x$: {_image(model)}", row=0, **left)
    sheet.put("x_hat", "signal", rf"$\hat{{x}}$: {_image(model)}", row=0, **right)
    encoder, decoder = ["x"], ["x_hat"]
    if c.input_offset:
        sheet.put("offset", "fixed", f"− {c.input_offset:g}", row=1, **left)
        sheet.put("offset back", "fixed", f"+ {c.input_offset:g}", row=1, **right)
        encoder, decoder = ["x", "offset"], ["x_hat", "offset back"]
    if c.fdsm:
        sheet.put("FDSM-D", "fdsm", "FDSM-D", "frequency decomposition", row=2, **left)
        sheet.put("FDSM-S", "fdsm", "FDSM-S", "synthesis with mask $m$", row=2, **right)
    else:
        sheet.put("FDSM-D", "off", "FDSM off", "$x_L = x_H = x$", row=2, **left)
        sheet.put("FDSM-S", "off", "FDSM off", r"$(\hat{x}_L + \hat{x}_H) / 2$", row=2, **right)
    sheet.link(*encoder, "FDSM-D")
    sheet.link("FDSM-S", *reversed(decoder))

    sheet.put("sizes", "note", "channels × height × width", "of one branch, leaving the box", row=2, col=2, to=4)
    above, above_back = "FDSM-D", ["FDSM-S", "FDSM-S"]
    for number, level in enumerate(model.levels, start=1):
        row, name, back, C = 4 * number, f"level {number}", f"inverse level {number}", _channels(level)
        fixed = "" if c.trainable_1x1[number - 1] else "fixed "
        sheet.put(name, "core", f"level {number}: {_size(C, 2**number)}", f"squeeze ×2, {fixed}1×1 conv {C} × {C}",
                  _couplings(level), row=row, **left)
        sheet.put(back, "core", f"inverse level {number}: {_size(C // 4, 2 ** (number - 1))}",
                  f"each step of level {number} inverted,", "in the opposite order", row=row, **right)
        for side in range(2):
            sheet.link(above, name, at=side, label=f"$x_{'LH'[side]}$" if number == 1 else "")
            sheet.link(back, above_back[side], at=5 + side, label=rf"$\hat{{x}}_{'LH'[side]}$" if number == 1 else "")
        sheet.link(name, back, label="same weights", weights=True)
        above, above_back = name, [back, back]
        if number < 4 and c.pdm != "none":  # what stands behind the inverse of the next level
            pair = model.pdm[3 - number]
            sheet.put(f"PDM {number + 1}", "note", f"PDM {number + 1}: $v + {STRENGTH:g}\\,"
                      + ("(v + \\mathrm{net}(v))$" if pair[0].skip else "\\mathrm{net}(v)$"), row=row + 1, col=2, to=4)
            for side, branch in enumerate(("low", "high")):
                kind, *widths = _net_text(pair[side].net)
                above_back[side] = f"PDM {number + 1} {branch}"
                sheet.put(above_back[side], "pdm", f"PDM {number + 1} {branch}: {kind}", *widths, row=row + 1, col=5 + side)
                sheet.link(above_back[side], back, at=5 + side)
        if number == 3 and c.ms_cfrm:
            block = model.ms_cfrm.low
            sheet.put("MS-CFRM", "cfrm", "MS-CFRM (our reading)", rf"on $v$, pixel-shuffled $\hat{{y}}$: {_inputs(block)}",
                      *_block_text(block), row=row + 2, **right)
            for side in range(2):
                sheet.link("MS-CFRM", above_back[side], at=5 + side)
            above_back = ["MS-CFRM", "MS-CFRM"]

    u = 2 * _channels(model.levels[-1])
    if c.squeeze:
        sheet.put("squeeze", "fixed", "channel squeeze $S$", f"mean over {u // M} groups: {u} → {M}", row=20, **left)
    else:
        sheet.put("squeeze", "off", "squeeze off", f"both branches, {u} channels", row=20, **left)
    if c.squeeze and c.cfrm:
        sheet.put("CFRM", "cfrm", f"CFRM: {_size(u // 2, 16)}", *_block_text(model.cfrm.low), row=20, **right)
    else:
        sheet.put("CFRM", "off", *(("CFRM off", rf"$\hat{{y}}$ copied to all {u // M} groups") if c.squeeze
                                   else ("squeeze off", r"$\hat{y}$ cut into its two branches")), row=20, **right)
    for side in range(2):
        sheet.link("level 4", "squeeze", at=side)
        sheet.link("CFRM", "inverse level 4", at=5 + side)
    _entropy_model(sheet, model, left, right)
    return sheet.finish()


def _entropy_model(sheet: "_Sheet", model: AINN, left: dict, right: dict) -> None:
    """The lowest part of the overview: from the squeezed latent to the quantized one, and the bits between."""
    (c, M), entropy = _config_and_latent(model), [m for m in model.entropy_parameters if isinstance(m, nn.Conv2d)]
    y, y_hat, q = ["squeeze"], ["CFRM"], ""
    if c.variable_rate:
        y, y_hat, q = ["squeeze", "gain"], ["CFRM", "inverse gain"], "_q"
        sheet.put("gain", "rate", "gain", "× $g(q)$ at quality $q$", row=21, **left)
        sheet.put("inverse gain", "rate", "inverse gain", "× $g$′$(q)$ at quality $q$", row=21, **right)
    sheet.put("y", "signal", f"$y{q}$: {_size(M, 16)}", row=22, **left)
    sheet.put("y_hat", "signal", rf"$\hat{{y}}{q}$: {_size(M, 16)}", row=22, **right)
    training = "noise" if c.quantization == "noise" else "straight-through"
    sheet.put("Q", "rate", "$Q$: round", "in training:", training, row=22, col=2)
    sheet.put("AE", "rate", "AE", "encode", row=22, col=3)
    sheet.put("AD", "rate", "AD", "decode", row=22, col=4)
    sheet.put("h_a", "rate", "hyper-analysis $h_a$", *_chain_text(model.h_a), row=23, **left)
    sheet.put("entropy parameters", "rate", "entropy parameters",
              " → ".join(str(n) for n in (entropy[0].in_channels, *(m.out_channels for m in entropy))),
              f"{_kernel(entropy[0])}: mean, scale", *(["+ bias($q$)"] if c.variable_rate else []), row=23, col=3, to=4)
    sheet.put("context", "rate", "context model", f"masked {_conv(model.context_prediction)}", row=23, **right)
    sheet.put("z coder", "rate", r"$z$: $Q$, AE, AD, $\hat{z}$", "factorized prior",
              _size(model.entropy_bottleneck.channels, 64), row=24, **left)
    sheet.put("h_s", "rate", "hyper-synthesis $h_s$", *_chain_text(model.h_s), row=24, col=3, to=4)
    sheet.link(*y, "y", "Q", "AE")
    sheet.link("AE", "AD", label="bits")
    sheet.link("AD", "y_hat", *reversed(y_hat))
    sheet.link("y", "h_a", "z coder", "h_s", "entropy parameters")
    sheet.link("entropy parameters", "AE")
    sheet.link("entropy parameters", "AD")
    sheet.link("y_hat", "context", "entropy parameters")
    if c.ms_cfrm:
        sheet.link("inverse gain" if c.variable_rate else "y_hat", "MS-CFRM", route="lane", at=7)


def cfrm(model: AINN) -> Diagram:
    """The paper's CFRM figure: the residual dense blocks that give both branches their channels back.

    With MS-CFRM on, its blocks stand beside them. With CFRM (or the squeeze) off: what stands in.
    """
    c, M = _config_and_latent(model)
    sheet = _Sheet("CFRM, the channel feature recovery module", lanes=dict.fromkeys((1, 4, 9, 12), 0.15))
    C = _channels(model.levels[-1])
    if c.ms_cfrm:
        sheet.put("heading", "heading", "(a) CFRM", row=0, col=0, to=5)
        sheet.put("MS heading", "heading", "(b) MS-CFRM, at a middle scale (our reading)", row=0, col=8, to=13)
    sheet.put("y_hat", "signal", rf"$\hat{{y}}$: {_size(M, 16)}", row=1, col=0, to=5)
    if not (c.squeeze and c.cfrm):
        sheet.put("copy", "off", *(("CFRM off", f"copied to all {2 * C // M} groups, {C // M} in each branch") if c.squeeze
                                   else ("squeeze off", f"cut into two halves of {C} channels")), row=4, col=0, to=5)
        sheet.link("y_hat", "copy")
    for side, branch in enumerate(("low", "high")):
        out = f"u {branch}"
        sheet.put(out, "signal", rf"$\hat{{u}}_{'LH'[side]}$: {_size(C, 16)}", row=99, col=3 * side, to=3 * side + 2)
        if c.squeeze and c.cfrm:
            _dense_block(sheet, getattr(model.cfrm, branch), branch, "y_hat", 3 * side)
            sheet.link(f"{branch} sum", out)
        else:
            sheet.link("copy", out, at=3 * side + 1)
        if c.ms_cfrm:
            block, col, name = getattr(model.ms_cfrm, branch), 8 + 3 * side, f"MS {branch}"
            v, shuffled = block.fuse.out_channels, _inputs(block) - block.fuse.out_channels
            if side == 0:
                sheet.put("y shuffled", "signal", rf"$y$′: {_size(shuffled, 8)}, pixel-shuffled $\hat{{y}}$",
                          row=1, col=8, to=13)
            sheet.put(f"{name} v", "signal", f"$v_{'LH'[side]}$", f"{v} ×", _at(8), row=2, col=col + 2)
            sheet.put(f"{name} in", "fixed", f"concat: {v} + {shuffled}", row=3, col=col, to=col + 1)
            sheet.put(f"{name} out", "signal", f"$v_{'LH'[side]}$′: {_size(v, 8)}", row=99, col=col, to=col + 2)
            sheet.link("y shuffled", f"{name} in", at=col)
            sheet.link(f"{name} v", f"{name} in", route="hv", at=col + 1)
            _dense_block(sheet, block, name, f"{name} in", col)
            sheet.link(f"{name} v", f"{name} sum", at=col + 2)
            sheet.link(f"{name} sum", f"{name} out")
    return sheet.finish()


def _dense_block(sheet: "_Sheet", block: ResidualDenseBlock, name: str, source: str, col: int) -> None:
    """A residual dense block below ``source``: convolutions in ``col``, the way past them in the next, skip in the third."""
    above = source
    for i, conv in enumerate(block.layers, start=1):
        sheet.put(f"{name} conv {i}", "cfrm", *_lines(conv), "ReLU", row=2 * i + 2, col=col)
        sheet.put(f"{name} concat {i}", "fixed", f"concat: {conv.in_channels} + {conv.out_channels}",
                  row=2 * i + 3, col=col, to=col + 1)
        sheet.link(above, f"{name} conv {i}", f"{name} concat {i}", at=col)
        sheet.link(above, f"{name} concat {i}", at=col + 1)
        above = f"{name} concat {i}"
    sheet.put(f"{name} fuse", "cfrm", *_lines(block.fuse), *(["starts at 0"] if block.skip is None else []), row=97, col=col)
    sheet.put(f"{name} sum", "fixed", "+", row=98, col=col, to=col + 2)
    sheet.link(above, f"{name} fuse", f"{name} sum", at=col)
    if block.skip is not None:
        sheet.put(f"{name} skip", "cfrm", *_lines(block.skip), row=97, col=col + 2)
        sheet.link(source, f"{name} skip", f"{name} sum", at=col + 2)


def fdsm(model: AINN) -> Diagram:
    """The paper's FDSM figure: decomposition into the two branches, and synthesis with the mask net. Off: what stands in."""
    (c, _), image = _config_and_latent(model), _image(model)
    sheet = _Sheet("FDSM, the frequency decomposition and synthesis module",
                   lanes={0: 0.15, 2: 0.62, 4: 0.15, 5: 0.15, 6: 0.2})
    sheet.put("D heading", "heading", "(a) FDSM-D", row=0, col=0, to=5)
    sheet.put("S heading", "heading", "(b) FDSM-S", row=0, col=7, to=8)
    sheet.put("x", "signal", f"$x$: {image}", row=1, col=0, to=5)
    sheet.put("x_L", "signal", f"$x_L$: {image}", row=9, col=0, to=2)
    sheet.put("x_H", "signal", f"$x_H$: {image}", row=9, col=3, to=5)
    top, blend = ["x"], ["x_hat"]
    if c.input_offset:
        sheet.put("offset", "fixed", f"− {c.input_offset:g}", row=2, col=0, to=5)
        sheet.put("offset back", "fixed", f"+ {c.input_offset:g}", row=2, col=8)
        sheet.link("x", "offset")
        top, blend = ["offset"], ["offset back", "x_hat"]
    sheet.put("x_hat", "signal", rf"$\hat{{x}}$: {image}", row=1, col=8)
    sheet.put("branches", "signal", r"$\hat{x}_L$, $\hat{x}_H$", f"{image} each", row=3, col=7)
    if not c.fdsm:
        sheet.put("copy", "off", "FDSM off", "$x_L = x_H = x$", row=3, col=0, to=5)
        sheet.link(*top, "copy")
        sheet.link("copy", "x_L")
        sheet.link("copy", "x_H")
        sheet.put("mean", "off", "FDSM off", r"$(\hat{x}_L + \hat{x}_H) / 2$", row=3, col=8)
        sheet.link("branches", "mean", *blend)
        return sheet.finish()

    top = top[0]
    for col, k in enumerate(POOLS, start=1):
        sheet.put(f"pool {k}", "fixed", "average", f"pool {k}×{k}", row=3, col=col)
        sheet.link(top, f"pool {k}", "pools", at=col)
    sheet.put("pools", "fixed", f"concat: {3 * len(POOLS)} channels", row=4, col=1, to=3)
    sheet.put("minus", "fixed", "$x$ − each of them", row=5, col=3, to=4)
    sheet.link("pools", "minus", at=3)
    sheet.link(top, "minus", at=4)
    for branch, path, above, col, lane in (("L", model.fdsm_d.low, "pools", 1, 0), ("H", model.fdsm_d.high, "minus", 3, 5)):
        sheet.put(f"conv {branch}", "fdsm", *_lines(path.conv1x1), f"LeakyReLU {path.activation.negative_slope:g}",
                  row=6, col=col)
        convs = [m for m in path.block.modules() if isinstance(m, nn.Conv2d)]
        sheet.put(f"block {branch}", "fdsm", "residual block", f"{len(convs)} × {_kernel(convs[0])},",
                  f"{convs[0].in_channels} → {convs[-1].out_channels}", row=7, col=col)
        sheet.put(f"sum {branch}", "fixed", "+", row=8, col=min(col, lane), to=max(2, lane))
        sheet.link(above, f"conv {branch}", f"block {branch}", f"sum {branch}", at=col)
        sheet.link(top, f"sum {branch}", at=lane)
        sheet.link(f"sum {branch}", f"x_{branch}")

    mask = model.fdsm_s.masknet
    sheet.put("blend", "fixed", r"$m\,\hat{x}_L + (1 - m)\,\hat{x}_H$", row=3, col=8)
    sheet.put("concat", "fixed", f"concat: {mask.down[0].in_channels} channels", row=4, col=7)
    sheet.put("mask", "fdsm", _conv(mask.out), "sigmoid", f"$m$: {_size(mask.out.out_channels, 1)}", row=4, col=8)
    sheet.link("branches", "blend", *blend)
    sheet.link("branches", "concat")
    for i, (down, up) in enumerate(zip(mask.down, reversed(mask.up), strict=True)):
        sheet.put(f"down {i}", "fdsm", _conv(down), "ReLU", _size(down.out_channels, 2**i), row=5 + i, col=7)
        sheet.put(f"up {i}", "fdsm", "concat, " + _conv(up), "ReLU", _size(up.out_channels, 2**i), row=5 + i, col=8)
        sheet.link(f"down {i - 1}" if i else "concat", f"down {i}", label="max-pool 2" if i else "")
        sheet.link(f"up {i}", f"up {i - 1}" if i else "mask", label="bilinear ×2" if i else "")
        sheet.link(f"down {i}", f"up {i}", label="skip")
    sheet.put("bottleneck", "fdsm", _conv(mask.bottleneck), "ReLU", _size(mask.bottleneck.out_channels, 2 ** len(mask.down)),
              row=8, col=7, to=8)
    sheet.link(f"down {i}", "bottleneck", label="max-pool 2", at=7)
    sheet.link("bottleneck", f"up {i}", label="bilinear ×2", at=8)
    sheet.link("mask", "blend", label="$m$")
    return sheet.finish()


# -- words read from the modules --------------------------------------------------------------------------------------


def _at(factor: int) -> str:
    return "H × W" if factor == 1 else f"H/{factor} × W/{factor}"


def _size(channels: int, factor: int) -> str:
    return f"{channels} × {_at(factor)}"


def _image(model: AINN) -> str:
    return _size(_channels(model.levels[0]) // 4, 1)


def _kernel(conv: nn.Conv2d) -> str:
    return f"conv {conv.kernel_size[0]}×{conv.kernel_size[1]}"


def _lines(conv: nn.Conv2d) -> tuple[str, str]:
    return _kernel(conv), f"{conv.in_channels} → {conv.out_channels}"


def _conv(conv: nn.Conv2d) -> str:
    return ": ".join(_lines(conv))


def _millions(module: nn.Module) -> str:
    millions = count_parameters(module) / 1e6
    return f"{millions:.1f} M" if millions >= 1 else f"{millions:.2f} M"


def _channels(level: Level) -> int:
    return level.conv1x1.weight.shape[0]


def _config_and_latent(model: AINN) -> tuple[AINNConfig, int]:
    if not isinstance(model, AINN):
        raise AINNError(f"a figure is drawn of an AINN, got {type(model).__name__}")
    return model.config, model.context_prediction.in_channels


def _inputs(block: ResidualDenseBlock) -> int:
    return block.fuse.in_channels - sum(conv.out_channels for conv in block.layers)


def _couplings(level: Level) -> str:
    if not level.couplings:
        return "no couplings"
    n, half = len(level.couplings), level.couplings[0].from_b
    conv = (half.net if half.shared else half.G)[0]
    nets = "joint nets" if half.shared else "nets $G$, $H$"
    return f"{n} coupling{'s' * (n > 1)}, {nets} {conv.kernel_size[0]}×{conv.kernel_size[1]}, {conv.out_channels} wide"


def _block_text(block: ResidualDenseBlock) -> tuple[str, ...]:
    n = len(block.layers)
    dense = [f"{n} × {_kernel(block.layers[0])}, growth {block.layers[0].out_channels}"] if n else []
    return (*dense, _conv(block.fuse), *([f"+ skip {_conv(block.skip)}"] if block.skip is not None else []))


def _net_text(net: nn.Module) -> tuple[str, ...]:
    """The net of one PDM: its kind, then its widths."""
    if isinstance(net, UNet):
        down, up = ([[m for m in block if isinstance(m, nn.Conv2d)][-1].out_channels for block in part]
                    for part in ((net.inc, *net.down), net.up))
        return "U-Net", ", ".join(map(str, down)), "up " + ", ".join(map(str, up))
    inner = next(m for m in net.blocks.modules() if isinstance(m, nn.Conv2d)).out_channels
    return ("dense" if isinstance(net.blocks[0], DenseBlock) else "residual",
            f"{len(net.blocks)} blocks", f"{net.first.out_channels} wide, {inner} inside")


def _chain_text(chain: nn.Module) -> tuple[str, str]:
    """Hyper-analysis or -synthesis: its convolutions, the channels in and out, and its change of scale."""
    convs = [m for m in chain.modules() if isinstance(m, nn.Conv2d)]
    ups = sum(isinstance(m, nn.PixelShuffle) for m in chain.modules())
    downs = sum(m.stride[0] == 2 for m in convs)
    return (f"{len(convs)} × {_kernel(convs[0])}, size {f'× {2**ups}' if ups else f'/ {2**downs}'}",
            f"{convs[0].in_channels} → {convs[-1].out_channels}")


# -- layout: boxes in the cells of a grid as large as their text, arrows between them ---------------------------------


@lru_cache(maxsize=None)
def _width(line: str, bold: bool = False, size: float = FONT) -> float:
    with plt.style.context(STYLE):
        font = FontProperties(weight="bold" if bold else "normal", size=size)
        return text_to_path.get_text_width_height_descent(line, font, ismath="$" in line)[0] * POINT


class _Sheet:
    """Collects boxes (row, columns) and arrows (names), then places them. Rows and columns without a box take no room."""

    def __init__(self, title: str, lanes: dict[int, float] | None = None):
        self.title, self.lanes = title, lanes or {}  #: least widths of columns that are there for arrows
        self.cells: dict[str, tuple] = {}
        self.links: list[tuple] = []

    def put(self, name: str, kind: str, *lines: str, row: int, col: int, to: int | None = None) -> None:
        self.cells[name] = (kind, lines, row, col, col if to is None else to)

    def link(self, *names: str, label: str = "", at: int | None = None, route: str = "", weights: bool = False,
             both: bool = False) -> None:
        """Arrows along the chain of boxes. ``at``: the column in whose middle a vertical one runs."""
        self.links += [(a, b, label, at, route, weights, both) for a, b in zip(names, names[1:], strict=False)]

    def finish(self) -> Diagram:
        sizes = {name: (2 * PAD + max(_width(t, _bold(kind, i)) for i, t in enumerate(lines)), 2 * PAD + LINE * len(lines))
                 for name, (kind, lines, *_) in self.cells.items()}
        gap_x, gap_y = self._gaps()
        rows, columns = set(), set()
        for _, _, row, col, to in self.cells.values():
            rows.add(row)
            columns.update(range(col, to + 1))
        columns = sorted(columns | {at for *_, at, route, _, _ in self.links if route == "lane"})
        widths, heights = {col: self.lanes.get(col, 0.0) for col in columns}, dict.fromkeys(sorted(rows), 0.0)
        spans = sorted(self.cells.items(), key=lambda item: item[1][4] - item[1][3])  # narrow ones decide first
        for name, (kind, _, row, col, to) in spans:
            heights[row] = max(heights[row], sizes[name][1])
            inside = [k for k in range(col, to + 1) if k in widths]
            room = sum(widths[k] for k in inside) + sum(gap_x.get(k, SIDE) for k in inside[:-1])
            stretch = [k for k in inside if k not in self.lanes] or inside
            for k in stretch:
                widths[k] += max(0, sizes[name][0] - room) / len(stretch)
        left, x = {}, MARGIN
        for k in columns:
            left[k], x = x, x + widths[k] + gap_x.get(k, SIDE)
        top, y = {}, MARGIN
        for k in heights:
            y += gap_y.get(k, GAP) - GAP
            top[k], y = y, y + heights[k] + GAP
        boxes = {}
        for name, (kind, lines, row, col, to) in self.cells.items():
            width, height = sizes[name] if kind == "heading" else (left[to] + widths[to] - left[col], sizes[name][1])
            boxes[name] = Box(name, lines, kind, left[col], top[row] + (heights[row] - height) / 2, width, height)
        arrows = tuple(Arrow(a, b, _way(boxes[a], boxes[b], route, None if at is None else left[at] + widths[at] / 2),
                             label, weights, both) for a, b, label, at, route, weights, both in self.links)
        right = x - SIDE
        legend, x = [], MARGIN
        for kind in (k for k, (label, _) in KINDS.items() if label and any(box.kind == k for box in boxes.values())):
            width = _width(KINDS[kind][0]) + 2 * PAD
            if x + width > right:
                x, y = MARGIN, y + LINE + 3 * PAD
            legend.append(Box(f"legend {kind}", (KINDS[kind][0],), kind, x, y, width, LINE + 2 * PAD))
            x += width + PAD
        return Diagram(self.title, tuple(boxes.values()), arrows, tuple(legend), right + MARGIN, y + LINE + 2 * PAD + MARGIN)

    def _gaps(self) -> tuple[dict[int, float], dict[int, float]]:
        """Wider gaps where an arrow needs them: for its label after a column, for its way over the boxes above a row."""
        gap_x, gap_y = {}, {}
        for a, b, label, _, route, _, _ in self.links:
            (_, _, row, _, to), (_, _, row_b, _, to_b) = self.cells[a], self.cells[b]
            if route == "over":
                gap_y[row] = GAP + 2 * LINE
            elif label and row == row_b:
                between = min(to, to_b)
                gap_x[between] = max(gap_x.get(between, SIDE), _width(label, size=SMALL) + SIDE)
        return gap_x, gap_y


def _way(a: Box, b: Box, route: str, at: float | None) -> tuple[tuple[float, float], ...]:
    """Corners of an arrow from a to b: straight where the boxes face each other, else as ``route`` says."""
    (ax, ay), (bx, by) = a.centre, b.centre
    if route == "over":  # up, along, down
        y = min(a.y, b.y) - GAP
        return (ax, a.y), (ax, y), (bx, y), (bx, b.y)
    if route == "lane":  # along the column ``at`` to the right of both
        return (a.x + a.width, ay), (at, ay), (at, by), (b.x + b.width, by)
    if route == "hv":  # sideways, then down
        return (a.x if at < ax else a.x + a.width, ay), (at, ay), (at, b.y)
    if route == "vh":  # down, then sideways
        return (ax, a.y + a.height), (ax, by), (b.x if ax < bx else b.x + b.width, by)
    low, high = max(a.x, b.x), min(a.x + a.width, b.x + b.width)
    if low < high:
        x = (low + high) / 2 if at is None else at
        return ((x, a.y + a.height), (x, b.y)) if a.y < b.y else ((x, a.y), (x, b.y + b.height))
    y = (max(a.y, b.y) + min(a.y + a.height, b.y + b.height)) / 2
    return ((a.x + a.width, y), (b.x, y)) if a.x < b.x else ((a.x, y), (b.x + b.width, y))


def _bold(kind: str, line: int) -> bool:
    return line == 0 and kind not in ("note", "signal", "fixed")


# -- drawing ----------------------------------------------------------------------------------------------------------


def draw(diagram: Diagram) -> Figure:
    """Paint a diagram (what `framework`, `overview`, `cfrm` or `fdsm` returned) at its natural size; returns the figure."""
    with plt.style.context(STYLE):
        figure = plt.figure(figsize=(diagram.width, diagram.height))
        figure.set_layout_engine("none")  # constrained layout is for plots; savefig forgets a layout="none"
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, diagram.width), ylim=(diagram.height, 0), aspect="equal")
        ax.axis("off")
        for arrow in diagram.arrows:
            style = "<|-|>" if arrow.both else "-" if arrow.weights else "-|>"
            ax.add_patch(FancyArrowPatch(
                path=Line(arrow.points), arrowstyle=style, mutation_scale=6, shrinkA=0, shrinkB=0, color="#222222",
                linewidth=0.7, linestyle="--" if arrow.weights else "-"))
            if arrow.label:
                (x0, y0), (x1, y1) = max(zip(arrow.points, arrow.points[1:], strict=False),
                                           key=lambda part: abs(part[1][0] - part[0][0]) + abs(part[1][1] - part[0][1]))
                upright = x0 == x1
                ax.text((x0 + x1) / 2 + 0.04 * upright, (y0 + y1) / 2 - 0.02 * (not upright), arrow.label, gid="label",
                        fontsize=SMALL, ha="left" if upright else "center", va="center" if upright else "bottom")
        for box in (*diagram.boxes, *diagram.legend):
            _draw_box(ax, box)
    return figure


def _draw_box(ax: Axes, box: Box) -> None:
    name, colour = KINDS[box.kind]
    if name:
        ax.add_patch(FancyBboxPatch(
            (box.x + CORNER, box.y + CORNER), box.width - 2 * CORNER, box.height - 2 * CORNER,
            boxstyle=f"round,pad={CORNER}", facecolor=to_rgba(colour, 0.3), linewidth=0.9,
            edgecolor="#555555" if colour == "#FFFFFF" else colour, linestyle="--" if box.kind == "off" else "-"))
    for i, line in enumerate(box.lines):
        left = box.kind == "heading"
        ax.text(box.x + PAD if left else box.centre[0], box.y + PAD + (i + 0.5) * LINE, line, gid=box.name,
                fontsize=FONT, ha="left" if left else "center", va="center",
                fontweight="bold" if _bold(box.kind, i) and "legend" not in box.name else "normal")


def save_figures(model: AINN, folder: str | Path) -> list[Path]:
    """Write the four figures of ``model``, each as PNG and as PDF; returns the files.

    Raises:
        AINNError: when the folder cannot be written to.
    """
    files = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for number, figure in enumerate((framework, overview, cfrm, fdsm), start=1):
            diagram, pixels, name = figure(model), BytesIO(), f"fig{number}_{figure.__name__}"
            painted = draw(diagram)
            files += [Path(folder, f"{name}.png"), Path(folder, f"{name}.pdf")]
            with plt.style.context(STYLE):  # it also says how text gets into a PDF
                painted.savefig(pixels, format="png")
                # undated, so that the same network gives the same bytes
                painted.savefig(files[-1], metadata={"Title": diagram.title, "CreationDate": None})
            plt.close(painted)
            with Image.open(pixels) as image:  # flat colours: a palette saves two thirds
                image.convert("RGB").quantize(256).save(files[-2], dpi=image.info["dpi"], optimize=True)
    except OSError as error:
        raise AINNError(f"cannot write figures to {folder}: {error}") from None
    return files
