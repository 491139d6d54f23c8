"""The metric of result files for one's own data, of any code base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pcdet_ext.config import suggest
from pcdet_ext.data.custom.labels import read_labels
from pcdet_ext.data.custom.layout import LABELS, SETTINGS, Settings, read_settings
from pcdet_ext.data.custom.results import CustomResults, result_files
from pcdet_ext.evaluation.base import BENCHMARKS
from pcdet_ext.evaluation.rotated import RotatedResult, evaluate, occurring
from pcdet_ext.files import DataError, MissingFileError


@BENCHMARKS.register
def custom(
    ground_truth: str | Path,
    results: str | Path,
    classes: Sequence[str] = (),
    overlap: Mapping[str, float] | None = None,
) -> RotatedResult:
    """Rotated AP40 in bird's-eye view and 3-D of one's own data. Arguments as in `evaluate_folders`."""
    return evaluate_folders(ground_truth, results, classes, overlap)


def evaluate_folders(
    ground_truth: str | Path,
    results: str | Path,
    classes: Sequence[str] = (),
    overlap: Mapping[str, float] | None = None,
) -> RotatedResult:
    """Average precision of a folder of result files; these say which frames count (an empty one finds nothing).

    Args:
        ground_truth: a data folder, or its folder of labels; `dataset.yaml` there says what the labels do not.
        results: a folder of result files `<frame>.txt` or `.json`.
        classes: what is measured, by default all classes that are labelled in these frames.
        overlap: least intersection over union of a match, for classes that shall have their own.

    Raises:
        DataError: naming the file, and the line, that is missing or damaged.
        ValueError: for classes and overlaps that cannot be measured.
    """
    ground_truth, results = Path(ground_truth), Path(results)
    folder, settings = _labels_folder(ground_truth)
    labels = result_files(folder)
    found = CustomResults(results, classes)
    for name in found:
        if name not in labels:
            raise DataError(
                f"{results}: results for frame {name!r}, which {folder} has no labels of{suggest(name, labels)}"
            )
    truth = [read_labels(labels[name], settings).targets() for name in found]
    classes = tuple(classes) or occurring(truth)
    if not classes:
        raise DataError(f"{folder}: the frames of {results} have no labelled box: there is nothing to measure")
    return evaluate(truth, list(found.values()), classes, overlap)


def _labels_folder(path: Path) -> tuple[Path, Settings]:
    """The folder of label files, and the settings of the data folder that it belongs to."""
    if not path.is_dir():
        raise MissingFileError(f"{path}: no such folder")
    if (path / LABELS).is_dir():
        return path / LABELS, read_settings(path)
    beside = path.name == LABELS and (path.parent / SETTINGS).exists()
    return path, read_settings(path.parent) if beside else Settings()
