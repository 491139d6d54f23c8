"""Bird's-eye-view map segmentation: IoU of six layers at seven thresholds (Liu et al., "BEVFusion", ICRA 2023)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.files import DataError, MissingFileError, read_arrays
from pcdet_ext.structures import Array

_log = logging.getLogger(__name__)

CLASSES = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)


@dataclass(frozen=True, eq=False, kw_only=True)
class BevMapResult(Result):
    """IoU of each class at each threshold.

    counts: int64 [C, T, 3], true positives, false positives and false negatives over all cells of all samples; the
    score is the mean over the classes of the best IoU. A class that is never true nor predicted has IoU 0, as
    published.
    """

    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    counts: Array

    @staticmethod
    def of(classes: Sequence[str], thresholds: Sequence[float], counts: Array) -> BevMapResult:
        """The result of counts over all samples.

        Args:
            classes: names of the C layers.
            thresholds: the T probabilities, ascending.
            counts: int64 [C, T, 3], cells that are in both, in the prediction alone, and in the truth alone.
        """
        iou = _iou(counts)
        values: dict[str, float] = {}
        for name, row in zip(classes, iou, strict=True):
            values |= {f"map/{name}/iou@{t:.2f}": float(value) for t, value in zip(thresholds, row, strict=True)}
            values[f"map/{name}/iou@max"] = float(row.max())
        score = float(iou.max(axis=1).mean())
        values["map/mean/iou@max"] = score
        return BevMapResult(
            score=score, values=values, classes=tuple(classes), thresholds=tuple(thresholds), counts=counts
        )

    def table(self) -> str:
        """One row for each class, in percent."""
        heads = [*(f"{t:.2f}" for t in self.thresholds), "max"]
        lines = [f"{'IoU, %':<16}" + "".join(f"{head:>8}" for head in heads)]
        for name, row in zip(self.classes, _iou(self.counts), strict=True):
            lines.append(f"{name:<16}" + "".join(f"{100 * value:>8.2f}" for value in (*row, row.max())))
        return "\n".join([*lines, f"{'mean of max':<16}{100 * self.score:>{8 * len(heads)}.2f}"])

    def plots(self) -> Sequence[Plot]:
        """IoU over the threshold, of each class."""
        axis = np.array(self.thresholds)
        curves = {name: (axis, row) for name, row in zip(self.classes, _iou(self.counts), strict=True)}
        return [Plot("map_iou", "threshold", "IoU", curves)]


def _iou(counts: Array) -> Array:
    """float64 [C, T]."""
    union = counts.sum(axis=2)
    return np.divide(counts[..., 0], union, out=np.zeros(union.shape), where=union > 0)


@dataclass
class BevMapCounts:
    """Adds up the cells of samples one by one.

    classes: names of the layers; thresholds: probabilities from which a cell counts as predicted, compared in float32.
    """

    classes: tuple[str, ...] = CLASSES
    thresholds: tuple[float, ...] = THRESHOLDS
    _cells: Array = field(init=False)

    def __post_init__(self) -> None:
        if not self.classes or not self.thresholds or sorted(set(self.thresholds)) != list(self.thresholds):
            raise ValueError(f"expected classes, and ascending thresholds, got {self.classes} and {self.thresholds}")
        self._cells = np.zeros((len(self.classes), 2, len(self.thresholds) + 1), np.int64)

    def add(self, found: Array, truth: Array) -> None:
        """Take one sample.

        Args:
            found: float [C, H, W], the probability of each layer at each cell; NaN is never predicted.
            truth: bool or integer [C, H, W], 1 where the layer is.

        Raises:
            ValueError: the shapes do not fit, or the truth is neither 0 nor 1.
        """
        from pcdet_ext.evaluation.compiled_scenes import count_above

        if truth.ndim != 3 or found.shape != truth.shape or len(truth) != len(self.classes):
            expected = f"[{len(self.classes)}, H, W] both"
            raise ValueError(f"pred and gt must be {expected}, got {list(found.shape)} and {list(truth.shape)}")
        if not np.issubdtype(found.dtype, np.floating):
            raise ValueError(f"pred must be probabilities, got {found.dtype}")
        if truth.dtype.kind not in "bui" or (truth.size and not 0 <= int(truth.min()) <= int(truth.max()) <= 1):
            raise ValueError(f"gt must be whole numbers, 0 or 1, got {truth.dtype} with other values")
        flat = found.astype(np.float32, copy=False).reshape(len(found), -1)
        cells = truth.astype(np.uint8, copy=False).reshape(len(truth), -1)
        self._cells += count_above(flat, cells, np.array(self.thresholds, np.float32))

    def counts(self) -> Array:
        """True positives, false positives and false negatives so far: int64 [C, T, 3]."""
        reached = self._cells[..., ::-1].cumsum(axis=2)[..., ::-1][..., 1:]  # [C, 2, T]: cells at or above each
        total = self._cells.sum(axis=2)
        return np.stack([reached[:, 1], reached[:, 0], total[:, 1, None] - reached[:, 1]], axis=2)

    def result(self) -> BevMapResult:
        """The metric over all samples added."""
        return BevMapResult.of(self.classes, self.thresholds, self.counts())


def evaluate(
    pairs: Iterable[tuple[Array, Array]],
    classes: Sequence[str] = CLASSES,
    thresholds: Sequence[float] = THRESHOLDS,
) -> BevMapResult:
    """The metric over samples.

    Args:
        pairs: probabilities float [C, H, W] and truth [C, H, W] of each sample, see `BevMapCounts.add`.
        classes: names of the layers.
        thresholds: probabilities from which a cell counts as predicted, ascending.

    Raises:
        ValueError: the shapes do not fit, or a truth is neither 0 nor 1.
    """
    counts = BevMapCounts(tuple(classes), tuple(thresholds))
    for found, truth in pairs:
        counts.add(found, truth)
    return counts.result()


def evaluate_files(
    ground_truth: Path, results: Path, classes: Sequence[str] = CLASSES, thresholds: Sequence[float] = THRESHOLDS
) -> BevMapResult:
    """The metric over the samples of files, see `read_pairs`; a probability beyond 0 to 1 is a warning.

    Args:
        ground_truth: as for `read_pairs`.
        results: as for `read_pairs`.
        classes: names of the layers, in their order.
        thresholds: probabilities from which a cell counts as predicted, ascending.

    Raises:
        DataError: as `read_pairs`, for no sample at all, and for one of another shape or other values; the message
            names its file.
        ValueError: there are no classes, or the thresholds do not ascend.
    """
    counts, beyond, samples = BevMapCounts(tuple(classes), tuple(thresholds)), 0, 0
    names = sorted(path.name for path in ground_truth.glob("*.npz")) if ground_truth.is_dir() else []
    for found, truth in read_pairs(ground_truth, results):
        try:
            counts.add(found, truth)
        except ValueError as error:
            side = ground_truth if str(error).startswith("gt ") else results
            place = f"{side / names[samples]}" if names else f"{side}: sample {samples}"
            raise DataError(f"{place}: {error}") from error
        samples, beyond = samples + 1, beyond + int(((found < 0) | (found > 1)).sum())
    if not samples:
        raise DataError(f"{ground_truth}: has no sample: there is nothing to measure")
    if beyond:
        _log.warning("%s: %d values are not in [0, 1]; they should be probabilities, not logits", results, beyond)
    return counts.result()


def read_pairs(ground_truth: Path, results: Path) -> Iterable[tuple[Array, Array]]:
    """The samples of two files, or of two folders with one file .npz for each sample.

    Args:
        ground_truth: `gt` [N, C, H, W] in a file, [C, H, W] in the files of a folder.
        results: `pred`, likewise; in a folder, files of the same names.

    Raises:
        DataError: that names the file, where one is missing or damaged, or the two do not have the same samples.
    """
    if ground_truth.is_dir():
        names = sorted(path.name for path in ground_truth.glob("*.npz"))
        others = {path.name for path in results.glob("*.npz")}
        if not names:
            raise MissingFileError(f"{ground_truth}: no file .npz in it")
        for name in sorted(others.symmetric_difference(names)):
            raise DataError(f"{results / name}: {'not in the ground truth' if name in others else 'no such file'}")
        return ((read_arrays(results / n, "pred")[0], read_arrays(ground_truth / n, "gt")[0]) for n in names)
    (truth,), (found,) = read_arrays(ground_truth, "gt"), read_arrays(results, "pred")
    if truth.ndim != 4 or truth.shape != found.shape:
        raise DataError(
            f"{results}: pred and gt must be [samples, classes, H, W] both, got {list(found.shape)} and "
            f"{list(truth.shape)}"
        )
    return zip(found, truth, strict=True)
