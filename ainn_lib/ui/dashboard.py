"""The dashboard: every explorer on one page, for one photo and one network.

`EXPLORERS` lists what is on it, `dashboard` makes it, and ``ainn app`` serves it with Voila.
"""

import os
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from html import escape
from itertools import count
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

import ipywidgets
import torch
from ipywidgets import Dropdown, FloatSlider, IntSlider, SelectionSlider, Widget
from PIL import Image

from ..codec.refine import STEPS
from ..codec.weights import available, load_pretrained, read_about
from ..errors import AINNError
from ..measure import curves
from ..network.entropy_model import wavefront
from ..network.model import AINN
from ..paths import NOTEBOOKS, PACKAGE, weight_folders
from ..studies import activations, cost
from ..style import LOOK
from . import explorers
from .choice import Address, Choice, Option
from .photos import CORNERS, embedded_crop, own_photo
from .stage import address

LARGEST_MESSAGE = 2**28  #: bytes; a photo arrives as one message, often above the server's 10 MiB
OWN = "your own"
LATENT = (16, 16)
ROUNDINGS = [(f"{2 ** (k / 2):.2g}", 2 ** (k / 2)) for k in range(-4, 7)]
TEMPLATES = PACKAGE / "ui" / "jupyter"  #: a folder of Jupyter's data, with our page for Voila
SERVED = {"--template": "ainn", "--MappingKernelManager.cull_idle_timeout": 120,
          "--MappingKernelManager.cull_interval": 20,
          "--MappingKernelManager.cull_connected": False}
MEGAPIXELS = (0.01, 0.1, 0.4, 1, 2, 4, 8, 12, 24, 48)
HEAD = """<style>
.ainn-page { max-width: 900px; margin: 0 auto; padding: 0 12px 32px; overflow: hidden; }
.ainn-page h1 { margin: 12px 0 2px; font-size: 26px; }
.ainn-page p { margin: 2px 0 8px; line-height: 1.45; }
.ainn-page .lm-TabBar-content { flex-wrap: wrap; }
.ainn-page .lm-TabBar-tab { flex: 0 0 auto !important; min-width: 0 !important; }
.ainn-page .widget-tab-contents { padding: 8px 0; overflow: hidden; }
.ainn-page .widget-html-content { overflow-wrap: anywhere; }
</style><h1>A-INN Lab</h1><p>A neural network that compresses photos; its decoder is nearly the
inverse of its encoder. Move a slider, by mouse or with the arrow keys. All sizes are those of
real files.</p>"""
EFFORTS = [("0: at once", 0), ("1: 30 steps", 1), ("2: 100 steps", 2), ("3: 300 steps", 3)]


class Material:
    """One photo and one network, and what the explorers need of them, once for each quality.

    `progress` is called with words while a file is refined.
    """

    def __init__(self, photo: Image.Image, model: AINN,
                 progress: Callable[[str], None] = lambda words: None):
        self.photo, self.model, self.progress = photo, model, progress
        self.coded, self.maps, self.file = (
            lru_cache(maxsize=32)(function) for function in (self._coded, self._maps, self._file))

    @cached_property
    def analysed(self) -> activations.Analysed:
        return activations.analysed(self.model, self.photo)

    def _coded(self, quality: float) -> activations.Coded:
        return activations.coded(self.model, self.photo, quality, self.analysed)

    def _maps(self, quality: float) -> activations.FrequencyMaps:
        return activations.frequency_maps(self.model, self.photo, quality, self.analysed)

    def _file(self, quality: float, effort: int) -> explorers.File:
        steps = count(1)

        def tell(*_: object) -> None:  # the refinement decodes once in each of its steps
            self.progress(f"refining: step {min(next(steps), STEPS[effort])} of {STEPS[effort]}")

        hook = self.model.g_s.register_forward_hook(tell) if effort else None
        try:
            return explorers.as_file(self.photo, self.model, quality, effort)
        finally:
            if hook:
                hook.remove()

    @torch.no_grad()
    def split(self, quality: float) -> SimpleNamespace:
        """What `explorers.at_cut` needs; a network without FDSM has it too."""
        start = self.coded(quality)
        x_hat = self.model.g_s(start.y_hat)
        return SimpleNamespace(x=start.x, bpp=start.bpp, joined=lambda: x_hat)


