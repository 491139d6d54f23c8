"""Frames of a data set as scenes: which frames are meant, their objects, and the paths of these over time."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from pcdet_ext.data.base import Dataset
from pcdet_ext.data.index import FrameInfo, FrameTable
from pcdet_ext.structures import Array, Detections, Found, PointLabels, Predictions, Sample, Targets
from pcdet_ext.visualization.scene import Scene, Track, boxes_in, labelled_points
from pcdet_ext.visualization.seen import labelled_layers, seen

Tracked = Targets | Detections
Results = Mapping[str, Detections | PointLabels]

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
        raise ValueError(f"frame {name!r} could be {_some([ids[i] for i in starting])}; name more of it")
    if name.isdecimal():
        raise ValueError(f"there is no frame {name}: {_extent(len(ids))}, and no id starts with it")
    close = difflib.get_close_matches(name, ids, n=1, cutoff=0)
    raise ValueError(f"there is no frame {name!r}; the nearest id is {close[0]!r}, and {_extent(len(ids))}")


class Sequences:
    """Which frames of a data set follow each other; the frames of a sequence need not lie together in the index."""

    def __init__(self, frames: Sequence[FrameInfo]) -> None:
        self._frames = frames
        self._positions: dict[str, list[int]] = {}
        self._sorted: dict[str, list[int]] = {}
        names = frames.sequence_ids if isinstance(frames, FrameTable) else [info.sequence_id for info in frames]
        for i, name in enumerate(names):
            if name:
                self._positions.setdefault(name, []).append(i)

    def find(self, name: str) -> list[int]:
        """Positions of the frames of a sequence, in the order of time.

        name: the id of the sequence, or the start of it that no other has. Raises ValueError for one that is not there.
        """
        known = list(self._positions)
        if not known:
            raise ValueError("the frames of this data set belong to no sequence")
        fitting = [name] if name in known else [sequence for sequence in known if sequence.startswith(name)]
        if not fitting:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise ValueError(f"there is no sequence {name!r}; the nearest of {len(known)} is {close[0]!r}")
        if len(fitting) > 1:
            raise ValueError(f"sequence {name!r} could be {_some(fitting)}; name more of it")
        return self._in_time(fitting[0])

    def around(self, position: int, before: int | None, after: int | None) -> list[int]:
        """Positions of a frame and of others before and after it, in the order of time.

        Args:
            position: of the frame.
            before: how many before it; None for all.
            after: how many after it; None for all.

        Returns:
            The positions; none at all for a frame that belongs to no sequence.
        """
        name = self._frames[position].sequence_id
        if not name:
            return []
        order = self._in_time(name)
        place = order.index(position)
        first = 0 if before is None else max(0, place - before)
        return order[first : None if after is None else place + after + 1]

    def _in_time(self, name: str) -> list[int]:
        """Positions in the order of timestamps; as they are where a frame has none."""
        if name not in self._sorted:
            times = {i: self._frames[i].timestamp for i in self._positions[name]}
            known = {i: time for i, time in times.items() if time is not None}
            self._sorted[name] = sorted(known, key=known.__getitem__) if len(known) == len(times) else list(times)
        return self._sorted[name]


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


def _some(names: Sequence[str]) -> str:
    """The first few of names."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def _extent(count: int) -> str:
    return f"positions go from 0 to {count - 1}"


