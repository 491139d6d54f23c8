"""Sharing out the frames of a test over several processes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pcdet_ext.data.base import Dataset
from pcdet_ext.data.index import FrameTable


def share_of_frames(dataset: Dataset, whole_sequences: bool, rank: int, processes: int) -> Sequence[int]:
    """The samples of a data set that one of several processes tests, in their order.

    Args:
        dataset: not in training.
        whole_sequences: for a detector that remembers earlier frames: frames of one recording that stand next to each
            other stay together, and each recording goes to the process that has the fewest frames so far.
        rank: number of the process.
        processes: how many there are.
    """
    if not whole_sequences:
        return range(rank, len(dataset), processes)
    loads, own = [0] * processes, list[int]()
    for run in _runs(dataset):
        least = loads.index(min(loads))
        loads[least] += len(run)
        own += run if least == rank else ()
    return own


def _runs(dataset: Dataset) -> list[range]:
    """The samples of each recording, one after the other as they stand in the data set."""
    frames = dataset.frames
    names = frames.sequence_ids if isinstance(frames, FrameTable) else [frame.sequence_id for frame in frames]
    names = names * (len(dataset) // len(names)) if names else []  # a data set that is gone through several times
    starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    return [range(start, end) for start, end in pairwise([*starts, len(names)])]
