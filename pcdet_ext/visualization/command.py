"""What the command `pcdet visualize` does."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from pcdet_ext import checkpoint, config
from pcdet_ext.config import section
from pcdet_ext.data.base import Dataset, collate
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.files import DataError, check_output_file
from pcdet_ext.inference import Detector, check_finds, load
from pcdet_ext.structures import Detections, Found, Predictions, Sample
from pcdet_ext.visualization.animation import write_animation
from pcdet_ext.visualization.bev import draw_bev
from pcdet_ext.visualization.frames import Results, Sequences, find_frames, frame_ids, frame_range, frame_scenes
from pcdet_ext.visualization.page import write_page
from pcdet_ext.visualization.rerun_recording import write_recording
from pcdet_ext.visualization.scene import Scene, read_scene
from pcdet_ext.visualization.seen import seen, with_seen
from pcdet_ext.visualization.view import render, show_window

# Files that hold several frames, and what draws them.
PLAYERS = {".html": "page", ".gif": "animation", ".rrd": "recording"}
TOUR_TRACK = 10  # earlier frames that a track in a tour goes back

_log = logging.getLogger(__name__)


def visualize(
    files: list[Path],
    out: Path | None = None,
    style: str | None = None,
    labels: Path | None = None,
    results: Path | None = None,
    calib: Path | None = None,
    score: float = 0.3,
    device: str = "auto",
    imports: bool = False,
    features: Sequence[str] | None = None,
) -> list[Path]:
    """Draw each frame that `files` names; returns the pictures written (none for a window).

    Args:
        files: point files or label files, and at most one checkpoint (.ckpt, or the name of one that comes with the
            library) whose detector is run on the points.
        out: a .png, .html, .gif or .rrd file, a folder for several frames, or None for a window. All but a .png file
            can hold several frames.
        style: "map" (from above), "view" (Open3D) or "page" (HTML), by default what the suffix of `out` means.
        labels: a label file, or a folder of them.
        results: a result file, or a folder of them.
        calib: a calibration file, or a folder of them.
        score: lowest score shown.
        device: see `inference.load`.
        imports: see `inference.load`.
        features: columns of the points, by default those that the detector reads, or else what is usual for the files.

    Raises:
        ValueError, OSError, RuntimeError, ImportError: with a message that names the file or the missing part.
    """
    checkpoints = [f for f in files if _is_checkpoint(f)]
    frames = [f for f in files if not _is_checkpoint(f)]
    if len(checkpoints) > 1 or not frames:
        raise ValueError("give at least one frame (points or labels) and at most one checkpoint")
    for path in frames:
        if not path.exists():
            raise ValueError(f"{path}: no such file{checkpoint.suggestion(path)}")
    if checkpoints and features is not None:
        raise ValueError("the columns of the points are those that the detector reads; leave out --features")
    _check_one_source(checkpoints, results)
    pictures = Pictures([(str(frame), frame.stem) for frame in frames], out, style, score)
    detector = _detector(checkpoints[0], device, imports) if checkpoints else None
    features = features if detector is None else detector.point_features
    scenes = (_file_scene(frame, labels, results, calib, features, detector) for frame in frames)
    return pictures.draw(scenes)


def visualize_frames(
    source: str | Path,
    overrides: Iterable[str] = (),
    split: str | None = None,
    frame: str | None = None,
    frames: str | None = None,
    sequence: str | None = None,
    out: Path | None = None,
    style: str | None = None,
    results: Path | None = None,
    tracks: Path | None = None,
    score: float = 0.3,
    device: str = "auto",
    imports: bool = False,
) -> list[Path]:
    """Draw frames of a data set; returns the pictures written (none for a window).

    Args:
        source: a configuration, or a checkpoint (.ckpt) whose detector is run on the frames.
        overrides: changes "a.b=value" of the configuration, as `data.root=…`.
        split: the prepared split, by default the configuration's `test.split`, else "val".
        frame: ids of frames, the starts of ids, or positions, separated by commas.
        frames: a range of positions "A:B[:STEP]".
        sequence: the id of a sequence, or the start of it: its frames in the order of time, `frames` being positions
            among them.
        out: see `visualize`.
        style: see `visualize`.
        results: results of any code base in the benchmark's own format.
        tracks: results with track ids, as `pcdet track` writes them: their paths are drawn, and their boxes where
            neither a detector nor `results` says what was found.
        score: lowest score shown.
        device: see `inference.load`.
        imports: see `inference.load`.

    Raises:
        ValueError: for frames that are not there (ConfigError for a wrong configuration).
        DataError: for a damaged file.
        OSError, RuntimeError, ImportError: the pictures cannot be drawn or written.
    """
    trained = Path(source).suffix == ".ckpt"
    _check_one_source([source] if trained else [], results)
    detector = _detector(Path(source), device, imports, overrides) if trained else None
    settings = config.load(source, overrides) if detector is None else detector.config
    split = split or str(section(settings, "test").get("split", "val") if settings.get("test") is not None else "val")
    dataset = build_dataset(section(settings, "data"), split, training=False)
    positions, ids = _chosen(dataset, frame, frames, sequence)
    found, tracked = (_results(dataset, path, ids) for path in (results, tracks))
    pictures = Pictures([(frame_id, re.sub(r"[^\w.+-]", "_", frame_id)) for frame_id in ids], out, style, score)
    reach = {"before": TOUR_TRACK, "after": 0} if pictures.tour else {}
    detect = None if detector is None else partial(detect_in_sample, detector)
    return pictures.draw(frame_scenes(dataset, positions, split, detect, found, tracked, **reach))


def _results(dataset: Dataset, path: Path | None, ids: Sequence[str]) -> Results | None:
    """The results of a file or a folder. Raises DataError where none is of the frames that are drawn."""
    if path is None:
        return None
    found: Results = dataset.read_results(path)
    if not any(frame_id in found for frame_id in ids):
        raise DataError(f"{path}: has no results for {_listed(ids)}")
    return found


def _is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint's, or the name of one that comes with the library."""
    return path.suffix == ".ckpt" or (path.as_posix() in checkpoint.packaged() and not path.exists())