def frame_scenes(
    dataset: Dataset,
    positions: Sequence[int],
    split: str,
    detect: Callable[[Sample], Found | Predictions] | None = None,
    results: Results | None = None,
    tracks: Results | None = None,
    before: int | None = None,
    after: int | None = None,
) -> Iterator[Scene]:
    """The scenes of frames with their ground truth, detections and tracks.

    Args:
        dataset: whose frames they are.
        positions: of the frames.
        split: what the titles call the data set.
        detect: finds the objects of a sample, the classes of its points, or what else heads find.
        results: detections, or labels of all points of its file, by frame id, where nothing is to be detected; the
            title says where a frame has none.
        tracks: detections with track ids by frame id, whose paths are drawn; shown as detections, too, where nothing
            else says what these are.
        before: over how many earlier frames tracks go, None for the whole sequence.
        after: over how many later frames tracks go, None for the whole sequence.
    """
    frames, order = dataset.frames, Sequences(dataset.frames)
    shows_tracks = tracks is not None and detect is None and results is None
    for position in positions:
        sample, here = dataset[position], frames[position]
        title = f"{sample.frame_id} ({split} {position})"
        found = seen(detect(sample) if detect is not None else None)
        if results is not None:
            own = _of_sample(results.get(sample.frame_id), sample)
            found = seen(own)
            title += "" if own is not None else ", no results for this frame"
        paths = Tracks(here, [frames[i] for i in order.around(position, before, after)])
        tracked = found.boxes if tracks is None else _tracked(tracks.get(sample.frame_id), sample.frame_id)
        yield Scene(
            sample.points,
            sample.targets,
            tracked if shows_tracks else found.boxes,
            title,
            sample.point_features,
            paths.truth_tracks(sample),
            paths.found_tracks(tracked, (results if tracks is None else tracks) or {}),
            labelled_points(sample.targets) if found.labels is None else found.labels,
            labelled_layers(sample.targets, found.layers),
        )


def _tracked(found: Detections | PointLabels | None, frame_id: str) -> Detections | None:
    """Boxes with track ids. Raises ValueError for results that are none."""
    if found is not None and (not isinstance(found, Detections) or (len(found) and found.track_ids is None)):
        raise ValueError(f"frame {frame_id}: its tracks have no track ids; `pcdet track` writes results that do")
    return found if isinstance(found, Detections) else None


def _of_sample(found: Detections | PointLabels | None, sample: Sample) -> Detections | PointLabels | None:
    """A result for a frame; labels of points, which are of all points of the frame's file, for those of the sample."""
    if not isinstance(found, PointLabels):
        return found
    if sample.point_rows is None:
        raise ValueError(f"frame {sample.frame_id}: it is not known which points of its file are shown")
    return found.select(sample.point_rows)


class Tracks:
    """Some frames of a sequence, from which the paths of the objects in one of them are read.

    Args:
        here: the frame that is shown.
        infos: frames of its sequence, this one among them, in the order of time.

    Frames without a pose are left out; where the frame itself has none, there are no paths.
    """

    def __init__(self, here: FrameInfo, infos: Sequence[FrameInfo]) -> None:
        self.infos = [] if here.pose is None else [info for info in infos if info.pose is not None]
        to_here = np.eye(4) if here.pose is None else np.linalg.inv(np.asarray(here.pose, np.float64))
        self._moves = [to_here @ np.asarray(info.pose, np.float64) for info in self.infos]

    def truth_tracks(self, sample: Sample) -> list[Track]:
        """Paths of the labelled objects of the frame."""
        targets = sample.targets
        if targets is None or targets.track_ids is None:
            return []
        return self._tracks(targets, [info.targets() for info in self.infos])

    def found_tracks(self, found: Detections | None, results: Results) -> list[Track]:
        """Paths of the objects detected in the frame; results: what was detected in others, by frame id."""
        if found is None or found.track_ids is None:
            return []
        others = [results.get(info.frame_id) for info in self.infos]
        return self._tracks(found, [other if isinstance(other, Detections) else None for other in others])

    def _tracks(self, here: Tracked, frames: Sequence[Tracked | None]) -> list[Track]:
        """Paths of the objects of one frame over the `infos`, of those that are in several of them.

        An object whose track is negative, as -1, has no identity, and so no path.
        """
        paths: dict[int, list[Array]] = {number: [] for number in _track_ids(here) if number >= 0}
        for move, frame in zip(self._moves, frames, strict=True):
            centres = boxes_in(frame)[:, :3].astype(np.float64) @ move[:3, :3].T + move[:3, 3]
            for number, centre in zip(_track_ids(frame), centres, strict=False):
                if number in paths and np.isfinite(centre).all():
                    paths[number].append(centre)
        names = zip(_track_ids(here), here.names, strict=True)
        return [Track(n, name, np.stack(paths[n])) for n, name in names if len(paths.get(n, ())) > 1]


def _track_ids(frame: Tracked | None) -> list[int]:
    return [] if frame is None or frame.track_ids is None else np.asarray(frame.track_ids).tolist()
