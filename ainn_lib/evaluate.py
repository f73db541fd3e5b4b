"""Measured rate and distortion of any codec, classical or ours: one protocol, real files, 8-bit decoded images.

The protocol: a point is the mean over images of each image's bits per pixel (bytes of the whole file) and of each image's PSNR
between the 8-bit RGB original and the decoded file. MS-SSIM is null where a side has under 161 pixels. The decoder sees the
file alone. BD-rate is taken between such curves (`ainn_lib.curves`).

Results are JSON files that CompressAI's plotting tool reads: ``name``, ``description`` and ``results`` with the lists ``bpp``,
``psnr-rgb`` and ``ms-ssim-rgb``; beside them stand the values of every image and where the numbers come from.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import os
import statistics
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from . import codec, codecs
from .codecs import Codec
from .data import EMBEDDED, file_sha256, photo
from .errors import UNREADABLE, AINNError
from .files import check_file, whole_file
from .metrics import ms_ssim, psnr
from .model import AINN
from .provenance import provenance
from .weights import identity, load_pretrained

METRICS = ("bpp", "psnr-rgb", "ms-ssim-rgb")
MODULES = ("FDSM-D", "FDSM-S", "CFRM", "PDM", "couplings")
PROTOCOL = __doc__.split("\n\n")[1].removeprefix("The protocol: ").replace("\n", " ")


@functools.lru_cache(maxsize=2)
def trained(weights: str) -> Codec:
    """Trained weights, by name or path, as one more codec; its ladder is the qualities 1 to 8 (one point at a fixed rate)."""
    model = load_pretrained(weights)
    return as_codec(model, Path(weights).stem)


def as_codec(model: AINN, name: str) -> Codec:
    """A network as a codec of `ainn_lib.codecs`."""
    def write(image: Image.Image, quality: float) -> bytes:
        return codec.encode(image, model, quality if model.config.variable_rate else None)

    rate = "variable rate" if model.config.variable_rate else "fixed rate"
    return Codec(name, f"A-INN {name}", f"our weights, {rate}, identity {identity(model)}",
                 tuple(float(q) for q in range(1, 9)) if model.config.variable_rate else (0.0,),
                 write, lambda data: codec.decode(data, model))


def measure(subject: Codec, image: Image.Image, setting: float) -> dict:
    """One image at one setting: ``bytes``, ``bpp``, ``psnr-rgb`` (dB; null where nothing was lost), ``ms-ssim-rgb``."""
    image = image.convert("RGB")
    data = subject.encode(image, setting)
    decoded = subject.decode(data)
    quality = psnr(image, decoded)
    return {"bytes": len(data), "bpp": 8 * len(data) / (image.width * image.height),
            "psnr-rgb": None if quality == float("inf") else quality, "ms-ssim-rgb": ms_ssim(image, decoded)}


def summarise(rows: Iterable[dict], settings: Iterable[float]) -> dict[str, list]:
    """Rows of `measure` with their ``setting`` -> the lists of a curve, mean over images at each setting.

    A mean over values one of which is null is null.

    >>> row = {"bpp": 1.0, "psnr-rgb": 30.0, "ms-ssim-rgb": None}
    >>> summarise([{**row, "setting": 5.0}, {**row, "bpp": 2.0, "setting": 5.0}], [5.0])
    {'setting': [5.0], 'bpp': [1.5], 'psnr-rgb': [30.0], 'ms-ssim-rgb': [None]}
    """
    rows, result = list(rows), {"setting": list(settings), **{key: [] for key in METRICS}}
    for setting in result["setting"]:
        for key in METRICS:
            values = [row[key] for row in rows if row["setting"] == setting]
            result[key].append(None if None in values else statistics.fmean(values))
    return result


def evaluate(images: dict[str, Path], dataset: str, kind: str, name: str, output: str | Path,
             settings: Iterable[float] | None = None, pool: ProcessPoolExecutor | None = None, progress: bool = True) -> Path:
    """Measure a codec on images and write the result as JSON. Stopped and called again, it goes on where it was.

    Args:
        images: name -> file.
        dataset: what to call them.
        kind: "codec" for one of `ainn_lib.codecs`, "model" for trained weights.
        name: the codec's name, or name or path of the weights.
        settings: in place of the codec's own ladder.
        pool: from `workers`, to be used for several codecs; the numbers do not depend on its size.

    Raises:
        AINNError: for an unknown codec, no images, an image that cannot be read, or a file that cannot be written.
    """
    measured = subject(kind, name)
    settings = [float(s) for s in settings or measured.settings]
    if not images:
        raise AINNError("there are no images to measure")
    facts = {"name": measured.title, "description": measured.note, "codec": measured.name, "dataset": dataset,
             "images": len(images), "source": "measured here", "protocol": PROTOCOL}
    output = Path(output)
    check_file(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    hashes = {image: file_sha256(path) for image, path in images.items()}
    with _Rows(output.with_suffix(".part"), {**facts, "settings": settings, "files": sorted(images)}, hashes) as rows, \
            contextlib.ExitStack() as stack:
        todo = [(image, setting) for image in sorted(images) for setting in settings if (image, setting) not in rows.done]
        pool = pool or stack.enter_context(workers())
        bar = tqdm(total=len(images) * len(settings), initial=len(rows.done), disable=not progress, unit="file", desc=name)
        waiting = {pool.submit(_measure_file, kind, name, images[image], setting): (image, setting) for image, setting in todo}
        try:
            for done in as_completed(waiting):
                rows.add(waiting[done], done.result())
                bar.update()
        except BrokenProcessPool:
            raise AINNError("a measuring process died, perhaps for want of memory; try again with fewer jobs") from None
        except AINNError:
            for future in waiting:
                future.cancel()
            for future in wait(waiting).done:  # what was under way is kept
                if not future.cancelled() and not future.exception():
                    rows.add(waiting[future], future.result())
            raise
        finally:
            bar.close()
            for future in waiting:
                future.cancel()
        result = {**facts, **provenance(), "results": summarise(rows.done.values(), settings), "per_image": [
            {"image": image, **{key: [rows.done[image, s][key] for s in settings] for key in ("bytes", *METRICS)}}
            for image in sorted(images)]}
        with whole_file(output) as file:
            file.write(compact_json(result).encode())
        rows.finished = True
    return output


def workers(jobs: int | None = None) -> ProcessPoolExecutor:
    """Processes that measure images side by side, by default one for each core that we may use. A context manager."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # "spawn": a forked copy of a process whose torch has threads can hang
    jobs = cores or 1 if jobs is None else jobs
    if jobs < 1:
        raise AINNError(f"the number of jobs must be at least 1, got {jobs}")
    return ProcessPoolExecutor(jobs, get_context("spawn"))


