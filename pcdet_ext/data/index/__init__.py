"""The index of a prepared split: what a data set must know of its frames before it reads them.

A Parquet file that is mapped into memory: nothing of a frame is in a process before somebody asks for it, so that an
index of any size opens at once and worker processes share it.
"""

from pcdet_ext.data.index.entries import FrameInfo
from pcdet_ext.data.index.prepared import FOLDER, FORMAT, index_path, read_prepared
from pcdet_ext.data.index.table import GROUP, FrameTable, read_index
from pcdet_ext.data.index.writing import IndexWriter, index_writer, write_index

__all__ = [
    "FOLDER",
    "FORMAT",
    "GROUP",
    "FrameInfo",
    "FrameTable",
    "IndexWriter",
    "index_path",
    "index_writer",
    "read_index",
    "read_prepared",
    "write_index",
]
