"""Where images come from: embedded photos, and data sets that are fetched or added, and verified."""

import contextlib
import csv
import hashlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm import tqdm

from .errors import UNREADABLE, AINNError

EMBEDDED = ("astronaut", "chelsea", "coffee", "rocket")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
REGISTRY = Path(__file__).resolve().parent.parent / "data" / "registry"


def photo(name: str) -> Image.Image:
    """One of the `EMBEDDED` photos as an RGB image: astronaut 512x512, chelsea 451x300, coffee 600x400, rocket 320x213.

    They come with scikit-image (free licences; see its ``data`` documentation), for evaluation only: nothing is trained on
    them. The rocket is a JPEG there and is halved, so that its blocks do not favour a codec.

    Raises:
        AINNError: for another name.
    """
    if name not in EMBEDDED:
        raise AINNError(f"no photo named {name!r}; there are {', '.join(EMBEDDED)}")
    import skimage.data

    image = Image.fromarray(np.asarray(getattr(skimage.data, name)()))
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS) if name == "rocket" else image


# -- what is known of each data set ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """One image of a data set. What is not known is None."""

    name: str
    sha256: str | None = None  # of the file
    sha256_rgb: str | None = None  # of the decoded pixels (H, W, 3), uint8: the same picture in another lossless file
    pixels: int | None = None  # H * W
    licence: str = ""
    urls: tuple[str, ...] = ()  # where the same bytes lie


@dataclass(frozen=True)
class Archive:
    """A zip file that holds a whole data set."""

    url: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Dataset:
    """A data set for "evaluation" or for "training", never for both."""

    name: str
    title: str
    purpose: str
    licence: str
    homepage: str
    count: int
    sizes: str
    files: tuple[File, ...] = ()  # empty: not even the names are known
    archive: Archive | None = None

    @property
    def fetchable(self) -> bool:
        """Whether an address with a checksum is known."""
        return self.archive is not None or any(file.urls for file in self.files)


