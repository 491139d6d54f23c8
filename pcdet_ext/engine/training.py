"""Training a detector from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed
import yaml
from torch import nn

from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError, Node, construct, require_known_sections, section, setting
from pcdet_ext.data.base import Dataset, collate
from pcdet_ext.data.formats import build_dataset, measured_kind
from pcdet_ext.engine import testing
from pcdet_ext.engine.devices import make_fabric, seed_everything
from pcdet_ext.engine.fading import training_datasets
from pcdet_ext.engine.records import require_wandb
from pcdet_ext.engine.resuming import check_same_frozen, check_same_model, check_same_order, meaning_changes
from pcdet_ext.engine.run_folder import BEST, LAST, RunFolder
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.engine.sharing import share_of_frames
from pcdet_ext.engine.trainer import Trainer, TrainingError, TrainingInputs
from pcdet_ext.evaluation.base import Result
from pcdet_ext.files import atomic_write
from pcdet_ext.inference import Detector, check_finds
from pcdet_ext.models.detector import VoxelDetector, build_detector, usual_defaults
from pcdet_ext.models.heads.segmentation import PointSegmentationHead

__all__ = ["BEST", "LAST", "TrainConfig", "TrainingError", "train"]


def train(
    settings: Node,
    out: str | Path,
    resume: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    devices: int | None = None,
    strategy: str = "auto",
    nodes: int = 1,
) -> bool:
    """Train the detector that a configuration describes, and evaluate it on the `test:` section's split.

    Args:
        settings: the whole configuration.
        out: folder for `last.ckpt`, `best.ckpt` (highest score), `config.yaml`, the numbers (`log.jsonl`, `train.csv`,
            `test.csv`) and TensorBoard's files.
        resume: a checkpoint to continue from, or "last" for the newest one in `out` where there is one.
        overwrite: replace an earlier run in `out` instead of refusing; it stays until the new one begins to train.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" or "mps".
        devices: processes on this machine.
        strategy: how processes work together, by Lightning's names, such as "ddp" or "ddp_find_unused_parameters_true".
        nodes: machines.

    Returns:
        False when the training was stopped (Ctrl-C) before its end; `last.ckpt` continues it.

    Raises:
        ConfigError: the configuration cannot be used.
        DataError: a file of the data is damaged, or (CheckpointError) one of the checkpoints.
        TrainingError: the training cannot go on, or is complete already.
        FileExistsError: `out` holds a run that is neither to be continued nor replaced, or another training is at
            work there.
    """
    out = Path(out)
    require_known_sections(settings)
    testing.eval_config(settings)  # so that a wrong one is known even where nothing is evaluated
    options = construct(TrainConfig, section(settings, "train"))
    require_wandb(options.wandb)
    fabric = make_fabric(options.precision, device, devices, strategy, nodes)
    fabric.launch()
    with RunFolder(out) as folder:
        if fabric.global_rank == 0:
            folder.claim()
        if resume == "last":
            resume = folder.newest()
        if fabric.global_rank == 0 and resume is None:
            folder.require_new(overwrite)
        content = None if resume is None else _to_continue(resume, settings, options)
        inputs = _inputs(settings, options, str(fabric.device), new=content is None)
        try:
            trainer = Trainer(inputs, options, out, fabric, content)
        except CheckpointError as error:
            raise CheckpointError(f"{resume}: {error}") from error
        if trainer.finished:
            raise TrainingError(
                f"{resume}: this training is complete ({trainer.progress.epoch} epochs, {trainer.progress.step} "
                "steps), there is nothing to do; a larger train.epochs, train.max_steps or train.early_stop.patience "
                "continues it"
            )
        if fabric.global_rank == 0:
            folder.begin(new=resume is None)
            with atomic_write(out / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(settings.plain(), sort_keys=False), encoding="utf-8")
        return trainer.fit()


def _to_continue(path: str | Path, settings: Node, options: TrainConfig) -> Mapping[str, Any]:
    """The content of a checkpoint to continue from. Raises CheckpointError for one of another training."""
    content = checkpoint.read(path)
    checkpoint.require_training(content, path)
    check_same_model(content["config"], settings, path)
    check_same_order(content, options.seed, path)
    check_same_frozen(content, options.freeze, path)
    return content


def _inputs(settings: Node, options: TrainConfig, device: str, new: bool) -> TrainingInputs:
    """The detector and the data of a configuration. A `new` training begins with the parameters of `init_from`."""
    seed_everything(options.seed)
    with usual_defaults():
        detector = build_detector(settings)
    data = section(settings, "data")
    if options.evaluate_every:
        _check_can_be_evaluated(detector, measured_kind(data))
    notes = _initialised(detector, options.init_from, settings) if options.init_from and new else ()
    dataset = training_datasets(data, options)
    _check_point_labels(detector, dataset(0))
    tested = _test_data(settings) if options.evaluate_every else None
    return TrainingInputs(
        detector=detector,
        dataset=dataset,
        collate=partial(collate, classes=tuple(setting(data, "classes", Sequence[str], ()))),
        config={**settings.plain(), "statistics": {"highest": highest_values(dataset(0))}},
        evaluate=None if tested is None else _evaluation(settings, device, tested),
        notes=(*notes, *dataset(0).notes),
        closing=partial(_closing, [dataset(0), dataset(options.epochs)], tested),
    )


def _check_can_be_evaluated(detector: VoxelDetector, kind: type) -> None:
    """Raises ConfigError for a detector without results of the kind that the metric of the data set measures."""
    try:
        check_finds(detector, kind)
    except ConfigError as error:
        raise ConfigError(f"{error}, or set train.evaluate_every=0") from None


def _check_point_labels(detector: VoxelDetector, dataset: Dataset) -> None:
    """Raises ConfigError where a head learns the classes of points and the data, by its first frame, has none."""
    learn = [name for name, head in detector.named_heads().items() if isinstance(head, PointSegmentationHead)]
    if not learn or not len(dataset):
        return
    first = dataset[0]
    if first.targets is None or first.targets.point_labels is None:
        raise ConfigError(
            f"model: the head {learn[0]!r} (PointSegmentationHead) learns from point labels, and frame "
            f"{first.frame_id!r} of the training data has none; leave the head out, or use data with point labels"
        )


def highest_values(dataset: Dataset, frames: int = 16) -> dict[str, float]:
    """How high the columns of points beside x, y, z go in a data set: by name, the 99.9th percentile in a few frames.

    It goes into checkpoints, so that a detector can say when it is given points on another scale.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(frames, len(dataset))).astype(int))
    values = np.concatenate([dataset[int(i)].points[:, 3:] for i in chosen])
    if not len(values):
        return {}
    highest = np.quantile(values, 0.999, axis=0)
    return {name: float(value) for name, value in zip(list(dataset.point_features or ())[3:], highest, strict=True)}


