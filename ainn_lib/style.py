"""The look of figures and tables: one matplotlib style, one title and one colour for each codec."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import matplotlib.style

from .paths import STYLE

# Okabe and Ito's colours, distinguishable with any kind of colour vision. The yellow is darkened:
# theirs is too light for a line on white.
BLUE = "#0072B2"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#C9A800"
ORANGE = "#E69F00"
RED = "#D55E00"
PURPLE = "#CC79A7"
BLACK = "#000000"

# Codec -> title, colour. A measured codec and the published numbers of its standard share a colour
# and differ in line style. Traditional codecs stand from simple to strong.
_TRADITIONAL = {
    "jpeg": ("JPEG", "#999999"),
    "jpeg444": ("JPEG 4:4:4", "#666666"),
    "jpegbest": ("the better JPEG", "#333333"),
    "jpeg2000": ("JPEG 2000", YELLOW),
    "jpeg2000rate": ("JPEG 2000, fixed rate", "#8B7500"),
    "webp": ("WebP", SKY),
    "jpegxl": ("JPEG XL", PURPLE),
    "avif": ("AVIF 4:4:4", ORANGE),
    "av1": ("AV1", ORANGE),
    "hevc": ("HEVC intra 4:4:4 (x265)", GREEN),
    "bpg_444_x265_ycbcr": ("BPG 4:4:4", GREEN),
    "hm": ("HM", "#117733"),
    "vvc": ("VVC intra 4:2:0 (VVenC)", BLUE),
    "vtm": ("VTM", BLUE),
}
_LEARNED = {
    "compressai-bmshj2018-factorized_mse_cuda": ("Factorized (2018)", "#999999"),
    "compressai-bmshj2018-hyperprior_mse_cuda": ("Hyperprior (2018)", SKY),
    "compressai-mbt2018-mean_mse_cuda": ("Mean-scale (2018)", YELLOW),
    "compressai-mbt2018_mse_cuda": ("Joint (2018)", "#7F4F24"),
    "compressai-cheng2020-anchor_mse_cuda": ("Cheng anchor (2020)", GREEN),
    "compressai-cheng2020-attn_mse_cuda": ("Cheng attention (2020)", "#332288"),
    "invcompress2021-mse": ("InvCompress (2021)", PURPLE),
    "paper-elic2022_mse": ("ELIC (2022)", BLUE),
    "msinn2025-vbr": ("MSINN (2025)", "#882255"),
}
_OURS = {
    "tiny": ("A-INN tiny (ours)", "#F08A6B"),
    "student": ("A-INN student (ours)", RED),
    "ainn-authors": ("A-INN (authors)", BLACK),
}
# The same networks, trained for MS-SSIM in place of the squared error.
_FOR_MS_SSIM = {
    name.replace("_mse", "_ms-ssim"): look for name, look in _LEARNED.items() if "_mse" in name
}

LOOK: dict[str, tuple[str, str]] = _TRADITIONAL | _LEARNED | _OURS | _FOR_MS_SSIM
TRADITIONAL = tuple(_TRADITIONAL)
LEARNED = (*_LEARNED, *_FOR_MS_SSIM)
OURS = tuple(_OURS)
NOT_COMPARABLE = ("jpeg2000rate",)  #: a fixed rate per image: never drawn or ranked with the others


def figure_style() -> AbstractContextManager:
    """The project's matplotlib style, for a ``with`` block.

    >>> with figure_style():
    ...     matplotlib.rcParams["axes.spines.top"]
    False
    """
    return matplotlib.style.context(STYLE)


def notebook_style(formats: tuple[str, ...] = ("png",)) -> None:
    """Set up a notebook: the project's style, 110 dots an inch, pictures without loss.

    Args:
        formats: "png", or "svg" for lines alone.
    """
    from IPython import get_ipython

    matplotlib.style.use(STYLE)
    matplotlib.rcParams["figure.dpi"] = 110
    if shell := get_ipython():
        shell.run_line_magic("matplotlib", "inline")
        shell.run_line_magic("config", f"InlineBackend.figure_formats = {list(formats)}")


def table(header: Iterable[object], rows: Iterable[Iterable[object]], fold: bool = True) -> str:
    """A table as Markdown; with ``fold``, one of more than ten rows is opened by a click.

    >>> print(table(["codec", "dB"], [["JPEG", 31.5]]))
    | codec | dB |
    |---|---|
    | JPEG | 31.5 |
    """
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (list(header), *rows)]
    text = "\n".join([lines[0], "|" + "---|" * (lines[0].count(" | ") + 1), *lines[1:]])
    if not fold or len(lines) <= 11:
        return text
    summary = f"<summary>A table of {len(lines) - 1} rows</summary>"
    return f"<details>{summary}\n\n{text}\n\n</details>"


def show_table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Show a `table` under a notebook's cell."""
    from IPython.display import Markdown, display

    display(Markdown(table(header, rows)))
