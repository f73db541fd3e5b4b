"""The dashboard: every explorer on one page, for one photo and one network. ``make app`` starts it.

`EXPLORERS` is the list of what is on it; `dashboard` gives it a face; ``python -m ainn_lib.app`` serves that with Voila.
"""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from html import escape
from pathlib import Path

import ipywidgets
import torch
from ipywidgets import Dropdown, FloatSlider, IntSlider, SelectionSlider
from matplotlib.figure import Figure
from PIL import Image

from . import complexity, curves, data, inside, widgets
from .context import wavefront
from .errors import AINNError
from .model import AINN
from .weights import available, load_pretrained

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "app.ipynb"
LARGEST_MESSAGE = 2**28  #: bytes; a photo is uploaded as one message, and many have more than the server's own 10 MiB
OWN = "your own"
CORNERS = {"astronaut": (150, 0), "chelsea": (96, 22), "coffee": (180, 100), "rocket": (20, 0)}  #: left, top of a crop
LATENT = (16, 16)
STEPS = [(f"{2 ** (k / 2):.2g}", 2 ** (k / 2)) for k in range(-4, 7)]
STYLE = """<style>
.ainn-page { max-width: 900px; margin: 0 auto; padding: 0 16px 32px; overflow: hidden; }
.ainn-page h1 { margin: 12px 0 2px; font-size: 26px; }
.ainn-page p { margin: 2px 0 8px; line-height: 1.45; }
.ainn-page .lm-TabBar-content { flex-wrap: wrap; }
.ainn-page .lm-TabBar-tab { flex: 0 0 auto !important; }
.ainn-page .jp-OutputArea-output img { max-width: 100%; }
.ainn-page .jp-OutputArea-prompt { display: none; }
.ainn-page .jp-RenderedHTMLCommon table { margin: 4px 0; }
</style>"""
HEAD = f"""{STYLE}<h1>A-INN Lab</h1><p>A neural network that compresses photos; its decoder is nearly the inverse of its
encoder. Move a slider, by mouse or with the arrow keys. Every size is that of real bytes.</p>"""


class Material:
    """One photo and one network, and what the explorers need of them, made once for a quality."""

    def __init__(self, photo: Image.Image, model: AINN):
        self.photo, self.model = photo, model
        self.coded = lru_cache(maxsize=32)(lambda quality: inside.coded(model, photo, quality))
        self.maps = lru_cache(maxsize=32)(lambda quality: inside.frequency_maps(model, photo, quality))
        self.decoded = lru_cache(maxsize=32)(self._decode)

    @torch.no_grad()
    def _decode(self, quality: float) -> Image.Image:
        return Image.fromarray(inside.picture(self.model.g_s(self.coded(quality).y_hat)))


@dataclass(frozen=True)
class Entry:
    """One explorer of the dashboard."""

    title: str
    words: str  #: what it shows
    function: Callable[..., tuple[Figure, object]]  #: of a `Material` and one keyword for each control
    controls: Callable[[], dict[str, ipywidgets.Widget]]  #: makes them


def _number(value: float, low: float, high: float, step: float, **more: object) -> FloatSlider:
    return FloatSlider(value=value, min=low, max=high, step=step, continuous_update=False, **more)


def _quality(value: float = 4) -> FloatSlider:
    return _number(value, 1, 8, 0.25, description="quality")


def _wipe(m: Material, quality: float, position: float, height: float, zoom: int) -> tuple[Figure, object]:
    return widgets.at_wipe(m.photo, m.decoded(quality), m.coded(quality).bytes, position, zoom, 1 - height)


@lru_cache
def _curves() -> list[curves.Curve]:
    return [*curves.measured(), *curves.published()]