def embedded(folder: str | Path) -> dict[str, Path]:
    """The embedded photos as PNG files in a folder: name -> file, as `evaluate` takes them."""
    paths = {name: Path(folder) / f"{name}.png" for name in EMBEDDED}
    for name, path in paths.items():
        photo(name).save(path)
    return paths


def compact_json(facts: dict) -> str:
    """JSON with one line for each entry of the two upper levels: small, and readable in a diff."""
    def entry(value: object) -> str:
        if isinstance(value, dict):
            return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(f"  {json.dumps(v)}" for v in value) + "]"
        return json.dumps(value)

    rounded = json.loads(json.dumps(facts), parse_float=lambda text: round(float(text), 6))
    return "{\n" + ",\n".join(f" {json.dumps(k)}: {entry(v)}" for k, v in rounded.items()) + "\n}\n"


def subject(kind: str, name: str) -> Codec:
    """What `evaluate` measures under this kind and name. Raises AINNError where there is none."""
    return trained(name) if kind == "model" else codecs.codec(name)


def _measure_file(kind: str, name: str, path: Path, setting: float) -> dict:
    torch.set_num_threads(1)  # images are measured side by side
    try:
        with Image.open(path) as image:
            return measure(subject(kind, name), image, setting)
    except UNREADABLE as error:
        raise AINNError(f"{path} cannot be read as an image: {error}") from None


class _Rows(contextlib.AbstractContextManager):
    """What has been measured so far, one JSON line each, in a file that is there until all is measured."""

    def __init__(self, path: Path, header: dict, hashes: dict[str, str]):
        self.path, self.done, self.finished, self.hashes = path, {}, False, hashes
        header = json.loads(json.dumps(header))
        lines = []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # the last line of a killed run may be half written
                    lines.append(json.loads(line))
        if lines and lines[0] == header:
            self.done = {(row["image"], row["setting"]): row for row in lines[1:]
                         if row.get("sha256") == hashes[row["image"]]}  # a file may be another one by now
        self.file = path.open("w")
        for line in (header, *self.done.values()):
            self._write(line)

    def _write(self, line: dict) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def add(self, key: tuple[str, float], values: dict) -> None:
        if key not in self.done:
            self.done[key] = {"image": key[0], "setting": key[1], "sha256": self.hashes[key[0]], **values}
            self._write(self.done[key])

    def __exit__(self, *error: object) -> None:
        self.file.close()
        if self.finished or not self.done:
            self.path.unlink()


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
        for level in itertools.chain(*model.cores):
            level.couplings = nn.ModuleList()
    return model.eval()