def _check_one_source(checkpoints: Sequence[str | Path], results: Path | None) -> None:
    if checkpoints and results is not None:
        raise ValueError(f"{checkpoints[0]} and {results} both say what was found; give a checkpoint or --results")


def _chosen(
    dataset: Dataset, frame: str | None, frames: str | None, sequence: str | None
) -> tuple[Sequence[int], list[str]]:
    """Positions and ids of the frames that are to be drawn."""
    if frame is not None and (frames is not None or sequence is not None):
        raise ValueError("name frames by id or position, or give a range or a sequence; not both")
    if frame is not None:
        positions: Sequence[int] = find_frames(frame_ids(dataset.frames), frame)
    elif sequence is not None:
        among = Sequences(dataset.frames).find(sequence)
        positions = among if frames is None else [among[i] for i in frame_range(frames, len(among))]
    elif frames is not None:
        positions = frame_range(frames, len(dataset.frames))
    else:
        raise ValueError("name frames by id or position, or give a range or a sequence")
    return positions, [dataset.frames[i].frame_id for i in positions]


def _listed(ids: Sequence[str]) -> str:
    return f"frame {ids[0]}" if len(ids) == 1 else f"any of the {len(ids)} frames {ids[0]}, …"


def _detector(path: Path, device: str, imports: bool, overrides: Iterable[str] = ()) -> Detector:
    detector = load(path, device, overrides, imports)
    kinds = {getattr(head, "finds", Detections) for head in detector.model.named_heads().values()}
    if not kinds & set(get_args(Found)):
        check_finds(detector.model, Detections)
    return detector


def detect_in_sample(detector: Detector, sample: Sample) -> Found | Predictions:
    """What all heads of a detector find in a sample of a data set, as arrays."""
    found: Found | Predictions = detector.predict(collate([sample], detector.classes))[0].numpy()
    return found


def _file_scene(
    frame: Path,
    labels: Path | None,
    results: Path | None,
    calib: Path | None,
    features: Sequence[str] | None,
    detector: Detector | None,
) -> Scene:
    alone = frame.suffix == ".txt"
    if alone and detector is not None:
        raise ValueError(f"{frame.stem}: a detector needs points, not labels alone")
    scene = read_scene(
        points=None if alone else frame,
        labels=frame if alone else _of_frame(labels, frame),
        calibration=_of_frame(calib, frame),
        results=_of_frame(results, frame),
        features=features,
    )
    if detector is not None:  # it reads the file itself, as it knows what it needs
        return with_seen(scene, seen(detector.detect(frame)))
    if not scene.finite().holds_something:
        raise DataError(f"{frame}: has no finite point, nor boxes: there is nothing to draw")
    return scene