def _chooser() -> dict[str, ipywidgets.Widget]:
    codecs = [(title, name) for name, (title, _) in curves.LOOK.items() if any(c.codec == name for c in _curves())]
    chosen = [name for name in ("jpeg", "webp", "avif", "tiny", "student") if name in dict(codecs).values()]
    return {"dataset": Dropdown(options=sorted({c.dataset for c in _curves()}), value="kodak", description="data set"),
            "metric": Dropdown(options=[("PSNR", "psnr"), ("MS-SSIM", "ms-ssim")]),
            "axis": Dropdown(options=["linear", "log"]),
            "codecs": ipywidgets.SelectMultiple(options=codecs, value=chosen, rows=6)}


EXPLORERS = (
    Entry("Quality", "One network, every rate: a better quality spends more bits, most of them where the picture is busy.",
          lambda m, quality: widgets.at_quality(m.photo, m.model, quality), lambda: {"quality": _quality()}),
    Entry("Wipe", "The original left of the line, the decoded file right of it. Zoom in and move about.", _wipe,
          lambda: {"quality": _quality(2), "position": _number(0.5, 0, 1, 0.02), "height": _number(0.5, 0, 1, 0.05),
                     "zoom": Dropdown(options=[1, 2, 4, 8], value=2)}),
    Entry("Step", "The encoder loses something in two places: it averages channels, and it rounds. Here it rounds with another "
          "step than the trained one, behind the network's back.",
          lambda m, quality, step: widgets.at_rounding(m.photo, m.model, quality, step),
          lambda: {"quality": _quality(), "step": SelectionSlider(options=STEPS, value=1, continuous_update=False)}),
    Entry("PDM", "The denoisers between the inverse levels. A strength scales what each of them adds: 0 is off, 1 as trained.",
          lambda m, quality, **levels: widgets.at_strength(m.model, m.coded(quality), **levels),
          lambda: {"quality": _quality(),
                   **{f"level{k}": _number(1, 0, 2, 0.1, description=f"level {k}") for k in inside.LEVELS}}),
    Entry("FDSM mask", "The decoder joins a low and a high branch with a mask m for each pixel. Here one m serves them all.",
          lambda m, quality, mask: widgets.at_mask(m.maps(quality), mask),
          lambda: {"quality": _quality(), "mask": _number(0.5, 0, 1, 0.05)}),
    Entry("Frequencies", "The picture parted at a spatial frequency, and what of the decoder's error lies above it.",
          lambda m, quality, cut: widgets.at_cut(m.maps(quality), cut),
          lambda: {"quality": _quality(), "cut": _number(0.1, 0, 0.5, 0.02)}),
    Entry("Wavefront", "The order in which the latent of a 256 x 256 photo is coded: all positions of a step at once.",
          lambda m, step: widgets.at_step(*LATENT, step - 1),
          lambda: {"step": IntSlider(value=30, min=1, max=len(list(wavefront(*LATENT))), continuous_update=False)}),
    Entry("Depth", "Coupling layers invert exactly on paper. In floating point the error grows with depth and clamp.",
          lambda m, clamp, depth: widgets.at_depth(clamp, depth),
          lambda: {"clamp": SelectionSlider(options=widgets.CLAMPS, value=2.0, continuous_update=False),
                     "depth": IntSlider(value=12, min=1, max=widgets.DEEPEST, continuous_update=False)}),
    Entry("Cost", "Where the arithmetic of these weights goes for an image of this size, and the steps that decoding takes.",
          lambda m, megapixels: complexity.at_size(m.model, megapixels),
          lambda: {"megapixels": SelectionSlider(options=[0.01, 0.1, 0.4, 1, 2, 4, 8, 12, 24, 48], value=0.4,
                                                   continuous_update=False)}),
    Entry("Codecs", "Rate and distortion, measured here and published: choose codecs (hold Ctrl for several).",
          lambda m, **chosen: widgets.at_curves(_curves(), **chosen), _chooser),
)


def values_of(control: ipywidgets.Widget) -> list:
    """All values that a control can take; of several at once, each alone."""
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return [(value,) for value in values] if isinstance(control, ipywidgets.SelectMultiple) else values
    count = round((control.max - control.min) / control.step)
    return [min(control.max, control.min + k * control.step) for k in range(count + 1)]


