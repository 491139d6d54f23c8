"""Files that the preparation of a folder made: where they lie, and whether they are of this version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcdet_ext.files import DataError, MissingFileError

FORMAT = 5  # of the prepared files; a reader takes no other
FOLDER = "pcdet_ext"  # under the data folder, where preparation writes unless another folder is named


def index_path(folder: str | Path, split: str) -> Path:
    """Index file of a split in a preparation folder."""
    return Path(folder) / f"index_{split}.parquet"


def require_file(path: Path) -> None:
    """Raise MissingFileError where a prepared file is not there."""
    if path.exists():
        return
    _require_data_folder(path)
    older = path.with_suffix(".json")
    if older != path and older.exists():
        raise DataError(f"{older}: of an earlier version; prepare the data again")
    raise MissingFileError(
        f"{path}: no such file; make it with `pcdet prepare` (--splits and --database name the splits; where "
        "the data folder is read-only, --out and data.index name another one)"
    )


def _require_data_folder(path: Path) -> None:
    """Raise MissingFileError where not even the data is there, in whose folder `pcdet prepare` makes its own."""
    for prepared in path.parents:
        if prepared.name == FOLDER and not prepared.parent.is_dir():
            inside = path.relative_to(prepared.parent)
            raise MissingFileError(
                f"{prepared.parent}: no such folder, so there is no {inside} in it; data.root=DIR names the "
                "folder of the data set, and `pcdet prepare DATASET --root DIR` prepares it (kitti, nuscenes, …)"
            )


def read_prepared(path: Path) -> Mapping[str, Any]:
    """The content of a prepared JSON file. Raises DataError when missing, damaged, or of another format."""
    require_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); prepare the data again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: not of this version's format {FORMAT}; prepare the data again")
    return content
