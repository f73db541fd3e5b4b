"""Measured rate and distortion of any codec: one protocol, real files, 8-bit decoded images.

Results are JSON files in the layout of CompressAI, whose plotting tool reads them; the values of
every image, and where the numbers come from, stand beside the curve.
"""

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import os
import signal
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from .. import codec
from ..codec.files import atomic_write, check_file, locked, make_folder
from ..codec.images import read_rgb
from ..codec.refine import check_effort
from ..codec.weights import fingerprint, load_pretrained
from ..errors import AINNError
from ..network.cfrm import MSCFRM, CopyToGroups
from ..network.fdsm import Copy, Mean
from ..network.model import AINN
from ..network.pdm import Denoise
from ..provenance import provenance
from .classical import Codec, get_codec
from .datasets import EMBEDDED, named, photo
from .metrics import ms_ssim, psnr
from .results import write_results

METRICS = ("bpp", "psnr-rgb", "ms-ssim-rgb")
MODULES = ("FDSM-D", "FDSM-S", "CFRM", "PDM", "couplings")
PROTOCOL = ("a point is the mean over images of each image's bits per pixel (bytes of the whole "
            "file) and of each image's PSNR between the 8-bit RGB original and the decoded file. "
            "PSNR is null where nothing is lost, MS-SSIM where a side has under 161 pixels; a mean "
            "is over the other images. The decoder sees the file alone.")


def as_codec(model: AINN, name: str, effort: int = 0) -> Codec:
    """A network as a codec; its settings are the qualities 1 to 8, or 0 alone at a fixed rate.

    Raises AINNError for an effort that `codec.encode` does not have.
    """
    check_effort(effort)
    variable = model.config.variable_rate
    rate = "variable rate" if variable else "fixed rate"

    def write(image: Image.Image, quality: float) -> bytes:
        return codec.encode(image, model, quality if variable else None, effort)

    def read(data: bytes) -> Image.Image:
        return codec.decode(data, model)

    note = f"our weights, {rate}, fingerprint {fingerprint(model)}"
    title = f"A-INN {name}"
    if effort:
        name, title, note = (f"{name}-effort{effort}", f"{title}, effort {effort}",
                             f"{note}, effort {effort}")
    settings = tuple(float(quality) for quality in range(1, 9)) if variable else (0.0,)
    return Codec(name, title, note, settings, write, read, (settings[0], settings[-1]))


def measure(subject: Codec, image: Image.Image, setting: float) -> dict:
    """One image at one setting, through a file: ``bytes``, ``bpp``, ``psnr-rgb``, ``ms-ssim-rgb``.

    PSNR is in dB, and None where nothing was lost; MS-SSIM is None for small images.
    """
    image = image.convert("RGB")
    data = subject.encode(image, setting)
    decoded = subject.decode(data)
    quality = psnr(image, decoded)
    return {"bytes": len(data), "bpp": 8 * len(data) / (image.width * image.height),
            "psnr-rgb": None if quality == float("inf") else quality,
            "ms-ssim-rgb": ms_ssim(image, decoded)}


def summarise(rows: Iterable[dict], settings: Iterable[float]) -> dict[str, list]:
    """Rows of `measure` with their ``setting`` -> the lists of a curve, means over images.

    A mean is over the images that have a value, and None where none has. A metric that no image
    has is left out. ``lossless`` says how many images have no PSNR, if any.

    >>> row = {"setting": 5.0, "bpp": 1.0, "psnr-rgb": 30.0, "ms-ssim-rgb": None}
    >>> summarise([row, {**row, "bpp": 2.0, "psnr-rgb": None}], [5.0])
    {'setting': [5.0], 'bpp': [1.5], 'psnr-rgb': [30.0], 'lossless': [1]}
    """
    rows, settings = list(rows), list(settings)
    result = {"setting": settings, **{key: [] for key in METRICS}, "lossless": []}
    for setting in settings:
        here = [row for row in rows if row["setting"] == setting]
        for key in METRICS:
            values = [row[key] for row in here if row[key] is not None]
            result[key].append(statistics.fmean(values) if values else None)
        result["lossless"].append(sum(row["psnr-rgb"] is None for row in here))
    return {key: values for key, values in result.items()
            if key == "setting" or any(value for value in values)}


def subject(kind: str, name: str, effort: int = 0) -> Codec:
    """A classical codec (kind "codec") by name, or trained weights ("model") by name or path.

    Raises AINNError for an unknown name or effort.
    """
    if kind == "codec":
        return get_codec(name)
    return as_codec(load_pretrained(name), Path(name).stem, effort)


