"""The common part of all formats: frames of a prepared folder as samples, augmented in training."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.utils.data

from pcdet_ext.config import ConfigError, Node, construct, suggest
from pcdet_ext.data.augment.steps import AUGMENTATIONS, keep_classes, wrap_headings
from pcdet_ext.data.balance import balanced_frames, weighted_order, weights_of
from pcdet_ext.data.base.columns import check_point_features, check_tanh, with_tanh, with_velocity
from pcdet_ext.data.base.settings import check_classes, check_geometry
from pcdet_ext.data.geometry import boxes_in_range, points_in_range
from pcdet_ext.data.index import FOLDER, FrameInfo, FrameTable, index_path, read_index
from pcdet_ext.data.objects import database_path
from pcdet_ext.data.sequences import SequenceOptions, SequenceParts
from pcdet_ext.evaluation.base import Evaluator
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array, Detections, Sample, Targets

MAX_REPLACEMENTS = 200  # frames tried for one sample before giving up

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False, repr=False)
class FrameDataset(torch.utils.data.Dataset[Sample], ABC):
    """Frames of a prepared folder (see `pcdet_ext.data.prepare`), the common part of all formats.

    In training every sample is of a frame with points and has a box, or where boxes are not labelled, labels of another
    kind. Each sample depends on
    (seed, epoch, index) alone, so that it is the same with any number of workers. `counts` (of this process) tells
    dropped points and skipped frames; `skipped` knows those of all loader processes.

    Args:
        root: the data folder.
        classes: what is to be found; boxes of other classes are left out.
        point_cloud_range: x, y, z minimum, then maximum, in metres, outside which points and boxes are left out.
        split: the prepared split to read.
        training: whether samples are augmented, and boxes outside the range left out.
        augment: augmentation steps, each a mapping of a name and its settings.
        disable_augmentations: names of steps in `augment` that are left out.
        process: steps that every sample goes through in the end, in testing too, as `PointShuffle` or `PointSampling`.
        point_features: columns of the points, None for all that the format has.
        min_points: labelled boxes with fewer points inside are left out.
        min_box_corners: a box counts as in range with so many of its 8 corners in x-y, instead of its centre.
        mask_z: whether points are cropped in z too.
        interval: keeps every so many-th frame of the split, from the first on (5: a fifth of the frames).
        balanced: in training, frames are drawn so that each class has its share (CBGS, Zhu et al. 2019).
        class_weights: in training, how often frames with objects of a class are drawn in comparison with others (1).
        frame_weights: a file with the id and the weight of a frame in each line, by which frames are drawn as well.
        velocity: whether boxes keep their velocity, where the format has it; unknown velocities become 0.
        tanh: columns that tanh brings into (-1, 1), in the end.
        index: where the preparation of the folder lies, `<root>/pcdet_ext` when None.
        repeat: how often an epoch goes through the frames.
        sequences: in training, recordings are gone through frame by frame, with the settings of `SequenceOptions`; all
            frames of a part are augmented in one way, and frames without boxes stay. None takes frames at random.
        seed: of the augmentation.
        on_error: with "skip" a damaged frame is logged and counted, and replaced (in training by another frame, else by
            an empty cloud).

    Raises:
        DataError: for missing or damaged files, and for a folder that was prepared from files of another layout.
        ConfigError: for a class that the data does not know.

    A format overrides `read` and `evaluator`, `read_results` where results of other code bases can be shown, and where
    only some points are of use, `crop`; its own settings are further fields.
    """

    root: str | Path
    classes: Sequence[str]
    point_cloud_range: Sequence[float]
    split: str = "train"
    training: bool = False
    augment: Sequence[Mapping[str, Any]] = ()
    disable_augmentations: Sequence[str] = ()
    process: Sequence[Mapping[str, Any]] = ()
    point_features: Sequence[str] | None = None
    min_points: int = 0
    min_box_corners: int | None = None
    mask_z: bool = False
    interval: int = 1
    balanced: bool = False
    class_weights: Mapping[str, float] = field(default_factory=dict)
    frame_weights: Path | None = None
    velocity: bool = True
    tanh: Sequence[str] = ()
    index: str | Path | None = None
    repeat: int = 1
    sequences: Mapping[str, Any] | None = None
    seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"

    measures: ClassVar[type] = Detections
    PAIRED: ClassVar[bool] = False  # whether each two neighbours in `epoch_order` belong together
    LAYOUT: ClassVar[str] = ""  # of the files, as `pcdet prepare` names it, so that no other one's index is taken
    POINT_FEATURES: ClassVar[tuple[str, ...]] = ("x", "y", "z")  # all columns that a format's points have
    FURTHER_FEATURES: ClassVar[tuple[str, ...]] = ()  # columns that they have where a configuration names them

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)
        self.point_cloud_range = tuple(float(v) for v in self.point_cloud_range)
        folder = Path(self.index) if self.index else Path(self.root) / FOLDER
        self.all_frames = read_index(index_path(folder, self.split))  # of which `frames` are those in use
        if self.all_frames.layout != self.LAYOUT:
            made_as = self.all_frames.layout or "unknown"
            raise DataError(f"{self.all_frames.path}: prepared as {made_as} data, read as {type(self).__name__}")
        if not self.all_frames:
            raise DataError(f"{self.all_frames.path}: holds no frame; prepare the data again")
        self.point_features = tuple(self.POINT_FEATURES if self.point_features is None else self.point_features)
        self.counts: Counter[str] = Counter()
        # Shared memory: workers that live on see the epoch that the main process sets.
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu").share_memory_()
        check_point_features(self.point_features, self.available_features())
        check_geometry(self.point_cloud_range)
        check_tanh(self.tanh, self.point_features)
        for name, least in {"repeat": 1, "interval": 1, "min_points": 0, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.min_box_corners is not None and not 0 <= self.min_box_corners <= 8:
            raise ValueError(f"min_box_corners must lie in [0, 8], got {self.min_box_corners}")
        self._check_root(folder)
        self.check_classes()
        self.frames = self._frames_in_use()
        self.weights = self._weights()
        # One flag per frame, in shared memory too: workers that set the same flag do not disturb each other.
        self._skipped = torch.zeros(len(self.frames), dtype=torch.bool, device="cpu").share_memory_()
        self.sequence_parts = self._sequence_parts()
        context = {
            "classes": self.classes,
            "database": database_path(folder, self.split),
            "layout": self.LAYOUT,
        }
        steps = active_steps(self.augment, self.disable_augmentations) if self.training else []
        self.augmentations = [AUGMENTATIONS.build(node, **context) for node in steps]
        self._processors = [AUGMENTATIONS.build(node, **context) for node in self.process]
        self.notes = [note for step in self.augmentations for note in getattr(step, "notes", ())]

    @abstractmethod
    def read(self, info: FrameInfo) -> Sample:
        """A frame with all its points, and its boxes under the format's own class names."""

    @abstractmethod
    def evaluator(self, options: Mapping[str, Any] | None = None) -> Evaluator:
        """The format's own metric; see `Dataset`."""

    def read_results(self, path: str | Path) -> Mapping[str, Any]:
        """Results of any code base; see `Dataset`. Raises ConfigError unless a format overrides it."""
        raise ConfigError(f"{path}: results for frames of a {type(self).__name__} cannot be read")

    def available_features(self) -> tuple[str, ...]:
        """The columns that `point_features` can name: those of the format, unless they depend on data or settings."""
        return (*self.POINT_FEATURES, *self.FURTHER_FEATURES)

    def crop(self, sample: Sample) -> Sample:
        """The sample with the points that are of use; they are finite. All of them unless a format says otherwise."""
        return sample

    def check_classes(self) -> None:
        """Hold the classes against the boxes of the index; see the function of this name."""
        counts = self.all_frames.class_counts()
        check_classes(self.classes, counts, f"{self.root} ({self.split})", strict=self.training)

    def previous(self, info: FrameInfo, count: int) -> list[FrameInfo]:
        """Up to `count` frames that precede a frame in its sequence, the nearest first, whatever `interval` is."""
        return self.all_frames.previous(info.frame_id, count)

    def _frames_in_use(self) -> FrameTable:
        frames = self.all_frames
        if self.interval > 1:
            frames = frames.select(np.arange(0, len(frames), self.interval))
        if not (self.balanced and self.training):
            return frames
        rng = np.random.default_rng((self.seed, len(frames)))
        found, none = frames.frames_by_class(), np.zeros(0, np.int64)
        return frames.select(balanced_frames([found.get(name, none) for name in self.classes], rng))

    def _weights(self) -> Array | None:
        """How often each sample of an epoch of training is drawn, float64 [len(self)]; None for once each."""
        if not self.training:
            return None
        weights = weights_of(self.frames, self.classes, self.class_weights, self.frame_weights)
        if weights is not None and (self.balanced or self.PAIRED):
            raise ConfigError(
                "class_weights, frame_weights: cannot be used together with balanced, nor where neighbouring samples "
                "belong together"
            )
        return None if weights is None else np.tile(weights, self.repeat)

    def _sequence_parts(self) -> SequenceParts | None:
        if self.sequences is None:
            return None
        node = self.sequences if isinstance(self.sequences, Node) else Node(self.sequences, "data.sequences")
        options = construct(SequenceOptions, node)
        if self.balanced or self.weights is not None:
            raise ConfigError(
                "data.sequences: frames that are drawn one by one (data.balanced, class_weights, frame_weights) are no "
                "sequences"
            )
        steps = active_steps(self.augment, self.disable_augmentations)
        if any(step.get("name") == "GroundTruthSampling" for step in steps):
            raise ConfigError("data.sequences: GroundTruthSampling pastes objects that are in one frame alone")
        return SequenceParts(self.frames.sequence_ids, options) if self.training else None

    def _check_root(self, folder: Path) -> None:
        """Say so where an index that lies outside the data folder was made from another one."""
        root, made_from = Path(self.root).resolve(), self.all_frames.root
        if made_from not in (None, root) and root not in folder.resolve().parents:
            _log.warning("%s: made from %s, and used for %s; is it the same data?", folder, made_from, root)

    def check_points(self, points: Array, info: FrameInfo, path: Path) -> Array:
        """Hold the points of a file against the index.

        Args:
            points: [N, F], as they were read.
            info: the frame's entry in the index.
            path: the file, for the message.

        Returns:
            The same points.

        Raises:
            DataError: the file has another number of points than when the data was prepared.
        """
        if len(points) != info.num_points:
            raise DataError(f"{path}: {len(points)} points where the index has {info.num_points}; changed?")
        return points

    def __len__(self) -> int:
        return len(self.frames) * self.repeat

    @property
    def labelled(self) -> bool:
        """Whether any frame has labelled boxes; a format with labels of another kind says so itself."""
        return any(info.labelled for info in self.frames)

    def epoch_order(self, rng: np.random.Generator) -> Array:
        """The samples in random order, drawn by their weights where they have some; see `Dataset`."""
        return rng.permutation(len(self)) if self.weights is None else weighted_order(self.weights, rng)

    def walk_order(self, rng: np.random.Generator, lanes: int) -> Array:
        """The order of an epoch that goes through recordings; see `SequenceParts.order`."""
        if self.sequence_parts is None:
            raise ValueError("the data set is not gone through in sequences")
        return np.concatenate(
            [self.sequence_parts.order(rng, lanes) + len(self.frames) * i for i in range(self.repeat)]
        )

    @property
    def skipped(self) -> Sequence[str]:
        """Ids of the damaged frames that were left out so far; see `Dataset`."""
        return list(dict.fromkeys(self.frames[i].frame_id for i in torch.nonzero(self._skipped)[:, 0].tolist()))

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of this epoch from now on."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        if self.training:
            return self._training_sample(index)
        rng = np.random.default_rng((self.seed, index))
        return self._finish(self._read_or_skip(index) or self._blank(index), rng)

    def _training_sample(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        damaged = 0
        for _ in range(MAX_REPLACEMENTS):
            sample = self._read_or_skip(index)
            damaged += sample is None
            if sample is not None and len(sample.points):
                for number, step in enumerate(self.augmentations):
                    sample = step(sample, self._of_part(index, number) or rng)
                sample = self._finish(sample, rng)
                if self.sequence_parts is not None or _has_something(sample.targets):
                    return sample
                self.counts["samples without boxes"] += 1
            index = int(rng.integers(len(self)))
        where = f"{self.root} ({self.split}): {MAX_REPLACEMENTS} frames in a row"
        if damaged == MAX_REPLACEMENTS:
            raise DataError(f"{where} are damaged and were skipped")
        raise DataError(
            f"{where} have no box of {', '.join(self.classes)} inside point_cloud_range {list(self.point_cloud_range)}"
            + (f", or are damaged ({damaged})" if damaged else "")
        )

    def _of_part(self, index: int, step: int) -> np.random.Generator | None:
        """What draws one augmentation step in all frames of a part alike, or None where frames are taken alone."""
        if self.sequence_parts is None:
            return None
        part = int(self.sequence_parts.part_of[index % len(self.frames)])
        return np.random.default_rng((self.seed, int(self._epoch), part, step))

    def _info(self, index: int) -> FrameInfo:
        return self.frames[index % len(self.frames)]

    def _read_or_skip(self, index: int) -> Sample | None:
        try:
            return self._finite(self.read(self._info(index)))
        except (DataError, OSError) as error:
            if self.on_error == "raise":
                raise
            self.counts["skipped frames"] += 1
            self._skipped[index % len(self.frames)] = True
            _log.warning("frame skipped: %s", error)
            return None

    def _finite(self, sample: Sample) -> Sample:
        """The sample without points that are not finite, and without boxes of too few points."""
        if not np.isfinite(sample.points).all():  # found without looking at each row
            finite = np.isfinite(sample.points).all(axis=1)
            self.counts["points not finite"] += int((~finite).sum())
            if not finite.any():
                self._note("frames without a finite point", sample.frame_id, "has no point that is finite")
            sample = sample.select_points(finite)
        cropped = self.crop(sample)
        if len(sample.points) and not len(cropped.points):
            self._note("samples without points in view", sample.frame_id, "has no point in view")
        sample, targets = cropped, cropped.targets
        if targets is None or targets.num_points is None:
            return sample
        return sample.replace(targets=targets.select(targets.num_points >= self.min_points))

    def _note(self, what: str, frame_id: str, which: str) -> None:
        """Count a frame of which no point is of use, and say so of the first."""
        self.counts[what] += 1
        if self.counts[what] == 1:
            _log.warning("%s: frame %s %s; it may not be the only one", self.root, frame_id, which)

    def _blank(self, index: int) -> Sample:
        """What stands for a frame that cannot be read."""
        info = self._info(index)
        features = tuple(self.point_features or self.POINT_FEATURES)
        points = np.zeros((0, len(features)), np.float32)
        return Sample(points, features, info.frame_id, info.targets(), info.sequence_id)

    def _finish(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Crop to the range, keep the configured features and classes, bring headings into [-π, π), and process."""
        sample = sample.select_points(points_in_range(sample.points, self.point_cloud_range, self.mask_z))
        wanted = tuple(self.point_features or self.POINT_FEATURES)
        if wanted != sample.point_features:
            columns = [sample.point_features.index(name) for name in wanted]
            sample = sample.replace(points=sample.points.take(columns, axis=1), point_features=wanted)
        sample = keep_classes(sample, self.classes)
        targets = sample.targets
        if self.training and targets is not None and targets.boxes is not None:
            inside = boxes_in_range(np.asarray(targets.boxes), self.point_cloud_range, self.min_box_corners)
            sample = sample.replace(targets=targets.select(inside))
        sample = wrap_headings(with_velocity(with_tanh(sample, self.tanh), self.velocity))
        for step in self._processors:
            sample = step(sample, rng)
        return sample


def active_steps(steps: Sequence[Mapping[str, Any]], disabled: Sequence[str]) -> list[Mapping[str, Any]]:
    """The steps that are not disabled. Raises ConfigError for a disabled name that no step has."""
    names = [str(step.get("name")) for step in steps]
    for name in disabled:
        if name not in names:
            raise ConfigError(f"disable_augmentations: augment has no {name!r}{suggest(name, names)}")
    return [step for step, name in zip(steps, names, strict=True) if name not in disabled]


def _has_something(targets: Targets | None) -> bool:
    """Whether there is something to learn from: a box, or labels of another kind where boxes are not labelled."""
    if targets is None:
        return False
    if targets.boxes is not None:
        return len(targets) > 0
    others = (targets.point_labels, targets.position, targets.map_masks, targets.occupancy, targets.plan)
    return bool(targets.maps) or any(part is not None for part in others)
