"""Training TrajectoryFormer on drives: first its motion predictor, then the rest, with the published settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdet_ext.tracking import saved_networks
from pcdet_ext.tracking.base import TRACKERS
from pcdet_ext.tracking.trajectory import BIRTH, KEPT, LIMITS, TrajectoryOptions, TrajectoryTracker
from pcdet_ext.tracking.trajectory_data import organised
from pcdet_ext.tracking.trajectory_drives import DriveFrame, blocks_at, futures_at
from pcdet_ext.tracking.trajectory_motion import MotionPredictor, motion_loss
from pcdet_ext.tracking.trajectory_network import TrajectoryNetwork
from pcdet_ext.tracking.trajectory_training import TrainingOptions, TrainingSample, training_step

KIND = "trajectory tracker"
Drive = Sequence[DriveFrame]
MOTION_EPOCHS = 6  # of the motion predictor for each of the rest
MOTION_LENGTH, LENGTH = 20, 10  # frames that trajectories go back
MOTION_BATCH, BATCH = 6, 4
RATE, CLIP = 1e-3, 10.0


def fit_motion(
    network: TrajectoryNetwork,
    drives: Sequence[Drive],
    epochs: int,
    length: int = MOTION_LENGTH,
    batch_size: int = MOTION_BATCH,
    seed: int = 0,
    options: TrainingOptions | None = None,
) -> Iterator[float]:
    """Train the motion predictor of a network in place.

    Args:
        network: on any device.
        drives: frames with annotated objects.
        epochs: how often every frame is seen.
        length: frames that trajectories go back.
        batch_size: frames of a step.
        seed: of the order of frames.
        options: of the detections and of the hypotheses; those of points count for nothing.

    Yields:
        The mean loss of each epoch, NaN where no detection is an annotated object.

    Raises:
        ValueError: no frame follows one with detections, or `epochs` is below 1.
        FloatingPointError: a loss or a gradient was not finite.
    """
    kind = options or TrainingOptions()
    predictor = MotionPredictor(encoder=network.velboxembed, distance=kind.distance, published=kind.published)

    def loss(chosen: Sequence[tuple[Drive, int]], _: np.random.Generator) -> Tensor | None:
        device = network.token.device
        found = [blocks_at(drive, place, length).to(device) for drive, place in chosen]
        true = [drive[place].annotations.to(device) for drive, place in chosen]
        futures = [futures_at(drive, place, network.frames).to(device) for drive, place in chosen]
        blocks = organised(found, kind.nms, kind.score_threshold, kind.published)
        return motion_loss(predictor(blocks), true, futures, kind.published)

    return _trained(predictor, drives, epochs, batch_size, seed, loss)


def fit(
    network: TrajectoryNetwork,
    drives: Sequence[Drive],
    epochs: int,
    length: int = LENGTH,
    batch_size: int = BATCH,
    seed: int = 0,
    options: TrainingOptions | None = None,
) -> Iterator[float]:
    """Train all of a network but its motion predictor, which `fit_motion` has trained, in place.

    The published training turns, flips and scales its frames, too, which is not done here. Arguments as in
    `fit_motion`, and the same errors.
    """

    def loss(chosen: Sequence[tuple[Drive, int]], random: np.random.Generator) -> Tensor | None:
        device = network.token.device
        frames = [(blocks_at(drive, place, length).to(device), drive[place]) for drive, place in chosen]
        samples = [
            TrainingSample(blocks, frame.points().to(device), frame.annotations.to(device)) for blocks, frame in frames
        ]
        network.velboxembed.eval()
        step = training_step(network, samples, options or TrainingOptions(), random)
        return torch.stack([*step.losses.values()]).sum() if step.losses else None

    return _trained(network, drives, epochs, batch_size, seed, loss)


def _trained(
    module: nn.Module,
    drives: Sequence[Drive],
    epochs: int,
    batch_size: int,
    seed: int,
    loss: Callable[[Sequence[tuple[Drive, int]], np.random.Generator], Tensor | None],
) -> Iterator[float]:
    places = [(drive, i) for drive in drives for i in range(1, len(drive)) if len(drive[i - 1].boxes)]
    if not places or epochs < 1:
        raise ValueError(
            f"training needs frames that follow one with detections, and an epoch; got {len(places)} and {epochs}"
        )
    return _epochs(module, places, epochs, batch_size, np.random.default_rng(seed), loss)


def _epochs(
    module: nn.Module,
    places: Sequence[tuple[Drive, int]],
    epochs: int,
    batch_size: int,
    random: np.random.Generator,
    loss: Callable[[Sequence[tuple[Drive, int]], np.random.Generator], Tensor | None],
) -> Iterator[float]:
    optimizer = torch.optim.AdamW(module.parameters(), RATE, betas=(0.9, 0.99), eps=1e-9, weight_decay=0.01)
    steps = epochs * -(-len(places) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=max(steps, 2), pct_start=0.4, div_factor=10, base_momentum=0.85, max_momentum=0.95
    )
    for _ in range(epochs):
        module.train()
        values, order = [], random.permutation(len(places)).tolist()
        for first in range(0, len(order), batch_size):
            value = loss([places[i] for i in order[first : first + batch_size]], random)
            if value is None:
                continue
            optimizer.zero_grad()
            value.backward()
            norm = nn.utils.clip_grad_norm_(module.parameters(), CLIP)
            _check_finite(float(value.detach()), float(norm))
            optimizer.step()
            schedule.step()
            values.append(float(value.detach()))
        module.eval()
        yield float(np.mean(values)) if values else float("nan")


def _check_finite(loss: float, norm: float) -> None:
    """Raises FloatingPointError before a step that would spoil the network."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise FloatingPointError(
            f"training became unusable: the loss is {loss:g}, and the gradient's norm {norm:g}, where both must be "
            "finite; look for boxes, velocities, points or parameters that are not finite"
        )


def save(path: Path, network: TrajectoryNetwork) -> None:
    """Write a network, with the arguments that it was made with."""
    saved_networks.save(path, KIND, network, network.settings)


def load(path: Path) -> TrajectoryNetwork:
    """Read a network. Raises DataError where the file is missing, damaged, or of something else."""
    return saved_networks.load(path, KIND, TrajectoryNetwork)


@TRACKERS.register
def trajectory_tracker(
    network: Path,
    kept_score: Mapping[str, float] = KEPT,
    birth_score: Mapping[str, float] = BIRTH,
    limits: Mapping[str, float] = LIMITS,
    nms: float = 0.1,
    predictions: int = 5,
    history: int = 10,
    points: int = 128,
    new_overlap: float = 0.2,
    separate: bool = False,
    first_class: str | None = None,
    published: bool = False,
) -> TrajectoryTracker:
    """A tracker with a network that `save` wrote. Arguments as in `TrajectoryOptions`, and `network`, the path of the
    file.

    Of the values by class, those that are not given are the defaults.
    """
    options = TrajectoryOptions(
        {**KEPT, **kept_score},
        {**BIRTH, **birth_score},
        {**LIMITS, **limits},
        nms,
        predictions,
        history,
        points,
        new_overlap,
        separate,
        first_class,
        published,
    )
    return TrajectoryTracker(load(network), options)
