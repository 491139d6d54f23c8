"""The branches of heads of object centres (CenterPoint), and which classes they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pcdet_ext.config import suggest

PRIOR_LOGIT = -2.19  # an untrained heatmap's: a probability of 0.1
CHANNELS = {"center": 2, "center_z": 1, "dim": 3, "rot": 2, "vel": 2, "iou": 1}
CODE = ("center", "center_z", "dim", "rot", "vel")  # the branches that make up the code of a box, in its order
REQUIRED = ("center", "center_z", "dim", "rot")


def task_labels(classes: Sequence[str], tasks: Sequence[Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """The labels of each task's classes. Raises ValueError unless every class is in exactly one task."""
    names = [name for task in tasks for name in task]
    for name in names:
        if name not in classes:
            raise ValueError(f"tasks name the unknown class {name!r}{suggest(name, classes)}")
    for name in classes:
        if names.count(name) != 1:
            raise ValueError(f"class {name!r} must be in one task, got {names.count(name)}")
    return tuple(tuple(classes.index(name) for name in task) for task in tasks)


def check_branches(branches: Mapping[str, int]) -> None:
    """Raise ValueError for unknown or missing branches, and for numbers of convolutions that cannot be."""
    for name, convs in branches.items():
        if name not in CHANNELS:
            raise ValueError(f"branches has no {name!r}{suggest(name, CHANNELS)}")
        if not isinstance(convs, int) or isinstance(convs, bool):
            raise ValueError(f"branch {name!r} must be a number of convolutions, got {convs!r}")
        if convs < 1:
            raise ValueError(f"branch {name!r} must have at least one convolution, got {convs}")
    missing = [name for name in REQUIRED if name not in branches]
    if missing:
        raise ValueError(f"branches needs {', '.join(map(repr, missing))}")
