"""Where images come from: embedded photos, and data sets, fetched or added, always verified."""

import csv
import hashlib
import os
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..codec.files import atomic_write, check_folder, make_folder
from ..errors import AINNError
from ..paths import REGISTRY

EMBEDDED = ("astronaut", "chelsea", "coffee", "rocket")
IMAGES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".heic", ".heif", ".jxl", ".jp2",
          ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


def photo(name: str) -> Image.Image:
    """One of the `EMBEDDED` photos as an RGB image. Raises AINNError for another name.

    Sizes: astronaut 512x512, chelsea 451x300, coffee 600x400, rocket 320x213. The photos come with
    scikit-image (free licences; see its ``data`` documentation). They are for evaluation only. The
    rocket is a JPEG there and is halved, so that its blocks do not favour a codec.
    """
    if name not in EMBEDDED:
        raise AINNError(f"no photo named {name!r}; there are {', '.join(EMBEDDED)}")
    import skimage.data

    image = Image.fromarray(np.asarray(getattr(skimage.data, name)()))
    if name == "rocket":
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    return image


@dataclass(frozen=True)
class File:
    """One image, or an archive of images."""

    name: str
    sha256: str | None = None  #: of the file; None: not known
    sha256_rgb: str | None = None  #: of the pixels (H, W, 3), uint8: any lossless file of the image
    urls: tuple[str, ...] = ()  #: addresses of the file


@dataclass(frozen=True)
class Dataset:
    """A data set for "evaluation" or for "training", never for both."""

    name: str
    count: int  #: of images
    purpose: str
    about: str  #: title, sizes and licence
    homepage: str
    files: tuple[File, ...] = ()  #: empty: not even the names are known
    archive: File | None = None  #: a zip file with all of it

    @property
    def fetchable(self) -> bool:
        """Whether an address with a checksum is known."""
        return self.archive is not None or any(file.urls for file in self.files)


def _registered(name: str) -> tuple[File, ...]:
    """The rows of data/registry/NAME.tsv; none where the file is missing."""
    path = REGISTRY / f"{name}.tsv"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [line for line in lines if not line.startswith("#")]
    files = []
    for row in csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE):
        places = re.findall(r"(\S+)@([0-9a-f]{40}):(\S+)", row["source"])
        urls = tuple(f"https://raw.githubusercontent.com/{owner}/{commit}/{quote(path)}"
                     for owner, commit, path in places)
        files.append(File(row["name"], row["sha256"] or None, row["sha256_rgb"] or None, urls))
    return tuple(files)


def _clic(name: str, sha256: str) -> File:
    return File(name, sha256, urls=(f"https://data.vision.ee.ethz.ch/cvl/clic/{name}",))


_DATASETS = (
    Dataset("kodak", 24, "evaluation",
            "Kodak PhotoCD PCD0992; 768x512 and 512x768; released for unrestricted usage",
            "https://r0k.us/graphics/kodak/", _registered("kodak")),
    Dataset("clic2020-mobile-valid", 61, "evaluation",
            "CLIC 2020, mobile, validation; for research, not to be redistributed",
            "https://compression.cc", archive=_clic(
                "mobile_valid_2020.zip",
                "ff0280382eeb32fdceb28c81a7f47ac9ad86d933ebe901680845635d04e47a10")),
    # The hashes of 10 are known, of the others the name.
    Dataset("clic2020-professional-valid", 41, "evaluation",
            "CLIC 2020, professional, validation; for research, not to be redistributed",
            "https://compression.cc", _registered("clic2020-professional-valid"), _clic(
                "professional_valid_2020.zip",
                "00be38092ade2ab5163b65f7f6523d46c7bca147007f559adbb02c0afc236b7d")),
    # No hash is known: a user's own copy is accepted by its names.
    Dataset("tecnick", 100, "evaluation",
            "Tecnick TESTIMAGES, RGB originals; 1200x1200; CC BY-NC-SA 3.0",
            "https://testimages.org",
            tuple(File(f"RGB_OR_1200x1200_{i:03}.png") for i in range(1, 101))),
    # 142 were downscaled by us and cannot be made again to the bit: they have no address.
    Dataset("train", 354, "training",
            "CID22, gb82, wallpapers; 512 to 576 pixels on the long side; "
            "licence of each photo: data/registry/train.tsv",
            "https://github.com/imazen/codec-corpus", _registered("train")),
)
DATASETS = {known.name: known for known in _DATASETS}


