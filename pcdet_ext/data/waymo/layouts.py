"""Which layout a folder with Waymo data has."""

from __future__ import annotations

from pathlib import Path

from pcdet_ext.data.waymo.frames import Layout
from pcdet_ext.data.waymo.parquet import ParquetLayout
from pcdet_ext.data.waymo.processed import ProcessedLayout
from pcdet_ext.files import DataError, MissingFileError


def open_layout(root: str | Path) -> Layout:
    """The layout of a data folder. Raises DataError where it has none that is known, or both."""
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"{root}: no such folder")
    known: tuple[type[ParquetLayout] | type[ProcessedLayout], ...] = (ParquetLayout, ProcessedLayout)
    kinds = [kind for kind in known if kind.is_at(root)]
    if not kinds:
        raise MissingFileError(
            f"{root}: no Waymo data here: neither Parquet components (training/lidar/*.parquet) nor a folder "
            "waymo_processed_data*"
        )
    if len(kinds) > 1:
        raise DataError(f"{root}: holds Parquet components and waymo_processed_data*; give each its own folder")
    return kinds[0](root)