def embedded_crop(name: str) -> Image.Image:
    """The dashboard's piece of an embedded photo: 256 x 256, of the rocket 256 x 208."""
    left, top = CORNERS[name]
    photo = data.photo(name)
    return photo.crop((left, top, left + 256, top + min(256, photo.height // 16 * 16)))


class Dashboard(ipywidgets.VBox):
    """Photo, weights and all `EXPLORERS`. Only the one in sight is drawn; another follows when it is opened."""

    def __init__(self):
        names = available()
        self.photo = Dropdown(options=[*CORNERS, OWN], description="photo")
        self.weights = Dropdown(options=names, value="student" if "student" in names else names[0], description="weights")
        self.upload = ipywidgets.FileUpload(accept="image/*", description="your own photo", layout={"width": "13em"})
        self.message = ipywidgets.HTML()
        self.explorers = [widgets.Explorer(partial(self._draw, entry), entry.controls()) for entry in EXPLORERS]
        for explorer in self.explorers:
            explorer.fine = True
        pages = [ipywidgets.VBox([ipywidgets.HTML(f"<p>{entry.words}</p>"), explorer])
                 for entry, explorer in zip(EXPLORERS, self.explorers, strict=True)]
        self.tabs = ipywidgets.Tab(pages, titles=[entry.title for entry in EXPLORERS], selected_index=0)
        for control in (self.photo, self.weights):
            control.style.description_width, control.layout.width = "4.5em", "16em"
            control.observe(self._begin, names="value")
        self.upload.observe(self._take, names="value")
        self.tabs.observe(self._show, names="selected_index")
        choices = ipywidgets.HBox([self.photo, self.weights, self.upload])
        super().__init__([ipywidgets.HTML(HEAD), choices, self.message, self.tabs])
        self.add_class("ainn-page")
        self.own: Image.Image | None = None
        self._begin()

    def _draw(self, entry: Entry, **values: object) -> tuple[Figure, object]:
        return entry.function(self.material, **values)

    def _begin(self, change: object = None) -> None:
        try:
            if self.photo.value == OWN and self.own is None:
                raise AINNError("choose a file of yours first, with the button on the right")
            photo = self.own if self.photo.value == OWN else embedded_crop(self.photo.value)
            self.material = Material(photo, load_pretrained(self.weights.value))
        except AINNError as error:
            self.message.value = f"<b>{escape(str(error))}</b>"
            return
        self.stale = set(range(len(EXPLORERS)))
        self._show()

    def _show(self, change: object = None) -> None:
        if self.tabs.selected_index in self.stale:
            self.stale.discard(self.tabs.selected_index)
            self.explorers[self.tabs.selected_index].update()

    def _take(self, change: object) -> None:
        if not change["new"]:
            return
        file, self.upload.value = change["new"][0], ()  # so that the same file can be chosen again
        name = escape(file["name"])
        try:
            self.own, words = widgets.own_photo(bytes(file["content"]))
        except AINNError as error:
            self.message.value = f"<b>{name}: {escape(str(error))}</b>"
            return
        self.message.value = f"{name}: {escape(words)}"
        if self.photo.value == OWN:
            self._begin()
        else:
            self.photo.value = OWN


def dashboard() -> Dashboard:
    """The page, ready to be shown in a notebook."""
    page = Dashboard()
    gc.collect()
    gc.freeze()  # what is loaded by now stays: walking through it again and again would cost half a second every few moves
    return page


def main(arguments: list[str]) -> None:
    """Serve the dashboard to this machine's browser until it is stopped; arguments are Voila's, such as --no-browser."""
    from voila.app import Voila

    Voila.launch_instance([str(NOTEBOOK), *arguments], auto_token=True,
                          tornado_settings={"websocket_max_message_size": LARGEST_MESSAGE})


if __name__ == "__main__":
    main(sys.argv[1:])
