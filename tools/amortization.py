"""Measure what refinement gains on six photos, and write figures/data/amortization.json."""

import argparse
import json
import time
from pathlib import Path

from PIL import Image
from torchvision.transforms.functional import center_crop

from ainn_lib import load_pretrained
from ainn_lib.codec.images import read_rgb
from ainn_lib.codec.refine import STEPS, trade_off
from ainn_lib.measure import datasets
from ainn_lib.measure.evaluate import as_codec, measure
from ainn_lib.measure.results import write_results
from ainn_lib.provenance import provenance
from ainn_lib.studies.amortization import GAP, QUALITY, TITLES

PHOTOS, SIDE = ("kodim01", "kodim05", "kodim07", "kodim13", "kodim19", "kodim23"), 256


def measure_gap(images: dict[str, Image.Image], names: list[str], path: Path = GAP) -> None:
    """Code every image at every effort, and add the rows to the file; those of others stay."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    for name in names:
        rows = [row for row in rows if row["model"] != name]
        model = load_pretrained(name)
        for title, image in images.items():
            for effort in range(len(STEPS)):
                began = time.process_time()
                found = measure(as_codec(model, name, effort), image, QUALITY)
                mse = 255**2 * 10 ** (-found["psnr-rgb"] / 10)
                rows.append({"model": name, "image": title, "effort": effort, "bpp": found["bpp"],
                             "psnr": found["psnr-rgb"], "seconds": time.process_time() - began,
                             "cost": found["bpp"] + trade_off(model, QUALITY) * mse})
        write_results(path, {"source": "measured here", "quality": QUALITY, "side": SIDE,
                             **provenance(), "rows": rows})


def middles(folder: str) -> dict[str, Image.Image]:
    """The middle 256 x 256 pixels of `PHOTOS`."""
    return {path.stem: center_crop(Image.fromarray(read_rgb(path)), SIDE)
            for path in datasets.images(folder).values() if path.stem in PHOTOS}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(TITLES), metavar="WEIGHTS")
    parser.add_argument("--images", default="kodak", metavar="NAME|DIR")
    options = parser.parse_args()
    measure_gap(middles(options.images), options.names)
