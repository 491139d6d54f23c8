"""Files of data sets: the error for damaged ones, and writing so that a reader never sees half a file."""

from __future__ import annotations

import gc
import glob
import math
import os
import re
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

Array = np.ndarray
MOST_DEFLATED = 1032  # bytes that one byte of deflate can stand for
ARCHIVE_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


class DataError(RuntimeError):
    """A data file that cannot be used; the message names the file, and the line where there are lines."""


class MissingFileError(DataError):
    """A data file or folder that is not there; the message names it."""


def expand_path(path: str | Path) -> Path:
    """A path with `~`, `~user`, `$NAME` and `${NAME}` replaced by what they stand for.

    A path that exists just as it is written is taken so. Raises ValueError for a user or variable that is not known.
    """
    text = os.path.expanduser(path)
    if os.path.lexists(text):
        return Path(text)
    names = [a or b for a, b in re.findall(r"\$(?:\{([^}]*)\}|(\w+))", text, re.ASCII)]
    for name in names:
        if name not in os.environ:
            raise ValueError(f"{path}: there is no environment variable {name!r}")
    if text.startswith("~"):
        raise ValueError(f"{path}: there is no user {text[1:].split(os.sep)[0]!r}")
    return Path(os.path.expandvars(text))


def check_output_file(path: str | Path, read: Iterable[str | Path] = ()) -> None:
    """Whether a file can be written, as far as that is known before it is: for results that take long to compute.

    Args:
        path: the file.
        read: files that are read or written as well, which it must not replace.

    Raises:
        IsADirectoryError: for a folder.
        FileExistsError: it is one of `read`.
        NotADirectoryError, PermissionError: as `check_output_folder` for the folder that it would be in.
    """
    path = Path(path)
    for other in read:
        if path.resolve() == Path(other).resolve():
            raise FileExistsError(f"{path}: would replace a file that this command reads or writes; name another one")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file to write")
    check_output_folder(path.parent)


def check_output_folder(path: str | Path) -> None:
    """Whether a folder can be made and written to, as far as that is known before.

    Raises NotADirectoryError where it or a folder above it is a file, PermissionError where writing is not allowed.
    """
    path = Path(path)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        what = "is a file" if there == path else f"{there} is a file"
        raise NotADirectoryError(f"{path}: {what}; name a folder to write to")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: no permission to write in {there}")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` when the block ends without an error.

    The folder is made where missing. On any error, a full disk included, the temporary file goes and `path` stays as
    it was. Raises OSError as `check_output_file` does.
    """
    path = Path(path)
    check_output_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(path: str | Path) -> None:
    """Remove what processes that were killed while they wrote `path` with `atomic_write` have left beside it.

    Nobody may be writing `path` now.
    """
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{glob.escape(path.suffix)}"):
        left.unlink(missing_ok=True)


def read_arrays(path: str | Path, *names: str) -> tuple[Array, ...]:
    """Arrays of a file .npz by their names, stored or deflated. Reading runs no code.

    The shape that an array's header states is compared with the size of the file before memory is taken for it.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is no .npz, has no array of a name, or is damaged; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(_read_member(archive, f"{name}.npy", path.stat().st_size) for name in names)
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{path}: no readable .npz with {', '.join(names)} ({error})") from error


def _read_member(archive: zipfile.ZipFile, name: str, available: int) -> Array:
    """One array of an archive of `available` bytes. Raises one of ARCHIVE_ERRORS."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {info.compress_type}; stored and deflated ones are read")
    most = info.compress_size * (MOST_DEFLATED if info.compress_type == zipfile.ZIP_DEFLATED else 1)
    if info.compress_size > available or info.file_size > most:
        raise ValueError(f"{name} is said to have {info.file_size} bytes, more than the file can hold")
    with archive.open(info) as file:
        return read_array(file, info.file_size, name)


def read_array(file: IO[bytes], size: int, name: str) -> Array:
    """The array of an open file .npy. Reading runs no code.

    What the header states is compared with the size before memory is taken for it.

    Args:
        file: at its beginning.
        size: bytes that it has.
        name: what messages call it.

    Raises:
        ValueError: or another of ARCHIVE_ERRORS, for a damaged file, one of another version, and one with Python's
            objects.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} is of .npy version {version}; 1.0 and 2.0 are read")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(file.read(width), "little")
    if length > size - file.tell():
        raise ValueError(f"{name} is said to have a header of {length} bytes, more than the file has")
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    file.seek(-width, os.SEEK_CUR)
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects of Python, which are not read (allow_pickle=False)")
    stated, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or stated != there:
        raise ValueError(f"{name} is said to be {dtype} {list(shape)}, {stated} bytes; {there} are there")
    file.seek(0)
    array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


@contextmanager
def paused_collection() -> Iterator[None]:
    """Without Python's search for unreachable cycles, which takes half of the time of reading many objects."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