def evaluate(images: dict[str, Path], dataset: str, kind: str, name: str, output: str | Path,
             settings: Iterable[float] | None = None, effort: int = 0, *,
             pool: ProcessPoolExecutor) -> Path:
    """Measure a codec on images and write the result as JSON; returns its path.

    Stopped and called again, it resumes: measured images are kept in a file beside ``output``.

    Args:
        images: name -> file.
        dataset: what to call them.
        kind, name, effort: of the codec, see `subject`.
        settings: default: the codec's own.
        pool: from `workers`; the numbers do not depend on its size.

    Raises:
        AINNError: for an unknown codec, a setting out of range, an unreadable image, an image that
            the codec refuses (the others are measured and kept), an unwritable file, or another
            process at work on it.
    """
    measured, output = subject(kind, name, effort), Path(output)
    settings = [measured.check(float(setting)) for setting in settings or measured.settings]
    check_file(output)
    measure_one = functools.partial(_measure_file, kind, name, effort, measured.note, settings)
    make_folder(output.parent)
    with locked(output):
        hashes = look_at(images, pool)
        keys = {image: f"{measure_one.args} {sha256}" for image, sha256 in hashes.items()}
        kept = _Kept(output.with_suffix(".part"))
        _measure_all(measure_one, {keys[image]: image for image in images}, images, kept, pool)
        rows = {image: kept.rows[key] for image, key in keys.items()}
        per_image = [{"image": image, "sha256_rgb": hashes[image], **_columns(rows[image])}
                     for image in images]
        write_results(output, {
            "name": measured.title, "description": measured.note, "codec": measured.name,
            "dataset": dataset, "images": len(images), "source": "measured here",
            "protocol": PROTOCOL, **provenance(),
            "results": summarise(itertools.chain(*rows.values()), settings),
            "per_image": per_image})
        kept.drop(keys.values())
    return output


def _columns(rows: list[dict]) -> dict[str, list]:
    return {key: [row[key] for row in rows] for key in ("bytes", *METRICS)}


