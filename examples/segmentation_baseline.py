"""Nearest centroids as a baseline of point segmentation: `segmentation_baseline.py CONFIG data.root=DIR`.

Each class has the mean of what its training points are by themselves: x, y, z, intensity and distance from the sensor,
each divided by its deviation. A point has the class of the nearest mean. Measured as `pcdet test` measures a detector.
"""

import sys

import numpy as np

from pcdet_ext import config
from pcdet_ext.data.base import Dataset
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.structures import Array, PointLabels, Sample


def point_values(sample: Sample) -> Array:
    """x, y, z, intensity and distance from the sensor of each point, float64 [N, 5]."""
    points = sample.points[:, :4].astype(np.float64)
    return np.column_stack([points, np.linalg.norm(points[:, :3], axis=1)])


def class_means(training: Dataset) -> tuple[Array, Array]:
    """Mean values of each class, float64 [C, 5] (infinite for one without points), and their deviation, [5]."""
    count = len(training.classes)
    number, total, squares = np.zeros(count), np.zeros((count, 5)), np.zeros(5)
    for i in range(len(training)):
        sample = training[i]
        if sample.targets is None or sample.targets.point_labels is None:
            raise ValueError(f"frame {sample.frame_id} has no labels of points to learn from")
        labels = np.asarray(sample.targets.point_labels)
        values, labels = point_values(sample)[labels >= 0], labels[labels >= 0]
        number += np.bincount(labels, minlength=count)
        np.add.at(total, labels, values)
        squares += (values**2).sum(axis=0)
    deviation = np.sqrt(squares / number.sum() - (total.sum(axis=0) / number.sum()) ** 2)
    means = np.full((count, 5), np.inf)
    means[number > 0] = total[number > 0] / number[number > 0, None]
    return means, deviation


def nearest(sample: Sample, means: Array, deviation: Array) -> Array:
    """The class of the nearest mean for each point, int64 [N]."""
    known = np.flatnonzero(np.isfinite(means[:, 0]))
    values, centres = point_values(sample) / deviation, means[known] / deviation
    distance = -2 * values @ centres.T + (centres**2).sum(axis=1)
    chosen: Array = known[distance.argmin(axis=1)]
    return chosen


def main(arguments: list[str]) -> None:
    """Learn from the training frames of a configuration, and print the table of the frames it is tested on."""
    if not arguments:
        sys.exit(__doc__)
    data = config.load(arguments[0], arguments[1:])["data"]
    tested = build_dataset(data, "val", training=False)
    means, deviation = class_means(build_dataset(data, "train", training=False))
    evaluator = tested.evaluator()
    for i in range(len(tested)):
        sample = tested[i]
        labels = nearest(sample, means, deviation)
        evaluator.add(sample, PointLabels(labels, np.ones(len(labels)), tuple(tested.classes)))
    result = evaluator.result()
    print("no labels to measure with" if result is None else result.table())


if __name__ == "__main__":
    main(sys.argv[1:])