def dataset(name: str) -> Dataset:
    """What is known of a data set. Raises AINNError for a name that is not in `DATASETS`."""
    if name not in DATASETS:
        raise AINNError(f"no data set named {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]


def evaluation_hashes() -> frozenset[str]:
    """SHA-256, of bytes and of RGB pixels, of all images that are for evaluation only.

    Raises AINNError where the lists of them are missing: nothing must pass unchecked.
    """
    if not DATASETS["kodak"].files:
        raise AINNError("the lists of the images that are for evaluation only are missing "
                        f"({REGISTRY.name}/*.tsv): install the package again")
    hashes = {hashlib.sha256(photo(name).tobytes()).hexdigest() for name in EMBEDDED}
    for known in DATASETS.values():
        if known.purpose == "evaluation":
            for file in known.files:
                hashes |= {file.sha256, file.sha256_rgb}
    return frozenset(hashes - {None})


@dataclass(frozen=True)
class Holding:
    """What a folder holds of a data set. As text one line, which calls a part "a subset"."""

    dataset: Dataset
    folder: Path
    names: tuple[str, ...]

    def __str__(self) -> str:
        part = ": a subset" if 0 < len(self.names) < self.dataset.count else ""
        return f"{self.dataset.name}: {len(self.names)} of {self.dataset.count} images{part}"


def home() -> Path:
    """Where data sets are kept: $AINN_DATA, or ``ainn/data`` in the user's cache folder."""
    import pooch

    given = os.environ.get("AINN_DATA")
    return Path(given).expanduser() if given else pooch.os_cache("ainn") / "data"


def holding(name: str, folder: str | Path | None = None) -> Holding:
    """What is here of a data set, in ``folder`` or in the data home. Looks at names only.

    Raises AINNError for an unknown data set.
    """
    known, place = dataset(name), Path(folder) if folder else home() / name
    listed = {file.name for file in known.files}
    names = [name for name in _pictures(place) if name in listed or not listed]
    return Holding(known, place, tuple(names))


def images(source: str | Path) -> dict[str, Path]:
    """Names and paths, sorted, of the images of a data set (by name) or of any folder (by path).

    Images in the folder's subfolders are called "subfolder/name". A warning counts and names what
    is left out: files with other endings, and links to folders. Hidden ones are passed over.

    Raises AINNError when the data set is not here, the folder is none, or it holds no image.
    """
    if source in DATASETS:
        held = holding(source)
        if not held.names:
            fetch_it = f"`ainn data fetch {source}` gets it, " if held.dataset.fetchable else ""
            add_it = f"`ainn data add {source} DIR` adds a folder of yours"
            raise AINNError(f"{source} is not here: {fetch_it}{add_it}")
        return {name: held.folder / name for name in held.names}
    if not Path(source).is_dir():
        raise AINNError(f"{source} is neither a folder nor a data set ({', '.join(DATASETS)})")
    found, others = _walk(Path(source))
    if not found:
        raise AINNError(f"{source} holds no image ({', '.join(IMAGES)})")
    if others:
        total = len(found) + len(others)
        warnings.warn(f"{len(others)} of {total} files in {source} are left out, since their names "
                      f"have no image's ending: {named(others)}", stacklevel=2)
    return found


def _walk(place: Path) -> tuple[dict[str, Path], list[str]]:
    """Images below a folder, by name and sorted, and the names of what is none."""
    found, others = {}, []
    for folder, folders, files in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in files + linked:
            path = Path(folder) / name
            if _is_picture(name) and path.is_file():
                found[path.relative_to(place).as_posix()] = path
            elif not name.startswith("."):
                others.append(path.relative_to(place).as_posix())
    return dict(sorted(found.items())), sorted(others)


def named(names: Iterable[str], between: str = ", ", most: int = 3) -> str:
    """The first few of some names, and how many more there are.

    >>> named("abcde")
    'a, b, c and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def label(source: str) -> str:
    """What to call the images in results: a folder is no data set because of its name.

    >>> label("kodak"), label("./kodak"), label("my/photos")
    ('kodak', 'folder-kodak', 'photos')
    """
    known = (*DATASETS, "embedded")
    name = Path(source).resolve().name
    return source if source in known else f"folder-{name}" if name in known else name


def _is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def _pictures(place: Path) -> dict[str, Path]:
    paths = sorted(place.iterdir()) if place.is_dir() else []
    return {path.name: path for path in paths if _is_picture(path.name) and path.is_file()}


def fetch(name: str, folder: str | Path | None = None) -> Holding:
    """Download what is missing of a data set into the data home, or into ``folder``.

    A file gets its name only when it is complete and its SHA-256 is verified.

    Raises:
        AINNError: for an unknown name, a data set without a known address, a failed download, a
            wrong checksum, or a folder that cannot be written.
    """
    known, target = dataset(name), Path(folder) if folder else home() / name
    if not known.fetchable:
        raise AINNError(f"{name} cannot be fetched, since no address with a checksum is known: "
                        f"get it from {known.homepage}, then `ainn data add {name} DIR`")
    check_folder(target)
    if known.archive is None:
        for file in tqdm(known.files, desc=name, unit="image", disable=None):
            if file.urls:
                _download(file, target)
    elif len(_pictures(target)) < known.count:
        with tempfile.TemporaryDirectory() as scratch:
            _download(known.archive, Path(scratch), sys.stderr.isatty())
            _unpack(Path(scratch) / known.archive.name, target)
    return holding(name, target)


def _download(file: File, folder: Path, progress: bool = False) -> None:
    """Try one address after the other; pooch verifies the file, also one that is here already."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")  # it would report every file
    for url in file.urls:
        try:
            pooch.retrieve(url, f"sha256:{file.sha256}", file.name, folder, progressbar=progress)
            return
        except requests.HTTPError as error:
            why = f"the server answers {error.response.status_code}"
        except requests.RequestException:
            why = "the connection failed or broke off; try again"
        except ValueError:
            why = "its checksum is not the known one"
    raise AINNError(f"{url} cannot be fetched: {why}")