class _Kept:
    """Measured rows in a file, by what was measured: codec, settings and pixels."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        if path.exists():
            try:
                self.rows = dict(json.loads(path.read_text(encoding="utf-8")).items())
            except (OSError, ValueError, AttributeError):
                raise AINNError(f"{path} is damaged: delete it and measure again") from None

    def add(self, key: str, rows: list[dict]) -> None:
        self.rows[key] = rows
        self._write()

    def drop(self, keys: Iterable[str]) -> None:
        """Rows that a result holds now; those of other settings or images stay."""
        for key in set(keys):
            self.rows.pop(key)
        if self.rows:
            self._write()
        else:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        with atomic_write(self.path) as file:
            file.write(json.dumps(self.rows).encode())


def _measure_all(measure_one: Callable[[Path], list[dict]], names: dict[str, str],
                 images: dict[str, Path], kept: _Kept, pool: ProcessPoolExecutor) -> None:
    """Measure what is not yet among the kept rows; ``names``: key of the rows -> image."""
    todo = {key: images[name] for key, name in names.items() if key not in kept.rows}
    refused = {}
    for key, future in _side_by_side(measure_one, todo, kept.path.stem, pool):
        try:
            rows = future.result()
        except AINNError as error:  # of this image alone
            refused[names[key]] = error
            continue
        kept.add(key, rows)
    if refused:
        first, error = next(iter(refused.items()))
        raise AINNError(f"{len(refused)} of {len(names)} images could not be measured, the rows "
                        f"of the others are kept in {kept.path}; {first}: {error}")


def _side_by_side(function: Callable, todo: dict[str, Path], title: str,
                  pool: ProcessPoolExecutor) -> Iterator[tuple[str, Future]]:
    """Call the function on every path, in the pool: key and result, in the order of completion."""
    futures = {}
    try:
        with _ctrl_c_ignored():  # processes that start now ignore it: it is for this one
            futures = {pool.submit(function, path): key for key, path in todo.items()}
        for future in tqdm(as_completed(futures), desc=title, total=len(futures), unit="image",
                           disable=None):
            if isinstance(future.exception(), BrokenProcessPool):
                raise future.exception()
            yield futures[future], future
    except BrokenProcessPool:
        raise AINNError("a measuring process died, perhaps for want of memory; try again with "
                        "fewer jobs") from None
    finally:
        for future in futures:
            future.cancel()


def look_at(images: dict[str, Path], pool: ProcessPoolExecutor) -> dict[str, str]:
    """Read every image, before hours of measuring: name -> SHA-256 of its RGB pixels.

    Raises AINNError, which counts them and names the first, where images cannot be read.
    """
    hashes, broken = {}, {}
    for name, future in _side_by_side(_pixel_hash, images, "images", pool):
        try:
            hashes[name] = future.result()
        except AINNError as error:
            broken[name] = str(error)
    if broken:
        raise AINNError(f"{len(broken)} of {len(images)} images cannot be read, so that nothing "
                        f"was measured: {named(broken.values(), '; ')}")
    return {name: hashes[name] for name in images}


def _pixel_hash(path: Path) -> str:
    return hashlib.sha256(read_rgb(path).tobytes()).hexdigest()


def check_result(output: Path, hashes: dict[str, str], measured: Codec,
                 settings: Iterable[float] | None) -> None:
    """Raises AINNError where ``output`` exists and is no result of the same measurement."""
    if not output.exists():
        return
    try:
        facts = json.loads(output.read_text(encoding="utf-8"))
        # results of earlier versions name their images only
        images = {row["image"]: row.get("sha256_rgb", hashes.get(row["image"]))
                  for row in facts["per_image"]}
        here = images, facts["description"], facts["results"]["setting"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise AINNError(f"{output} is no result of ours; --force replaces it") from None
    wanted = hashes, measured.note, [float(s) for s in settings or measured.settings]
    names = "images", "weights or options", "settings"
    if differing := [name for name, a, b in zip(names, here, wanted, strict=True) if a != b]:
        raise AINNError(f"{output} is a result of other {' and '.join(differing)}: choose another "
                        "--out, or --force to replace it")


def _measure_file(kind: str, name: str, effort: int, note: str, settings: list[float],
                  path: Path) -> list[dict]:
    measured, image = _load_once(kind, name, effort, note), Image.fromarray(read_rgb(path))
    return [{"setting": setting, **measure(measured, image, setting)} for setting in settings]


@functools.lru_cache(maxsize=1)
def _load_once(kind: str, name: str, effort: int, note: str) -> Codec:
    """`subject`, in a measuring process: retrained weights have another note and load anew."""
    return subject(kind, name, effort)


@contextlib.contextmanager
def workers(jobs: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Processes that measure images side by side; default: as many as PyTorch has threads.

    They end with the block, and at once where it ends by an exception, such as Ctrl-C. Raises
    AINNError for less than one job.
    """
    jobs = torch.get_num_threads() if jobs is None else jobs
    if jobs < 1:
        raise AINNError(f"the number of jobs must be at least 1, got {jobs}")
    before = set(active_children())
    # "spawn": a forked copy of a process whose torch has threads can hang
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin_worker)
    try:
        yield pool
    except BaseException:
        for process in set(active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """A measuring process has one thread, and ends with its parent, even with a killed one."""
    def end_with_parent() -> None:
        parent_process().join()
        os._exit(1)

    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Ignore Ctrl-C in this process, and for good in those that it starts meanwhile."""
    if threading.current_thread() is not threading.main_thread():  # it cannot set this
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def embedded(folder: str | Path) -> dict[str, Path]:
    """The embedded photos as PNG files in a folder: name -> file, as `evaluate` expects them."""
    paths = {name: Path(folder) / f"{name}.png" for name in EMBEDDED}
    for name, path in paths.items():
        photo(name).save(path)
    return paths


def without(model: AINN, *modules: str) -> AINN:
    """A copy of a trained network with some of `MODULES` replaced by their stand-ins.

    Couplings are removed on both sides, so that the core still inverts. Raises AINNError for
    another module.
    """
    if unknown := set(modules) - set(MODULES):
        raise AINNError(f"no module {unknown.pop()!r}; there are {', '.join(MODULES)}")
    model = copy.deepcopy(model)
    if "FDSM-D" in modules:
        model.g_a.fdsm_d = Copy(model.config.input_offset)
    if "FDSM-S" in modules:
        model.g_s.fdsm_s = Mean(model.config.input_offset)
    if "CFRM" in modules:
        model.g_s.cfrm = CopyToGroups()
    for name, step in model.g_s.steps:
        if "CFRM" in modules and isinstance(step, MSCFRM):
            delattr(model.g_s, name)
        if "PDM" in modules and isinstance(step, Denoise):
            delattr(model.g_s, name)
    if "couplings" in modules:
        for level in itertools.chain(*model.cores):
            level.couplings = nn.ModuleList()
    return model.eval()