def _of_frame(path: Path | None, frame: Path) -> Path | None:
    """The file of a frame in a folder of files, or the file itself."""
    if path is None or not path.is_dir():
        return path
    candidate = path / f"{frame.stem}.txt"
    if not candidate.exists():
        raise ValueError(f"{candidate}: no such file")
    return candidate


class Pictures:
    """Where the pictures of frames go, and how they are drawn.

    Args:
        names: what each frame is called in messages, and what its picture is.
        out: a .png, .html, .gif or .rrd file, a folder for several frames, or None for a window.
        style: "map", "view" or "page", None for what the suffix of `out` means.
        score: lowest score shown.

    Raises:
        ValueError: these do not fit together, or two frames would have the same picture.
        OSError: `out` cannot be written.
    """

    def __init__(self, names: Sequence[tuple[str, str]], out: Path | None, style: str | None, score: float) -> None:
        if not score <= math.inf:
            raise ValueError(f"score must be a number, got {score}")
        self.score, self.count = score, len(names)
        self.style = style or PLAYERS.get("" if out is None else out.suffix, "map")
        self.targets = [] if out is None else _targets(names, out, self.style)
        for target in self.targets:
            check_output_file(target)
        if out is not None and not out.suffix:
            _note_others(out, self.targets)

    @property
    def tour(self) -> bool:
        """Whether all frames go into one file that plays them."""
        return self.count > len(self.targets) == 1

    def draw(self, scenes: Iterable[Scene]) -> list[Path]:
        """Draw the scenes, one per name, each when it comes; the pictures written."""
        if not self.targets:
            for scene in scenes:
                show_window(scene.above(self.score))
        elif self.style == "animation":
            write_animation((scene.above(self.score) for scene in scenes), self.targets[0])
        elif self.style == "recording":
            write_recording((scene.above(self.score) for scene in scenes), self.targets[0])
        elif self.tour:
            write_page(scenes, self.targets[0], self.score)  # all detections: the page filters by itself
        else:
            for scene, target in zip(scenes, self.targets, strict=True):
                self._write(scene, target)
        return self.targets

    def _write(self, scene: Scene, target: Path) -> None:
        if self.style == "page":
            write_page(scene, target, self.score)  # all detections: the page filters by itself
        elif self.style == "view":
            render(scene.above(self.score), target)
        else:
            draw_bev(scene.above(self.score), target)


def _targets(names: Sequence[tuple[str, str]], out: Path, style: str) -> list[Path]:
    """Where each frame's picture goes, or the one file that plays them all."""
    suffix = next((suffix for suffix, player in PLAYERS.items() if player == style), ".png")
    if not out.suffix:
        return _in_folder(names, out, suffix)
    if out.suffix != suffix:
        raise ValueError(f"{out}: a picture of style {style!r} is a {suffix} file")
    if len(names) > 1 and out.suffix not in PLAYERS:
        raise ValueError(f"{out}: several frames need a folder, or an .html, .gif or .rrd file that plays them")
    return [out]


def _in_folder(names: Sequence[tuple[str, str]], out: Path, suffix: str) -> list[Path]:
    """A picture of each frame's name. Raises ValueError where two would have the same, and one be lost."""
    of: dict[Path, str] = {}
    for frame, name in names:
        target = out / f"{name}{suffix}"
        if target in of:
            raise ValueError(f"{target}: would be the picture of {of[target]} and of {frame}; draw them one by one")
        of[target] = frame
    return list(of)


def _note_others(folder: Path, targets: Sequence[Path]) -> None:
    """Say so where a folder holds pictures that are not drawn anew."""
    there = (path for path in folder.glob("*") if path.suffix in (".png", ".html"))
    others = sorted(set(there) - set(targets))
    if others:
        _log.warning("%s: also holds pictures of other runs (%d, as %s)", folder, len(others), others[0].name)
