"""``ainn compare-page``: our files beside other codecs' files of equal size, on one page.

The page is a folder that is opened from disk: it needs no server and asks for nothing outside.
"""

from pathlib import Path

from PIL import Image

from .. import codec
from ..codec.files import atomic_write, check_folder
from ..codec.weights import load_pretrained
from ..errors import AINNError
from ..measure.classical import CODECS
from ..measure.datasets import EMBEDDED, photo
from ..measure.metrics import psnr
from ..network.model import AINN
from ..studies.figure6 import at_rate
from ..style import LOOK
from .explorers import as_file, default_weights
from .stage import as_json, packed, script

QUALITIES = (1, 3, 5, 7)
RIVALS = ("jpeg", "jpeg2000", "webp", "avif", "jpegxl", "hevc", "vvc")
IN_BROWSERS = {"jpeg": ".jpg", "webp": ".webp", "avif": ".avif"}  #: shown as their own files
EFFORT = 3

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A-INN beside other codecs</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 1100px; margin: 0 auto; padding: 12px; font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 24px; margin: 8px 0; }}
select {{ font: inherit; min-height: 32px; }}
</style></head><body>
<h1>A-INN beside other codecs</h1>
<p>All files of other codecs have at most as many bytes as ours of the same quality. Drag the line,
zoom in, and choose a codec for each side. The slider chooses the quality of ours.</p>
<p><label>photo <select id="photo">{options}</select></label></p>
<div id="stage"></div>
<p>JPEG, WebP and AVIF are shown as they are, by this browser's own decoder; the other files were
decoded here and are shown without loss. dB is the PSNR over R, G and B. Our weights: {weights}.</p>
<script>(() => {{
{script}
const views = {views};
const stage = mount(document.getElementById("stage"));
const photo = document.getElementById("photo");
photo.addEventListener("change", () => stage.show(views[photo.value]));
stage.show(views[photo.value]);
}})();</script></body></html>
"""


def refined_name(key: str, quality: int) -> str:
    """The name of a file that was made with effort 3.

    >>> refined_name("coffee", 3)
    'coffee-q3-effort3.ainn'
    """
    return f"{key}-q{quality}-effort{EFFORT}.ainn"


def make_refined(folder: Path, model: AINN) -> None:
    """Write the files of `refined_name` that are not in the folder: minutes each."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for key in EMBEDDED:
        for quality in QUALITIES:
            path = folder / refined_name(key, quality)
            if not path.exists():
                with atomic_write(path) as file:
                    file.write(codec.encode(photo(key), model, quality, EFFORT))
                print(path, flush=True)


def compare_page(out: Path, weights: str | None = None, refined: Path | None = None,
                 photos: tuple[str, ...] = EMBEDDED, qualities: tuple[int, ...] = QUALITIES,
                 rivals: tuple[str, ...] = RIVALS) -> Path:
    """Write the page; returns its index.html.

    Args:
        weights: name or path; None: `default_weights`.
        refined: a folder with files of effort 3; those that are missing are left out.

    Raises:
        AINNError: for weights that are not here, a refined file made with others, and a folder
            that cannot be written.
    """
    weights = weights or default_weights()
    model, pictures = load_pretrained(weights), out / "pictures"
    check_folder(pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    views = {}
    for key in photos:
        frames = [_frame(pictures, model, key, quality, refined, rivals) for quality in qualities]
        views[key] = {"name": "quality", "start": len(frames) // 2, "wipe": True, "frames": frames}
        print(key, flush=True)
    text = PAGE.format(
        options="".join(f"<option>{key}</option>" for key in photos),
        weights=weights, script=script(), views=as_json(views))
    with atomic_write(out / "index.html") as file:
        file.write(text.encode())
    return out / "index.html"


def _frame(folder: Path, model: AINN, key: str, quality: int, refined: Path | None,
           rivals: tuple[str, ...]) -> dict:
    """All files of one size of one photo, their pictures written into the folder."""
    image, absent = photo(key), []
    file = as_file(image, model, quality)
    bpp = 8 * len(file.data) / (image.width * image.height)
    shown = [_picture(folder, f"{key}", "original", image, image, None),
             _picture(folder, f"{key}-{quality}-ours", "ours", image, file.decoded, file.data)]
    path = refined / refined_name(key, quality) if refined else None
    if path and path.is_file():
        data = path.read_bytes()
        shown.append(_picture(folder, f"{key}-{quality}-effort3", f"ours, effort {EFFORT}", image,
                              codec.decode(data, model), data))
    for name in rivals:
        try:
            sized = at_rate(CODECS[name], image, bpp)
        except AINNError:
            absent.append(LOOK[name][0])
            continue
        shown.append(_picture(folder, f"{key}-{quality}-{name}", LOOK[name][0], image,
                              sized.decoded, sized.data, IN_BROWSERS.get(name, "")))
    words = f"no file so small: {', '.join(absent)}" if absent else ""
    return {"label": f"{quality} ({len(file.data):,} bytes)", "pictures": shown, "words": words}


def _picture(folder: Path, stem: str, title: str, original: Image.Image, decoded: Image.Image,
             data: bytes | None, ending: str = "") -> dict:
    """A picture of `stage.js`, in a file of its own; with an ending, ``data`` itself."""
    path = folder / f"{stem}{ending or '.webp'}"
    with atomic_write(path) as file:
        file.write(data if ending else packed(decoded))
    words = f"{3 * original.width * original.height:,} bytes, 24 bpp"
    if data is not None:
        bpp = 8 * len(data) / (original.width * original.height)
        words = f"{len(data):,} bytes, {bpp:.3f} bpp, {psnr(original, decoded):.2f} dB"
    return {"title": title, "src": f"{folder.name}/{path.name}", "words": words, "pixels": True}
