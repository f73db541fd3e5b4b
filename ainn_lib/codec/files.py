"""Files that appear whole or not at all, in folders where one process is at work."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from ..errors import AINNError


def check_folder(folder: str | Path) -> None:
    """Raises AINNError where the folder is neither here nor can be made, or is read-only."""
    folder = Path(folder).absolute()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if not place.is_dir():
        raise AINNError(f"{folder} cannot be written to: {place} is no folder")
    if not os.access(place, os.W_OK):
        raise AINNError(f"{folder} cannot be written to: {place} is read-only")


def make_folder(folder: str | Path) -> Path:
    """Make a folder, and those above it. Raises AINNError where that cannot be."""
    folder = Path(folder)
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a full disk, a name that is too long
        raise AINNError(f"{folder} cannot be made: {error.strerror or error}") from None
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from the same output: a file, or a folder that exists.

    The lock is a file beside the one, or in the other. The system frees it when the process ends,
    in whatever way.

    Raises:
        AINNError: when another process holds the lock.
    """
    mark = path / ".lock" if path.is_dir() else path.parent / f".{path.name[:200]}.lock"
    lock = FileLock(mark, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise AINNError(
            f"another process is at work on {path}: wait for it, or choose another") from None
    except OSError as error:
        raise AINNError(f"{path} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)
        lock.release()


def check_file(path: str | Path) -> None:
    """Raises AINNError where no file of that name can be written."""
    if Path(path).is_dir():
        raise AINNError(f"{path} cannot be written: it is a folder")
    check_folder(Path(path).parent)


def check_replaceable(path: Path, magic: bytes | None = None) -> None:
    """Raises AINNError where a file of the user's has that name.

    An empty file may be replaced, and one that begins with ``magic``.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    with open(path, "rb") as file:
        if magic is None or file.read(len(magic)) != magic:
            raise AINNError(f"{path} exists already; --force replaces it")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that gets its name, and replaces an older one, only when all is written.

    Links are followed, and an older file's permissions stay. What is no regular file, such as a
    device or a pipe, is written to as it is.

    Raises:
        AINNError: when it cannot be written.
    """
    place = path.resolve()
    special = place.exists() and not place.is_file() and not place.is_dir()
    # not the file's own name in it: that may be as long as names can be
    partial = place.parent / f".{secrets.token_hex(8)}.part"
    try:
        with open(place, "wb") if special else open(partial, "x+b") as file:
            yield file
        if not special:
            if place.is_file():
                shutil.copymode(place, partial)
            os.replace(partial, place)
    except OSError as error:  # no such folder, a folder of that name, a full disk
        raise AINNError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
