"""Writing an index, entry by entry."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from pcdet_ext.data.index.entries import SCHEMA, FrameInfo, table_of
from pcdet_ext.data.index.prepared import FORMAT
from pcdet_ext.data.index.table import GROUP, KEY
from pcdet_ext.files import atomic_write


class IndexWriter:
    """Writes the entries of an index one after the other. Arguments as in `index_writer`."""

    def __init__(self, path: Path, root: Path | None = None, layout: str = "") -> None:
        self._path, self._root, self._layout = path, root, layout
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[FrameInfo] = []
        self.classes: Counter[str] = Counter()
        self.labelled = 0

    def add(self, info: FrameInfo) -> None:
        """Take the entry of the next frame."""
        self.classes.update(info.names)
        self.labelled += info.labelled
        self._rows.append(info)
        if len(self._rows) == GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path, SCHEMA, compression="none", use_dictionary=["names"], write_statistics=False
            )
        self._writer.write_table(table_of(self._rows), row_group_size=GROUP)
        self._rows = []

    def close(self, complete: bool) -> None:
        """Finish the file, where it is complete with what it says of itself."""
        if complete and (self._rows or self._writer is None):
            self._flush()
        if self._writer is not None:
            about = {
                "format": FORMAT,
                "classes": dict(self.classes.most_common()),
                "labelled": self.labelled,
                "layout": self._layout,
                "root": None if self._root is None else str(self._root.resolve()),
            }
            self._writer.add_key_value_metadata({KEY.decode(): json.dumps(about)})
            self._writer.close()


@contextmanager
def index_writer(path: Path, root: Path | None = None, layout: str = "") -> Iterator[IndexWriter]:
    """A context manager whose writer's index takes the place of `path` when the block ends without an error.

    Args:
        path: the Parquet file.
        root: the folder of the data.
        layout: how the files there are laid out, for example "kitti".
    """
    with atomic_write(path) as temporary:
        writer = IndexWriter(temporary, root, layout)
        complete = False
        try:
            yield writer
            complete = True
        finally:
            writer.close(complete)


def write_index(path: Path, infos: Iterable[FrameInfo], layout: str = "") -> None:
    """Write an index; an existing file is replaced as a whole.

    Args:
        path: the Parquet file.
        infos: the entries, in their order.
        layout: how the files of the data are laid out, for example "kitti".
    """
    with index_writer(path, layout=layout) as writer:
        for info in infos:
            writer.add(info)
