"""Two small widgets: a choice by pictures or colours, and what stands in the page's address."""

from collections.abc import Iterable
from typing import NamedTuple

import anywidget
import traitlets
from PIL import Image

from ..paths import PACKAGE
from .stage import address, packed

THUMBNAIL = (96, 96)  #: pixels; drawn at half that size


class Option(NamedTuple):
    """One thing to choose."""

    label: str
    image: Image.Image | None = None
    colour: str | None = None


class Choice(anywidget.AnyWidget):
    """Radio buttons for one label, or check boxes where the value is a list of labels."""

    _esm = PACKAGE / "ui" / "choice.js"
    choices = traitlets.List().tag(sync=True)
    value = traitlets.Any().tag(sync=True)
    description = traitlets.Unicode("").tag(sync=True)

    def __init__(self, options: Iterable[Option], value: str | list[str], description: str = ""):
        super().__init__(value=value, description=description)
        self.offer(options)

    def offer(self, options: Iterable[Option]) -> None:
        """Other things to choose from."""
        self.choices = [{"label": option.label, "colour": option.colour,
                         "image": option.image and _thumbnail(option.image)} for option in options]

    @property
    def options(self) -> list[str]:
        """All labels."""
        return [choice["label"] for choice in self.choices]


def _thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail(THUMBNAIL)
    return address(packed(small), "image/webp")


class Address(anywidget.AnyWidget):
    """The part of a page's address behind the #: what it said first, and what it says now.

    Outside Voila, in JupyterLab for instance, the address is not ours: nothing is read or written.
    """

    _esm = """export default {render({model}) {
        if (!document.getElementById("rendered_cells")) return;
        const write = () => history.replaceState(
            null, "", `${location.pathname}${location.search}#${model.get("now")}`);
        const first = location.hash.slice(1);
        model.on("change:now", write);
        if (first) {
            model.set("first", first);
            model.save_changes();
        }
    }};"""
    first = traitlets.Unicode("").tag(sync=True)
    now = traitlets.Unicode("").tag(sync=True)