class Entry(NamedTuple):
    """One explorer of the dashboard."""

    title: str
    words: str  #: what it shows, and what to try
    function: Callable[..., tuple[object, object]]  #: of a `Material` and a keyword per control
    controls: Callable[[], dict[str, Widget]]  #: makes them; all share one "quality"
    of_photo: bool = True  #: it depends on photo and weights


def _slider(value: float, low: float, high: float, step: float) -> FloatSlider:
    return FloatSlider(value, min=low, max=high, step=step)


def _quality() -> FloatSlider:
    return _slider(3, 1, 8, 0.25)


def _effort() -> Dropdown:
    return Dropdown(options=EFFORTS, value=0)


def _compare(m: Material, quality: float, effort: int) -> explorers.Wipe:
    file = m.file(quality, effort)
    pictures, numbers = explorers.with_jpeg(m.photo, file.decoded, len(file.data))
    data = address(file.data, "application/octet-stream")
    numbers.files = [{"label": "save .ainn", "name": "photo.ainn", "href": data},
                     {"label": "save PNG", "name": "decoded.png", "picture": 1}]
    return pictures, numbers


@lru_cache
def _curves() -> list[curves.Curve]:
    return [*curves.measured(), *curves.published()]


def _chooser() -> dict[str, Widget]:
    here = {curve.codec for curve in _curves()}
    codecs = dict(look for name, look in LOOK.items() if name in here)  # title -> colour
    chosen = [LOOK[name][0] for name in ("jpeg", "webp", "avif", "tiny", "student") if name in here]
    sets = sorted({curve.dataset for curve in _curves()})
    return {"dataset": Dropdown(options=sets, value="kodak", description="data set"),
            "metric": Dropdown(options=[("PSNR", "psnr"), ("MS-SSIM", "ms-ssim")]),
            "axis": Dropdown(options=["linear", "log"]),
            "codecs": Choice([Option(title, colour=colour) for title, colour in codecs.items()],
                             chosen, "codecs")}


def _codecs(m: Material, codecs: list[str], **chosen: str) -> explorers.Explored:
    names = [name for name, (title, _) in LOOK.items() if title in codecs]
    return explorers.at_curves(_curves(), codecs=names, **chosen)


EXPLORERS = (
    Entry("Compare", "Drag the line over the hair or the writing, zoom in, then lower the quality "
          "until you see a difference. A refined file (effort) takes seconds to minutes.",
          _compare, lambda: {"quality": _quality(), "effort": _effort()}),
    Entry("Bits", "A better quality spends more bits, most of them where the picture is busy.",
          lambda m, quality, effort: explorers.at_bits(m.file(quality, effort)),
          lambda: {"quality": _quality(), "effort": _effort()}),
    Entry("Step", "The encoder averages channels, and it rounds. Here it rounds with another step "
          "than the one that the network was trained for.",
          lambda m, quality, step: explorers.at_rounding(m.photo, m.model, quality, step),
          lambda: {"quality": _quality(), "step": SelectionSlider(options=ROUNDINGS, value=1)}),
    Entry("PDM", "A strength scales what the denoiser of a level adds: 0 is off, 1 as trained. "
          "The map on the right is that of the trained network.",
          lambda m, quality, **levels: explorers.at_strength(m.model, m.coded(quality), **levels),
          lambda: {"quality": _quality(), "level4": _slider(1, 0, 2, 0.1),
                   "level3": _slider(1, 0, 2, 0.1), "level2": _slider(0, 0, 2, 0.1)}),
    Entry("FDSM mask", "The decoder joins its branches with a mask m. Here all pixels have one m.",
          lambda m, quality, mask: explorers.at_mask(m.maps(quality), mask),
          lambda: {"quality": _quality(), "mask": _slider(0.5, 0, 1, 0.05)}),
    Entry("Frequencies", "The picture below and above a spatial frequency, and the error above it.",
          lambda m, quality, cut: explorers.at_cut(m.split(quality), cut),
          lambda: {"quality": _quality(), "cut": _slider(0.1, 0, 0.5, 0.02)}),
    Entry("Wavefront", "The order in which the latent of a 256 x 256 photo is coded.",
          lambda m, step: explorers.at_step(*LATENT, step - 1),
          lambda: {"step": IntSlider(30, 1, len(list(wavefront(*LATENT))))}, of_photo=False),
    Entry("Depth", "Couplings invert exactly on paper. In floating point the error grows.",
          lambda m, **chosen: explorers.at_depth(**chosen),
          lambda: {"clamp": SelectionSlider(options=explorers.CLAMPS, value=1.0),
                   "depth": IntSlider(8, 1, explorers.DEEPEST)}, of_photo=False),
    Entry("Cost", "Where the arithmetic goes for an image of this size, and the decoding steps.",
          lambda m, megapixels: cost.at_size(m.model, megapixels),
          lambda: {"megapixels": SelectionSlider(options=MEGAPIXELS, value=0.4)}),
    Entry("Codecs", "Rate and distortion, measured and published.", _codecs, _chooser,
          of_photo=False),
)


