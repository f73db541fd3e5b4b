"""Files that appear whole or not at all, and places where there can be none, told before the work begins."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import AINNError


def check_folder(folder: str | Path) -> None:
    """Raises AINNError where there is no such folder and none can be made, or nothing can be written into it."""
    folder = Path(folder).absolute()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise AINNError(f"{folder} cannot be written to: {place} is " + ("read-only" if place.is_dir() else "no folder"))


def check_file(path: str | Path) -> None:
    """Raises AINNError where no file of that name can be written."""
    if Path(path).is_dir():
        raise AINNError(f"{path} cannot be written: it is a folder")
    check_folder(Path(path).parent)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when all of it is written; until then an older one stays."""
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise AINNError(f"{path} cannot be written: {error.strerror or error}") from None
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # mkstemp's 0600 is for secrets
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        if isinstance(error, OSError):  # a folder of that name, a full disk
            raise AINNError(f"{path} cannot be written: {error.strerror or error}") from None
        raise
