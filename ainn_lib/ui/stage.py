"""Pictures on a page, with or without a kernel: what ``stage.js`` shows.

A view is a dict that JSON can hold; the head of ``stage.js`` lists its keys.
"""

import base64
import html
import io
import json
import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import anywidget
import matplotlib
import numpy as np
import traitlets
from matplotlib.figure import Figure
from PIL import Image

from ..paths import PACKAGE

SCRIPT = PACKAGE / "ui" / "stage.js"
QUICK = {"method": 0, "quality": 0}  #: of lossless WebP, while somebody waits
SMALL = {"method": 4, "quality": 80}


class Scale(NamedTuple):
    """The fixed colours of a map, the same for every picture that has them."""

    colours: str  #: matplotlib's name
    largest: float  #: value of the last colour
    low: str  #: what the first colour is, in words
    high: str  #: what the last one is
    smallest: float = 0.0  #: value of the first colour


ERRORS = Scale("magma", 0.15, "0", "0.15 of full scale, or more")
BITS = Scale("cividis", 512, "0 bits", "512 bits, or more")
DIFFERENCES = Scale("RdBu_r", 0.05, "0.05 less", "0.05 of full scale more", -0.05)  #: of errors


class Picture(NamedTuple):
    """A picture with its title; of a map, with its colours."""

    title: str
    image: Image.Image  #: RGB
    words: str = ""  #: below the title, such as its size
    pixels: bool = True  #: a photo or a map: drawn at a whole multiple of its size
    scale: Scale | None = None


def coloured(values: np.ndarray, scale: Scale, size: tuple[int, int]) -> Image.Image:
    """A map (h, w) in the colours of its scale, each value a rectangle; ``size`` in pixels."""
    share = (np.asarray(values) - scale.smallest) / (scale.largest - scale.smallest)
    rgb = matplotlib.colormaps[scale.colours](np.clip(share, 0, 1), bytes=True)[..., :3]
    return Image.fromarray(np.ascontiguousarray(rgb)).resize(size, Image.Resampling.NEAREST)


def drawn(figure: Figure) -> Image.Image:
    """A figure as a picture, with at least 100 pixels an inch."""
    figure.set_dpi(max(figure.dpi, 100))
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def pictures_of(figure: Figure | list[Picture]) -> list[Picture]:
    """The pictures of a figure that was made of some, else the figure as one."""
    if isinstance(figure, Figure):
        return getattr(figure, "pictures", None) or [Picture("", drawn(figure), pixels=False)]
    return figure


def address(data: bytes, kind: str) -> str:
    """Bytes as an address that holds them.

    >>> address(b"abc", "text/plain")
    'data:text/plain;base64,YWJj'
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def packed(image: Image.Image, effort: dict = QUICK) -> bytes:
    """An image as a lossless WebP."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", lossless=True, **effort)
    return buffer.getvalue()


@cache
def _bar(scale: Scale) -> dict[str, str]:
    ramp = np.linspace(scale.smallest, scale.largest, 128)[None]
    return {"src": address(packed(coloured(ramp, scale, (128, 1))), "image/webp"),
            "low": scale.low, "high": scale.high}


def frame(pictures: Iterable[Picture], words: str = "", label: str = "",
          effort: dict = QUICK) -> dict:
    """One position of a slider: pictures, and words in Markdown."""
    shown = [{"title": p.title, "src": address(packed(p.image, effort), "image/webp"),
              "words": p.words, "pixels": p.pixels, "scale": p.scale and _bar(p.scale)}
             for p in pictures]
    return {"label": label, "pictures": shown, "words": as_html(words)}


def as_html(words: str) -> str:
    r"""The little Markdown that explorers write: bold, formulas as they stand, tables, paragraphs.

    >>> as_html("**1 < 2** dB")
    '<p><b>1 &lt; 2</b> dB</p>'
    >>> as_html("| a | b |\n|---|---|\n| 1 | 2 |")
    '<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>'
    """
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(words, quote=False))
    return "".join(_table(block) if block.startswith("|") else f"<p>{block}</p>"
                   for block in text.split("\n\n") if block)


def _table(block: str) -> str:
    rows, kind = "", "th"
    for line in block.splitlines():
        if set(line) <= set("|-: "):
            continue
        cells = line.strip("| ").split("|")
        rows += "<tr>" + "".join(f"<{kind}>{cell.strip()}</{kind}>" for cell in cells) + "</tr>"
        kind = "td"
    return f"<table>{rows}</table>"


class Stage(anywidget.AnyWidget):
    """A view that the kernel feeds."""

    _esm = SCRIPT
    view = traitlets.Dict({"frames": []}).tag(sync=True)
    busy = traitlets.Unicode("").tag(sync=True)  #: what is being done
    stoppable = traitlets.Bool(False).tag(sync=True)  #: a button ends it
    stops = traitlets.Int(0).tag(sync=True)  #: how often that was pressed


def script() -> str:
    """``stage.js`` for a plain ``<script>``, in which nothing is imported or exported."""
    return SCRIPT.read_text(encoding="utf-8").replace("export default {render};", "")


def as_json(value: object) -> str:
    """JSON that may stand in a ``<script>``: no sign of it ends one."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def static_page(view: dict, words: str) -> str:
    """HTML with all frames of a view; ``words`` are for readers without scripts.

    A picture that stands in several frames is stored once: its src is a number.
    """
    sources: dict[str, int] = {}
    frames = [{**one, "pictures": [{**p, "src": sources.setdefault(p["src"], len(sources))}
                                   for p in one["pictures"]]} for one in view["frames"]]
    view = {**view, "frames": frames, "sources": list(sources)}
    return (f'<div class="ainn-stage">{as_html(words)}</div>\n<script>(() => {{\n'
            f"const root = document.currentScript.previousElementSibling;\n{script()}"
            f"present(root, {as_json(view)});\n}})();</script>")


def side_by_side(pictures: list[Picture]) -> Image.Image:
    """Pictures in one row, 8 pixels apart, on white: what a page without scripts shows."""
    images = [picture.image for picture in pictures]
    width = sum(image.width for image in images) + 8 * (len(images) - 1)
    row, left = Image.new("RGB", (width, max(image.height for image in images)), "white"), 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + 8
    return row
