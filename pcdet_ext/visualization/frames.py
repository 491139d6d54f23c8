"""Frames of a data set as scenes: which frames are meant, their objects, and the paths of these over time."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from pcdet_ext.data.base import Dataset
from pcdet_ext.data.index import FrameInfo, FrameTable
from pcdet_ext.structures import Array, Detections, Sample, Targets
from pcdet_ext.visualization.scene import Scene, Track, boxes_in

Tracked = Targets | Detections

POSITION = re.compile(r"0|[1-9][0-9]*")  # with a leading zero it is the start of a name
SHOWN_NAMES = 5  # of many that a message could list


def frame_ids(frames: Sequence[FrameInfo]) -> Sequence[str]:
    """The id of every frame."""
    return frames.frame_ids if isinstance(frames, FrameTable) else [info.frame_id for info in frames]


def find_frames(ids: Sequence[str], wanted: str) -> list[int]:
    """Positions of frames that are named by their id, the start of it that no other has, or their position.

    Args:
        ids: of all frames.
        wanted: one or several such names, separated by commas. An id counts before a position, a position before the
            start of an id.

    Raises:
        ValueError: for a name that fits no frame, or several.
    """
    place = {frame_id: i for i, frame_id in enumerate(ids)}
    names = [name.strip() for name in wanted.split(",")]
    if not all(names):
        raise ValueError(f"frames must be ids or positions separated by commas, got {wanted!r}")
    return [place[name] if name in place else _find(ids, name) for name in names]


def _find(ids: Sequence[str], name: str) -> int:
    """The position of a frame that is not named by its whole id."""
    if POSITION.fullmatch(name) and int(name) < len(ids):
        return int(name)
    starting = [i for i, frame_id in enumerate(ids) if frame_id.startswith(name)]
    if len(starting) == 1:
        return starting[0]
    if starting:
        some = ", ".join(ids[i] for i in starting[:SHOWN_NAMES])
        more = f" and {len(starting) - SHOWN_NAMES} more" if len(starting) > SHOWN_NAMES else ""
        raise ValueError(f"frame {name!r} could be {some}{more}; name more of it")
    if name.isdecimal():
        raise ValueError(f"there is no frame {name}: {_extent(len(ids))}, and no id starts with it")
    close = difflib.get_close_matches(name, ids, n=1, cutoff=0)
    raise ValueError(f"there is no frame {name!r}; the nearest id is {close[0]!r}, and {_extent(len(ids))}")


def frame_range(text: str, count: int) -> range:
    """The positions A, A + STEP, … before B of a range "A:B[:STEP]"; without A from the first, without B to the last.

    Raises ValueError for what is no such range, for one without a frame, and for one beyond the `count` frames.
    """
    match = re.fullmatch(r"(\d*):(\d*)(?::(\d+))?", text.strip())
    if match is None:
        raise ValueError(f"frames must be A:B or A:B:STEP, got {text!r}")
    start, stop, step = int(match[1] or 0), int(match[2] or count), int(match[3] or 1)
    if step < 1:
        raise ValueError(f"frames {text}: the step must be at least 1")
    if stop > count or start >= count:
        raise ValueError(f"frames {text}: {_extent(count)}")
    if start >= stop:
        raise ValueError(f"frames {text}: holds no frame")
    return range(start, stop, step)


def _extent(count: int) -> str:
    return f"positions go from 0 to {count - 1}"


def frame_scenes(
    dataset: Dataset,
    positions: Sequence[int],
    split: str,
    detect: Callable[[Sample], Detections] | None = None,
    results: Mapping[str, Detections] | None = None,
    before: int | None = None,
    after: int | None = None,
) -> Iterator[Scene]:
    """The scenes of frames with their ground truth, detections and tracks.

    Args:
        dataset: whose frames they are.
        positions: of the frames.
        split: what the titles call the data set.
        detect: finds the objects of a sample.
        results: detections by frame id, where nothing is to be detected; the title says where a frame has none.
        before: over how many earlier frames tracks go, None for the whole sequence.
        after: over how many later frames tracks go, None for the whole sequence.
    """
    for position in positions:
        sample = dataset[position]
        title = f"{sample.frame_id} ({split} {position})"
        found = detect(sample) if detect is not None else None
        if results is not None:
            found = results.get(sample.frame_id)
            title += "" if found is not None else ", no results for this frame"
        journey = Journey(dataset, position, before, after)
        yield Scene(
            sample.points,
            sample.targets,
            found,
            title,
            sample.point_features,
            journey.truth_tracks(sample),
            journey.found_tracks(found, results or {}),
        )


class Journey:
    """The frames around one frame in its sequence, from which the paths of its objects are read.

    Args:
        dataset: whose frames they are; those of a sequence lie together in it, in the order of time.
        position: of the frame that is shown.
        before: how many earlier frames count, None for all.
        after: how many later frames count, None for all.

    Frames without a pose are left out; where the frame itself has no pose or sequence, there are no paths.
    """

    def __init__(self, dataset: Dataset, position: int, before: int | None = None, after: int | None = None) -> None:
        frames = dataset.frames
        here = frames[position]
        self.infos: list[FrameInfo] = []
        self._moves: list[Array] = []
        if here.pose is None or not here.sequence_id:
            return
        earlier = _while_same(frames, range(position - 1, -1, -1)[:before], here.sequence_id)
        later = _while_same(frames, range(position + 1, len(frames))[:after], here.sequence_id)
        self.infos = [info for info in (*reversed(earlier), here, *later) if info.pose is not None]
        to_here = np.linalg.inv(np.asarray(here.pose, np.float64))
        self._moves = [to_here @ np.asarray(info.pose, np.float64) for info in self.infos]

    def truth_tracks(self, sample: Sample) -> list[Track]:
        """Paths of the labelled objects of the frame."""
        targets = sample.targets
        if targets is None or targets.track_ids is None:
            return []
        return self._tracks(targets, [info.targets() for info in self.infos])

    def found_tracks(self, found: Detections | None, results: Mapping[str, Detections]) -> list[Track]:
        """Paths of the objects detected in the frame; results: what was detected in others, by frame id."""
        if found is None or found.track_ids is None:
            return []
        return self._tracks(found, [results.get(info.frame_id) for info in self.infos])

    def _tracks(self, here: Tracked, frames: Sequence[Tracked | None]) -> list[Track]:
        """Paths of the objects of one frame over the `infos`, of those that are in several of them."""
        paths: dict[int, list[Array]] = {number: [] for number in _track_ids(here)}
        for move, frame in zip(self._moves, frames, strict=True):
            centres = boxes_in(frame)[:, :3].astype(np.float64) @ move[:3, :3].T + move[:3, 3]
            for number, centre in zip(_track_ids(frame), centres, strict=False):
                if number in paths and np.isfinite(centre).all():
                    paths[number].append(centre)
        names = zip(_track_ids(here), here.names, strict=True)
        return [Track(number, name, np.stack(paths[number])) for number, name in names if len(paths[number]) > 1]


def _track_ids(frame: Tracked | None) -> list[int]:
    return [] if frame is None or frame.track_ids is None else np.asarray(frame.track_ids).tolist()


def _while_same(frames: Sequence[FrameInfo], positions: Iterable[int], sequence_id: str) -> list[FrameInfo]:
    """The frames at positions, until one is of another sequence."""
    found: list[FrameInfo] = []
    for i in positions:
        info = frames[i]
        if info.sequence_id != sequence_id:
            break
        found.append(info)
    return found
