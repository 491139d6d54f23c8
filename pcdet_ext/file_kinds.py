"""What a file is that was taken for another one, told by its first bytes, for messages; nothing in it is run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ENOUGH = 4096  # bytes that tell a kind
LARGEST_HEADER = 100_000_000  # bytes, of the table of contents of a safetensors file
SHOWN = 40  # characters of a text
# First bytes, and what begins with them.
BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS instead of the file (`git lfs pull` fetches it)",
    b"<!doctype html": "a web page: the download gave no file",
    b"<html": "a web page: the download gave no file",
    b"\x93NUMPY": "an array of NumPy (.npy)",
    b"\x1f\x8b": "packed with gzip: unpack it first",
    b"BZh": "packed with bzip2: unpack it first",
    b"\xfd7zXZ": "packed with xz: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
}


def kind_of(path: str | Path) -> str:
    """What a file seems to be, as "a text ('hello')"; empty where its first bytes do not tell."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(ENOUGH)
    except OSError:
        return ""
    if not start:
        return "an empty file"
    known = [kind for first, kind in BEGINNINGS.items() if start[: len(first)].lower() == first.lower()]
    if known:
        return known[0]
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    return _kind_of_tensors(path, start) or _kind_by_name(path) or _kind_of_pickle(start) or _kind_of_text(start)


def _kind_of_zip(path: str | Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return "a file of torch, or a zip archive, that is damaged or cut short: copy or download it again"
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return "a program of TorchScript (torch.jit.save), which has no parameters to load alone"
    if "data.pkl" in inner:
        return "a file of torch that is damaged: copy or download it again"
    if names and all(name.endswith(".npy") for name in names):
        return "arrays of NumPy (.npz)"
    return f"a zip archive of {len(names)} files: unpack it first"


def _kind_of_tensors(path: str | Path, start: bytes) -> str:
    """For a safetensors file: the length of its table of contents, 8 bytes, then the table in JSON, then the data."""
    length, there = int.from_bytes(start[:8], "little"), Path(path).stat().st_size
    if start[8:9] != b"{" or length > LARGEST_HEADER:
        return ""
    with Path(path).open("rb") as file:
        file.seek(8)
        header = file.read(length)
    try:
        content = json.loads(header) if len(header) == length else None
    except (ValueError, RecursionError):
        return ""
    cut = "a safetensors file that is cut short: copy or download it again"
    if not isinstance(content, Mapping):
        return cut
    entries = [entry for name, entry in content.items() if name != "__metadata__"]
    ends = [_end_of(entry) for entry in entries]
    if there < 8 + length + max(ends, default=0):
        return cut
    return f"a safetensors file with {len(entries)} tensors, and no configuration"


def _end_of(entry: Any) -> int:
    """The byte of the data at which a tensor ends; 0 for an entry that does not tell it."""
    offsets = entry.get("data_offsets") if isinstance(entry, Mapping) else None
    return offsets[1] if isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int) else 0


def _kind_by_name(path: str | Path) -> str:
    kinds = {
        ".onnx": "an ONNX model, which ONNX Runtime runs",
        ".yaml": "a configuration, of which pcdet_ext.build makes an untrained detector",
    }
    return kinds.get(Path(path).suffix.lower(), "")


def _kind_of_pickle(start: bytes) -> str:
    return "a pickle that torch did not write" if start[:1] == b"\x80" and start[1:2] <= b"\x05" else ""


def _kind_of_text(start: bytes) -> str:
    try:
        text = start[: SHOWN * 4].decode("utf-8", errors="strict" if len(start) < SHOWN * 4 else "ignore")
    except UnicodeDecodeError:
        return ""
    line = text.strip().partition("\n")[0]
    return f"a text ({line[:SHOWN]!r})" if line and line.isprintable() else ""
