"""Which frames are drawn how often.

Class-balanced (CBGS: Zhu et al., Class-balanced Grouping and Sampling, 2019), or by weights of classes and frames.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pcdet_ext.config import ConfigError, suggest
from pcdet_ext.data.index import FrameTable
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Array

_log = logging.getLogger(__name__)


def balanced_counts(counts: Sequence[int]) -> list[int]:
    """How many frames to draw for each class, so that all classes have about the same number.

    counts: frames that hold an object of each class. A class without frames gets none. Fractions are cut off in
    float64, in the published order of the operations.
    """
    total, classes = sum(counts), sum(count > 0 for count in counts)
    return [int(count * ((1 / classes) / (count / total))) if count else 0 for count in counts]


def balanced_frames(frames_with: Sequence[Array], rng: np.random.Generator) -> Array:
    """Draw frames with replacement, class after class; int64 [K].

    frames_with: int64 positions of the frames that hold an object of each class. Raises ValueError where none does.
    """
    if not any(len(found) for found in frames_with):
        raise ValueError("balanced: no frame holds an object of any class")
    wanted = balanced_counts([len(found) for found in frames_with])
    drawn = [rng.choice(found, number) for found, number in zip(frames_with, wanted, strict=True) if number]
    return np.concatenate(drawn)


def weights_of(
    frames: FrameTable, classes: Sequence[str], class_weights: Mapping[str, float], file: str | Path | None
) -> Array | None:
    """How often each frame is drawn in comparison with others, float64 [N]; None where nothing is said about it.

    A frame's weight is the largest weight of the classes of its objects, 1 for a class without one and where it has no
    object, times the weight that the file gives it.

    Args:
        frames: N frames.
        classes: those that are trained.
        class_weights: by class.
        file: see `read_frame_weights`.

    Raises:
        ConfigError: a class is unknown or in no frame, a weight is negative, or no frame has a weight above 0.
        DataError: the file is damaged, or names none of the frames.
    """
    if not class_weights and file is None:
        return None
    weights = _largest_of_classes(frames, classes, class_weights) if class_weights else np.ones(len(frames))
    if file is not None:
        by_frame = read_frame_weights(file)
        if not set(by_frame) & set(frames.frame_ids):
            raise DataError(f"{file}: names none of the frames, as {frames.frame_ids[0]!r}")
        weights = weights * [by_frame.get(frame_id, 1.0) for frame_id in frames.frame_ids]
    if not weights.any():
        raise ConfigError("class_weights, frame_weights: all frames have the weight 0")
    return weights


def _largest_of_classes(frames: FrameTable, classes: Sequence[str], class_weights: Mapping[str, float]) -> Array:
    found = frames.frames_by_class()
    for name, weight in class_weights.items():
        if name not in classes:
            raise ConfigError(f"class_weights: {name!r} is none of the classes{suggest(name, classes)}")
        if not weight >= 0:
            raise ConfigError(f"class_weights: the weight of {name!r} must be at least 0, got {weight}")
        if name not in found:
            raise ConfigError(f"class_weights: no frame holds an object of {name!r}")
    weights = np.full(len(frames), -1.0)
    for name in classes:
        holding = found.get(name, np.zeros(0, np.int64))
        weights[holding] = np.maximum(weights[holding], class_weights.get(name, 1.0))
    return np.where(weights < 0, 1.0, weights)


def read_frame_weights(path: str | Path) -> dict[str, float]:
    """Weights of frames from a text file with a frame's id and its weight in each line; frames without one have 1.

    Raises:
        MissingFileError: there is no such file.
        DataError: a line is no id and number of at least 0, or a frame has two weights; the message names the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from error
    weights: dict[str, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        frame_id, _, value = line.strip().rpartition(" ")
        weight = _number(value)
        if not frame_id or not 0 <= weight < math.inf:
            raise DataError(f"{path}:{number}: must be the id of a frame and a weight of at least 0, got {line!r}")
        if frame_id.strip() in weights:
            raise DataError(f"{path}:{number}: the frame {frame_id.strip()!r} has a weight already")
        weights[frame_id.strip()] = weight
    return weights


def _number(text: str) -> float:
    """The number that a text is, NaN for none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def weighted_order(weights: Array, rng: np.random.Generator) -> Array:
    """As many draws as there are samples, with replacement, each with the probability of its weight: int64 [N]."""
    shares = weights / weights.max()  # the sum of large weights may be no number
    return rng.choice(len(weights), len(weights), p=shares / shares.sum())