def _initialised(detector: nn.Module, path: str | Path, settings: Node) -> tuple[str, ...]:
    """Let a detector start with the parameters of a checkpoint; say which it took, and what they meant otherwise."""
    content = checkpoint.read(path)
    report = f"{path}: {checkpoint.transfer(detector, content['model'], path)}"
    changed = meaning_changes(content["config"], settings.plain())
    return (report, *(f"{path}: {change}" for change in changed))


def _closing(training: Sequence[Dataset], tested: Dataset | None) -> list[str]:
    """What is to be said at the end: how many frames were damaged and left out."""
    found = {"training": testing.skipped_frames(training), "test": testing.skipped_frames([tested] if tested else [])}
    return [f"{what}: {skipped}" for what, skipped in found.items() if skipped]


def _test_data(settings: Node) -> Dataset:
    """The frames to evaluate on.

    Raises ConfigError for a split without labels, and for options of the metric that do not fit.
    """
    options = testing.eval_config(settings)
    dataset = build_dataset(section(settings, "data"), options.split, training=False)
    dataset.evaluator(options.metric)
    if not dataset.labelled:
        raise ConfigError(
            f"test.split: {options.split!r} has no labels to evaluate on; name another split, or set "
            "train.evaluate_every=0"
        )
    return dataset


def _evaluation(
    settings: Node, device: str, dataset: Dataset
) -> Callable[[nn.Module, Callable[[], bool]], Result | None]:
    """The evaluation by the metric of a data set, its frames (or whole recordings) shared out over the processes."""
    options = testing.eval_config(settings)

    def evaluate(model: nn.Module, should_stop: Callable[[], bool]) -> Result | None:
        rank, processes = 0, 1
        if torch.distributed.is_initialized():
            rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        detector = Detector(settings, device, model)
        evaluator = dataset.evaluator(options.metric)
        indices = share_of_frames(dataset, detector.remembers, rank, processes)
        finished = testing.predict(detector, dataset, evaluator, options, indices, should_stop, silent=rank > 0)
        if processes > 1:
            finished = testing.gather(evaluator, finished)
        return evaluator.result() if finished else None

    return evaluate
