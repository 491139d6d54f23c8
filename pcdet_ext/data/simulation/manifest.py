"""Which files a simulation has written, and how long each is: so that what is cut or gone is found and made again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pcdet_ext.files import atomic_write

FILES = "simulation.files.jsonl"  # a line for each piece of work: {"piece": name, "files": {path: bytes}}


def sizes(root: Path, paths: Iterable[Path]) -> dict[str, int]:
    """The bytes of files below a folder, by their paths in it."""
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in paths}


class Manifest:
    """The files of each piece of work below a folder.

    The list grows by a line for each piece that is done, so that it is right whenever a simulation is interrupted.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / FILES
        self.known = self.path.exists()
        self.pieces: dict[str, Mapping[str, int]] = _read(self.path) if self.known else {}

    def intact(self, piece: str) -> bool:
        """Whether a piece is done, and all its files are there with the length that they had."""
        found = self.pieces.get(piece)
        return found is not None and all(_size(self.root / name) == size for name, size in found.items())

    def add(self, piece: str, files: Mapping[str, int]) -> None:
        """A piece is done."""
        self.pieces[piece] = files
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(piece, files))

    def write(self, without: str = "") -> None:
        """Write the list anew, in the order of names; files of a folder `without` are left out, where it is named."""
        lines = []
        for piece in sorted(self.pieces):
            kept = {n: size for n, size in self.pieces[piece].items() if not without or not n.startswith(f"{without}/")}
            lines.append(_line(piece, kept))
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


def _line(piece: str, files: Mapping[str, int]) -> str:
    return json.dumps({"piece": piece, "files": dict(sorted(files.items()))}) + "\n"


def _read(path: Path) -> dict[str, Mapping[str, int]]:
    """The pieces of a list. What cannot be read of it, as a line that was being written, counts as not done."""
    pieces: dict[str, Mapping[str, int]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            pieces[str(entry["piece"])] = {str(name): int(size) for name, size in entry["files"].items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return pieces


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