def _listed(name: str) -> tuple[File, ...]:
    """The rows of data/registry/NAME.tsv; none where that folder is not (an installation without the checkout)."""
    path = REGISTRY / f"{name}.tsv"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = csv.DictReader((line for line in lines if not line.startswith("#")), delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(File(row["name"], row["sha256"] or None, row["sha256_rgb"] or None, int(row["pixels"]), row["licence"],
                      tuple(f"https://raw.githubusercontent.com/{owner}/{commit}/{quote(path)}" for owner, commit, path
                            in re.findall(r"(\S+)@([0-9a-f]{40}):(\S+)", row["source"]))) for row in rows)


_CLIC = "CLIC/Unsplash photographs: for research and evaluation, not to be redistributed"
DATASETS = {dataset.name: dataset for dataset in (
    Dataset("kodak", "Kodak PhotoCD PCD0992", "evaluation", "released by Kodak for unrestricted usage",
            "https://r0k.us/graphics/kodak/", 24, "768x512 and 512x768", _listed("kodak")),
    Dataset("clic2020-mobile-valid", "CLIC 2020, mobile, validation", "evaluation", _CLIC, "https://compression.cc", 61,
            "various", archive=Archive("https://data.vision.ee.ethz.ch/cvl/clic/mobile_valid_2020.zip",
                                       "ff0280382eeb32fdceb28c81a7f47ac9ad86d933ebe901680845635d04e47a10", 236_556_531)),
    # Of 10 of the 41 the hashes are known, of the others name and number of pixels; the archive as a whole by its hash.
    Dataset("clic2020-professional-valid", "CLIC 2020, professional, validation", "evaluation", _CLIC,
            "https://compression.cc", 41, "up to 2048 pixels a side", _listed("clic2020-professional-valid"),
            Archive("https://data.vision.ee.ethz.ch/cvl/clic/professional_valid_2020.zip",
                    "00be38092ade2ab5163b65f7f6523d46c7bca147007f559adbb02c0afc236b7d", 134_834_429)),
    # No hash of Tecnick is known, so nothing is downloaded: only a user's own copy is taken, by name and size.
    Dataset("tecnick", "Tecnick TESTIMAGES, RGB originals", "evaluation", "CC BY-NC-SA 3.0", "https://testimages.org", 100,
            "1200x1200", tuple(File(f"RGB_OR_1200x1200_{i:03}.png", pixels=1200 * 1200) for i in range(1, 101))),
    # 142 of the 354 were downscaled from originals and cannot be remade to the bit: they have no address.
    Dataset("train", "Training photos: CID22, gb82, wallpapers", "training", "of each photo: data/registry/train.tsv",
            "https://github.com/imazen/codec-corpus", 354, "512 to 576 pixels on the long side", _listed("train")),
)}


def dataset(name: str) -> Dataset:
    """What is known of a data set. Raises AINNError for a name that is not in `DATASETS`."""
    if name not in DATASETS:
        raise AINNError(f"no data set named {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]


def evaluation_hashes() -> frozenset[str]:
    """SHA-256 (of bytes, of RGB pixels) of all that is known to be for evaluation only, the embedded photos among it."""
    known = [file for data in DATASETS.values() if data.purpose == "evaluation" for file in data.files]
    embedded = (hashlib.sha256(photo(name).tobytes()).hexdigest() for name in EMBEDDED)
    return frozenset([*embedded, *(h for file in known for h in (file.sha256, file.sha256_rgb) if h)])


# -- what is here ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holding:
    """What a folder holds of a data set; as text one line, which calls a part "a subset"."""

    dataset: Dataset
    folder: Path
    names: tuple[str, ...]
    extra: tuple[str, ...] = ()  # of `add`: images that do not belong to it
    unverified: tuple[str, ...] = ()  # of `add`: accepted by name and size, since no hash is known

    @property
    def missing(self) -> tuple[str, ...]:
        """Images that are known by name and are not here."""
        return tuple(file.name for file in self.dataset.files if file.name not in self.names)

    def __str__(self) -> str:
        text = f"{self.dataset.name}: {len(self.names)} of {self.dataset.count} images"
        text += ": a subset" if 0 < len(self.names) < self.dataset.count else ""
        for words, names in (("missing", self.missing), ("left aside", self.extra), ("no hash to verify", self.unverified)):
            text += f"; {words}: {_some(names)}" if names and self.names else ""
        return text


def _some(names: Iterable[str]) -> str:
    """
    >>> _some("abcde")
    'a, b, c and 2 more'
    """
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def home() -> Path:
    """Where data sets are kept: $AINN_DATA, or ``ainn/data`` in the user's cache folder."""
    import pooch

    given = os.environ.get("AINN_DATA")
    return Path(given).expanduser() if given else pooch.os_cache("ainn") / "data"


def holding(name: str, folder: str | Path | None = None) -> Holding:
    """What is here of a data set, in ``folder`` or in the data home. Looks at names only. Raises AINNError as `dataset`."""
    data, place = dataset(name), Path(folder) if folder else home() / name
    listed = {file.name for file in data.files}
    ours = [n for n in _pictures(place) if n in listed or not listed]
    return Holding(data, place, tuple(ours))


def folder(name: str) -> Path:
    """The folder of a data set that is here. Raises AINNError, naming the command that gets it, when it is not."""
    held = holding(name)
    if not held.names:
        fetch_it = f"`ainn data fetch {name}` gets it, " if held.dataset.fetchable else ""
        raise AINNError(f"{name} is not here: {fetch_it}`ainn data add {name} DIR` takes a folder of yours")
    return held.folder


def images(source: str | Path) -> dict[str, Path]:
    """Names and paths, sorted, of the images of a data set (by name) or of any folder (by path).

    Raises:
        AINNError: when the data set is not here, the folder is none, or it holds no image.
    """
    if source in DATASETS:
        place = folder(source)
        return {name: place / name for name in holding(source).names}
    if not Path(source).is_dir():
        raise AINNError(f"{source} is neither a folder nor a data set ({', '.join(DATASETS)})")
    found = _pictures(Path(source))
    if not found:
        raise AINNError(f"{source} holds no image ({', '.join(IMAGES)})")
    return found


def _is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def _pictures(place: Path) -> dict[str, Path]:
    return {p.name: p for p in sorted(place.iterdir()) if _is_picture(p.name) and p.is_file()} if place.is_dir() else {}


# -- getting it -----------------------------------------------------------------------------------------------------


def fetch(name: str, folder: str | Path | None = None, progress: bool = True) -> Holding:
    """Download a data set into the data home, or into ``folder``, and verify it by SHA-256.

    Images that are here and right are not asked for again. A broken download of an archive goes on where it stopped. An
    image appears under its name only when it is whole and verified; of an archive, all images or none.

    Raises:
        AINNError: for an unknown name, a data set without a known address, no network, a connection that breaks off, a
            wrong checksum, an archive with unsafe paths, or a folder that cannot be written.
    """
    import pooch

    data = dataset(name)
    target = Path(folder) if folder else home() / name
    if not data.fetchable:
        raise AINNError(f"{name} cannot be fetched, since no address with a checksum is known: get it from {data.homepage}, "
                        f"then `ainn data add {name} DIR`")
    wanted = [file for file in data.files if data.archive or file.urls]
    absent = [file for file in wanted if not _matches(target / file.name, file)]
    if data.archive and (absent or len(_pictures(target)) < data.count):
        whole = home() / f".{name}.zip"
        with _no_empty(whole.parent):
            _download([data.archive.url], data.archive.sha256, whole, _resuming(data.archive, progress))
            try:
                _extract(whole, target)
            finally:
                whole.unlink()
    elif not data.archive:
        with _no_empty(target):
            for file in tqdm(absent, desc=name, unit="image", disable=not (progress and absent)):
                _download(file.urls, file.sha256, target / file.name, pooch.HTTPDownloader(timeout=30))
    return holding(name, target)


def add(name: str, source: str | Path) -> Holding:
    """Copy a data set from a folder of the user's, or unpack it from its archive, into the data home, verified.

    An image is known by the SHA-256 of its file, or else of its RGB pixels (then it is written anew as PNG), whatever its
    name; where no hash is known, by name and number of pixels, and the answer says so. A part is accepted, as a subset.

    Raises:
        AINNError: when an image differs from the one whose name it has, or when none belongs to the data set. Nothing is
            copied then.
    """
    data, source, target = dataset(name), Path(source), home() / name
    if source.is_file() and data.archive:
        if file_sha256(source) != data.archive.sha256:
            raise AINNError(f"{source} is not the archive of {name}: its checksum is another")
        _extract(source, target)
        return holding(name)
    if not data.files:
        raise AINNError(f"no single image of {name} is known by hash: " + (
            f"give its archive {Path(data.archive.url).name}" if data.archive else f"{REGISTRY} is not here"))
    known = {h: file for file in data.files for h in (file.sha256, file.sha256_rgb) if h}
    named = {file.name: file for file in data.files}
    taken, unverified, wrong, extra = {}, [], [], []
    for path in images(source).values():
        file = known.get(file_sha256(path)) or known.get(_sha256_rgb(path)) or named.get(path.name)
        if file is None:
            extra.append(path.name)
        elif not _matches(path, file):
            wrong.append(path.name)
        else:
            taken[file.name] = (path, file)
            unverified += [] if file.sha256 else [file.name]
    if wrong:
        raise AINNError(f"not the images of {name} that they are named after: {_some(wrong)}; nothing was copied")
    if not taken:
        raise AINNError(f"{source} holds no image of {name}")
    with arriving(target) as scratch:
        for path, file in taken.values():
            if file.sha256 and file_sha256(path) != file.sha256:
                with Image.open(path) as image:
                    image.convert("RGB").save(scratch / file.name, "PNG")
            else:
                shutil.copyfile(path, scratch / file.name)
    return replace(holding(name), extra=tuple(extra), unverified=tuple(unverified))


def file_sha256(path: Path) -> str | None:
    """The SHA-256 of a file's bytes, in hexadecimal digits; None for a file that cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_rgb(path: Path) -> str | None:
    with contextlib.suppress(*UNREADABLE), Image.open(path) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def _matches(path: Path, file: File) -> bool:
    """Whether a file is that image, as far as is known: by hash, or else by number of pixels."""
    if file.sha256:
        return file_sha256(path) == file.sha256 or file.sha256_rgb is not None and _sha256_rgb(path) == file.sha256_rgb
    with contextlib.suppress(*UNREADABLE), Image.open(path) as image:
        return image.width * image.height == file.pixels
    return False


def _download(urls: Iterable[str], sha256: str, path: Path, downloader) -> None:
    """The first of some addresses that gives the right bytes, by pooch: it verifies them before they get their name."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")  # it would report every file
    for url in urls:
        try:
            pooch.retrieve(url, f"sha256:{sha256}", path.name, path.parent, downloader=downloader)
            return
        except requests.HTTPError as error:
            why = f"the server answers {error.response.status_code}"
        except requests.exceptions.ChunkedEncodingError:
            why = "the connection broke off before the end; try again"
        except requests.RequestException:
            why = "the server does not answer; is there a network?"
        except ValueError:
            why = "its checksum is not the known one"
        except OSError as error:
            raise AINNError(f"{path.parent} cannot be written: {error.strerror or error}") from None
    raise AINNError(f"{url} cannot be fetched: {why}")


def _resuming(archive: Archive, progress: bool):
    """A downloader for pooch that keeps what came before a break, and asks the server for the rest only (HTTP Range)."""
    def download(url: str, output_file: str, _) -> None:
        import requests

        part = Path(output_file).with_name(f".{archive.sha256}.part")
        have = part.stat().st_size if part.exists() else 0
        have = have if have < archive.bytes else 0
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with requests.get(url, stream=True, timeout=30, headers=headers) as answer:
            answer.raise_for_status()
            have = have if answer.status_code == 206 else 0  # a server may send everything all the same
            bar = tqdm(total=archive.bytes, initial=have, unit="B", unit_scale=True, disable=not progress)
            with bar, open(part, "ab" if have else "wb") as file:
                for chunk in answer.iter_content(1 << 16):
                    file.write(chunk)
                    bar.update(len(chunk))
        os.replace(part, output_file)
    return download


def _extract(archive: Path, target: Path) -> None:
    """Put the images of a zip file, and nothing else, flat into a folder; all are looked at before one is written."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [(name, info) for info in file.infolist() if (name := _member(info))]
            if len({name.lower() for name, _ in members}) < len(members):
                raise AINNError(f"{archive.name} holds two images of one name")
            with arriving(target) as scratch:
                for name, info in members:
                    with file.open(info) as packed, open(scratch / name, "wb") as image:
                        shutil.copyfileobj(packed, image)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise AINNError(f"{archive.name} cannot be unpacked: {error}") from None


def _member(info: zipfile.ZipInfo) -> str | None:
    """The name under which a member is unpacked, None if it is no image. Raises AINNError for one that leads elsewhere.

    >>> _member(zipfile.ZipInfo("valid/a.png"))
    'a.png'
    """
    parts = info.filename.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in info.filename or stat.S_ISLNK(info.external_attr >> 16):
        raise AINNError(f"the archive is not safe to unpack: {info.filename!r} leads elsewhere")
    return parts[-1] if _is_picture(parts[-1]) and "__MACOSX" not in parts else None


@contextlib.contextmanager
def arriving(target: Path) -> Iterator[Path]:
    """A scratch folder whose files move to ``target`` when all of them are written; until then none is there."""
    with _no_empty(target):
        try:
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=target) as scratch:
                yield Path(scratch)
                for path in sorted(Path(scratch).iterdir()):
                    os.replace(path, target / path.name)
        except OSError as error:
            raise AINNError(f"{target} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def _no_empty(place: Path) -> Iterator[None]:
    """Take a folder away that was made meanwhile and into which nothing came."""
    new = not place.exists()
    try:
        yield
    finally:
        if new:
            with contextlib.suppress(OSError):  # it is not empty
                place.rmdir()
