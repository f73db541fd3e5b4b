"""Measured rate and distortion of trained weights: real files, 8-bit decoded images.

The protocol: a point is the mean over images of each image's bits per pixel (bytes of the whole file) and of each image's PSNR
between the 8-bit RGB original and the decoded file. MS-SSIM is null where a side has under 161 pixels.
"""

import copy
import dataclasses
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from . import codec
from .errors import AINNError
from .metrics import ms_ssim, psnr
from .model import AINN
from .provenance import provenance
from .weights import identity

MODULES = ("FDSM-D", "FDSM-S", "CFRM", "PDM", "couplings")


def rate_distortion(images: dict[str, Image.Image], model: AINN, qualities: list[float | None], progress: bool = True) -> list[dict]:
    """One entry for each quality: ``quality``, the means ``bpp``, ``psnr_rgb``, ``ms_ssim_rgb``, and the same per image.

    The reconstruction is the one that the decoder makes from the file's bytes.
    """
    points = []
    bar = tqdm(total=len(images) * len(qualities), disable=not progress, unit="image")
    for quality in qualities:
        rows = []
        for name, image in images.items():
            stream = codec.encode(image, model, quality)
            decoded = codec.decode(stream, model)
            rows.append({"image": name, "bytes": len(stream), "bpp": 8 * len(stream) / (image.width * image.height),
                         "psnr_rgb": psnr(image, decoded), "ms_ssim_rgb": ms_ssim(image, decoded)})
            bar.update()
        points.append({"quality": quality, **_means(rows), "images": rows})
    return points


def evaluate(folder: str | Path, dataset: str, model: AINN, name: str, qualities: list[float | None], output: str | Path) -> Path:
    """Measure weights on all PNG images of a folder and write the result, with its provenance, as JSON."""
    paths = sorted(Path(folder).glob("*.png"))
    if not paths:
        raise AINNError(f"{folder} holds no PNG image")
    points = rate_distortion({path.stem: Image.open(path) for path in paths}, model, qualities)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"name": name, "dataset": dataset, "images": len(paths), "identity": identity(model), "source": "measured here",
             "protocol": __doc__.split("\n\n")[1].removeprefix("The protocol: ").replace("\n", " "), **provenance()}
    output.write_text(json.dumps({**facts, "results": points}, indent=1) + "\n")
    return output


class _Both(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class _Mean(nn.Module):
    reach = 0

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return (low + high) / 2


def without(model: AINN, module: str) -> AINN:
    """A copy of a trained network with one module taken out and what stands in for it in its place.

    Args:
        module: one of `MODULES`. Coupling layers are left out on both sides, so that the core still inverts.
    """
    if module not in MODULES:
        raise AINNError(f"no module {module!r}; there are {', '.join(MODULES)}")
    model = copy.deepcopy(model)
    if module == "FDSM-D":
        model.fdsm_d = _Both()
    elif module == "FDSM-S":
        model.fdsm_s = _Mean()
    elif module == "CFRM":
        model.config = dataclasses.replace(model.config, cfrm=False, ms_cfrm=False)
    elif module == "PDM":
        model.config = dataclasses.replace(model.config, pdm="none")
    else:
        for level in model.levels:
            level.couplings = nn.ModuleList()
    return model.eval()


@torch.no_grad()
def knockouts(images: dict[str, Image.Image], model: AINN, quality: float | None = None) -> dict[str, dict[str, float]]:
    """What each module does: mean PSNR (dB) and bpp of the whole network, and their change without one module at a time."""
    whole = rate_distortion(images, model, [quality], progress=False)[0]
    result = {"all": {"psnr_rgb": whole["psnr_rgb"], "bpp": whole["bpp"]}}
    for module in MODULES:
        point = rate_distortion(images, without(model, module), [quality], progress=False)[0]
        result[module] = {key: point[key] - whole[key] for key in ("psnr_rgb", "bpp")}
    return result


def _means(rows: list[dict]) -> dict:
    result = {}
    for key in ("bpp", "psnr_rgb", "ms_ssim_rgb"):
        values = [row[key] for row in rows]
        result[key] = None if None in values else sum(values) / len(values)
    return result