def weight_choices() -> list[tuple[str, str]]:
    """Titles and names of all weights, those for use before those of a study."""
    study = "ablation-"
    names = sorted(available(), key=lambda name: (name.startswith(study), name))
    return [(f"study · {name.removeprefix(study)}" if name.startswith(study) else name, name)
            for name in names]


def about_weights(name: str) -> str:
    """One line on weights."""
    files = [folder / f"{name}.json" for folder in weight_folders()]
    about = read_about(next(file for file in files if file.is_file()))
    words = [f"{name}: {about['parameters'] / 1e6:.1f} million parameters"
             if "parameters" in about else name]
    if name.startswith("ablation-"):
        words.append("trained for the ablation study only, for a short time: not the best there is")
    elif "date" in about:
        words.append(f"trained for use, {about['date']}")
    return "; ".join(words)


def _as_text(value: object) -> str:
    """A control's value in an address."""
    if isinstance(value, list):
        return "|".join(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _from_text(text: str, control: Widget) -> object:
    """The value that `_as_text` wrote; for any other text the control's present one."""
    known = {_as_text(value): value for _, value in explorers.values_of(control)}
    if isinstance(control.value, list):
        return [label for label in text.split("|") if label in known] or control.value
    return known.get(text, control.value)


class Dashboard(ipywidgets.VBox):
    """Photo, weights and all `EXPLORERS`. Only the tab in sight is drawn."""

    def __init__(self):
        self.own, self.material, self.quality = None, None, _quality()
        self.photos = [Option(name, embedded_crop(name)) for name in CORNERS]
        self.photo = Choice(self.photos, next(iter(CORNERS)), "photo")
        self.weights = Dropdown(options=weight_choices(), value=explorers.default_weights(),
                                description="weights")
        self.upload = ipywidgets.FileUpload(accept="image/*", description="your own photo",
                                            layout={"width": "13em"})
        self.reset = ipywidgets.Button(description="reset", layout={"width": "6em"},
                                       tooltip="all controls as at the start")
        self.message, self.about = ipywidgets.HTML(), ipywidgets.HTML()
        self.explorers = [self._explorer(entry) for entry in EXPLORERS]
        pages = [ipywidgets.VBox([ipywidgets.HTML(f"<p>{entry.words}</p>"), explorer])
                 for entry, explorer in zip(EXPLORERS, self.explorers, strict=True)]
        self.tabs = ipywidgets.Tab(pages, titles=[e.title for e in EXPLORERS], selected_index=0)
        self.weights.style.description_width, self.weights.layout.width = "4.5em", "18em"
        self.weights.layout.max_width = "100%"
        for control in (self.photo, self.weights):
            control.observe(self._begin, names="value")
        self.start = {control: control.value for explorer in self.explorers
                      for control in explorer.controls.values()}
        self.upload.observe(self._receive, names="value")
        self.reset.on_click(self._reset)
        self.tabs.observe(self._show, names="selected_index")
        self.choices = ipywidgets.VBox([
            self.photo, ipywidgets.Box([self.weights, self.upload, self.reset],
                                       layout={"flex_flow": "row wrap"}), self.about])
        self.address = Address()
        self.address.observe(self._open, names="first")
        super().__init__(
            [ipywidgets.HTML(HEAD), self.choices, self.message, self.tabs, self.address])
        self.add_class("ainn-page")
        self._begin()

    def _explorer(self, entry: Entry) -> explorers.Explorer:
        """An explorer whose quality is everybody's; a new quality is first coded at once."""
        controls = entry.controls()
        if "quality" in controls:
            controls["quality"] = self.quality
        if "effort" in controls:
            effort = controls["effort"]
            self.quality.observe(lambda change: setattr(effort, "value", 0), names="value")
        explorer = explorers.Explorer(partial(self._draw, entry), controls,
                                      slow=lambda values: values.get("effort", 0) > 0)
        explorer.paused = True
        explorer.stage.observe(lambda change: self._stop(explorer), names="stops")
        for control in controls.values():
            control.observe(self._note, names="value")
        return explorer

    def _stop(self, explorer: explorers.Explorer) -> None:
        """End a refinement; the file that is made at once is shown in its place."""
        explorer.stop()
        explorer.controls["effort"].value = 0

    def _draw(self, entry: Entry, **values: object) -> tuple[object, object]:
        return entry.function(self.material, **values)

    def _progress(self, words: str) -> None:
        self.explorers[self.tabs.selected_index].progress(words)

    def _begin(self, change: object = None) -> None:
        """Load photo and network; every tab becomes stale."""
        try:
            photo = self.own if self.photo.value == OWN else embedded_crop(self.photo.value)
            self.material = Material(photo, load_pretrained(self.weights.value), self._progress)
            self.about.value = escape(about_weights(self.weights.value))
        except AINNError as error:
            self.message.value = f"<b>{escape(str(error))}</b>"
            return
        if change is not None:
            self.message.value = ""  # what it was about has gone
        for entry, explorer in zip(EXPLORERS, self.explorers, strict=True):
            explorer.stale = explorer.stale or entry.of_photo or change is None
        self._show()

    def _show(self, change: object = None) -> None:
        """Draw the tab in sight if it is stale; the others wait."""
        for number, explorer in enumerate(self.explorers):
            explorer.paused = number != self.tabs.selected_index
            explorer.stop()
        self._note()
        entry, explorer = EXPLORERS[self.tabs.selected_index], self.explorers[
            self.tabs.selected_index]
        self.choices.layout.display = None if entry.of_photo else "none"
        if explorer.stale:
            explorer.update()

    def _state(self) -> dict[str, Widget]:
        """What the page's address holds: name -> control."""
        explorer = self.explorers[self.tabs.selected_index]
        return {"photo": self.photo, "weights": self.weights, **explorer.controls}

    def _note(self, change: object = None) -> None:
        """Write tab and controls into the page's address."""
        values = {name: _as_text(control.value) for name, control in self._state().items()}
        self.address.now = urlencode({"tab": EXPLORERS[self.tabs.selected_index].title, **values})

    def _open(self, change: dict) -> None:
        """Set tab and controls as the page's address says; what it names wrongly stays."""
        words = dict(parse_qsl(change["new"]))
        if words.get("tab") in self.tabs.titles:
            self.tabs.selected_index = self.tabs.titles.index(words["tab"])
        self._set({control: _from_text(words.get(name, ""), control)
                   for name, control in self._state().items()})

    def _set(self, values: dict[Widget, object]) -> None:
        """Set controls, last those that load anew; no picture is drawn for each of the others."""
        for explorer in self.explorers:
            explorer.paused = True
        for control in sorted(values, key=lambda c: c in (self.photo, self.weights)):
            control.value = values[control]
        self._show()

    def _reset(self, button: object = None) -> None:
        """All controls as at the start."""
        self._set({**self.start, self.photo: next(iter(CORNERS)),
                   self.weights: explorers.default_weights()})
        self.message.value = ""

    def _receive(self, change: dict) -> None:
        """Show an uploaded photo."""
        if not change["new"]:
            return
        file, self.upload.value = change["new"][0], ()  # the same file can be chosen again
        name = escape(file["name"])
        try:
            self.own, words = own_photo(bytes(file["content"]))
        except AINNError as error:
            self.message.value = f"<b>{name}: {escape(str(error))}</b>"
            return
        self.photo.offer([*self.photos, Option(OWN, self.own)])
        if self.photo.value == OWN:
            self._begin()
        else:
            self.photo.value = OWN
        self.message.value = f"{name}: {escape(words)}"


def main(arguments: list[str]) -> None:
    """Serve the dashboard to this machine's browser; arguments are Voila's, like --no-browser.

    A kernel that nobody looks at any more ends after two minutes.
    """
    from voila.app import Voila

    paths = os.environ.get("JUPYTER_PATH", "").split(os.pathsep)
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(TEMPLATES), *paths]))
    arguments = [*(f"{name}={value}" for name, value in SERVED.items()
                   if not any(given.startswith(name) for given in arguments)), *arguments]
    settings = {"websocket_max_message_size": LARGEST_MESSAGE}
    arguments = [str(NOTEBOOKS / "app.ipynb"), *arguments]
    Voila.launch_instance(arguments, auto_token=True, tornado_settings=settings)
