"""Recordings in parts, so that a training walks through many of them side by side and frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pcdet_ext.structures import Array


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    """How a training for detectors over time goes through recordings.

    parts: into how many parts of equal length each recording is cut; every part is augmented in one way. reverse:
    share of the parts that are gone through backwards, drawn anew in every epoch.
    Raises ValueError for numbers that make no sense.
    """

    parts: int = 10
    reverse: float = 0.5

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise ValueError(f"parts must be at least 1, got {self.parts}")
        if not 0 <= self.reverse <= 1:
            raise ValueError(f"reverse must be in [0, 1], got {self.reverse}")


class SequenceParts:
    """The parts of the recordings of a data set.

    Attributes: parts, for each the positions of its frames, int64, in the order of time; part_of: int64 [N], the part
    of each frame.

    Args:
        sequence_ids: of each frame; frames of one recording stand in the order of time. A frame without a name is a
            recording of its own.
        options: how they are cut.
    """

    def __init__(self, sequence_ids: Sequence[str], options: SequenceOptions) -> None:
        self.options = options
        recordings: dict[str | int, list[int]] = {}
        for position, name in enumerate(sequence_ids):
            recordings.setdefault(name or position, []).append(position)
        self.parts = [part for frames in recordings.values() for part in _cut(frames, options.parts)]
        self.part_of = np.empty(len(sequence_ids), np.int64)
        for number, part in enumerate(self.parts):
            self.part_of[part] = number

    def order(self, rng: np.random.Generator, lanes: int) -> Array:
        """An order of all frames, int64 [K], in which each of several lanes goes through parts from end to end.

        Args:
            rng: draws the order of the parts, and which are gone through backwards.
            lanes: frames that are taken at once. Frame number t of lane l is entry `t * lanes + l`; where the frames do
                not divide by the lanes, the first ones come again at the end.
        """
        backwards = rng.random(len(self.parts)) < self.options.reverse
        drawn = [self.parts[i][::-1] if backwards[i] else self.parts[i] for i in rng.permutation(len(self.parts))]
        whole = np.concatenate(drawn)
        length = -(-len(whole) // lanes)
        return np.resize(whole, (lanes, length)).T.reshape(-1)


def _cut(frames: Sequence[int], parts: int) -> list[Array]:
    length = -(-len(frames) // parts)
    whole = np.asarray(frames, np.int64)
    return [whole[start : start + length] for start in range(0, len(whole), length)]