def _unpack(archive: Path, target: Path) -> None:
    """Put the images of a verified zip file into a folder, without the folders they are in."""
    make_folder(target)
    with zipfile.ZipFile(archive) as packed:
        for member in packed.namelist():
            name = PurePosixPath(member).name
            if _is_picture(name):
                with atomic_write(target / name) as file:
                    file.write(packed.read(member))


def add(name: str, source: str | Path) -> Holding:
    """Copy a data set from a folder, or unpack it from its archive, into the data home, verified.

    Images are known by their names, and must have the SHA-256 that is registered, if one is. A part
    of the data set is accepted.

    Raises:
        AINNError: when an image is not the registered one, or when none belongs to the data set.
            Nothing is copied then.
    """
    known, source, target = dataset(name), Path(source), home() / name
    if source.is_file() and known.archive:
        if file_sha256(source) != known.archive.sha256:
            raise AINNError(f"{source} is not the archive of {name}: its checksum is another")
        _unpack(source, target)
        return holding(name)
    found = {path.name: path for path in images(source).values()}
    files = [file for file in known.files if file.name in found]
    if not files:
        whole = f"; its archive is {known.archive.name}" if known.archive else ""
        raise AINNError(f"{source} holds no image of {name}{whole}")
    for file in files:
        if file.sha256 not in (None, file_sha256(found[file.name])):
            raise AINNError(f"{found[file.name]} is not the image of {name}: nothing was copied")
    make_folder(target)
    for file in files:
        with open(found[file.name], "rb") as original, atomic_write(target / file.name) as copy:
            shutil.copyfileobj(original, copy)
    return holding(name)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
