"""TrajectoryFormer: its geometry, networks, motion predictor, one training step, and whole sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pcdet_ext.conformance.golden import Case, Values, backward, runs
from pcdet_ext.interop import trajectoryformer as published
from pcdet_ext.interop.settings import Settings, every_setting_counts
from pcdet_ext.models.targets.box_coding import ResidualCoder, box_corners
from pcdet_ext.structures import Detections
from pcdet_ext.tracking import trajectory_geometry as geometry
from pcdet_ext.tracking.trajectory import TrajectoryTracker
from pcdet_ext.tracking.trajectory_attention import HypothesisTransformer, PointTransformer
from pcdet_ext.tracking.trajectory_data import DetectionBlocks, organised
from pcdet_ext.tracking.trajectory_encoders import MotionEncoder
from pcdet_ext.tracking.trajectory_motion import motion_loss
from pcdet_ext.tracking.trajectory_training import TrainingOptions, TrainingSample, TrainingStep, training_step

BOX, VELOCITY = [0, 1, 2, 3, 4, 5, 8], slice(6, 8)  # columns of a published box
SCALE = 0.2  # of the codes that a case decodes
TRACKER = (
    "eval_class",
    "history_frames_eval",
    "max_dist",
    "new_born_nms_thresh",
    "new_born_score",
    "nms_thresh",
    "num_hypo_pred_eval",
    "track_score",
)


@runs("tracking", "trajectoryformer_geometry")
def geometry_of_boxes(case: Case, grads: bool) -> Values:
    """Coordinates of boxes in each other's axes, codes, corners, features of points, and poses."""
    with every_setting_counts(case.config):
        given = case.tensors("in")
    boxes, own, anchor = given["boxes"], given["box9"], given["anchor9"]
    now = boxes[:, :1]
    local = geometry.to_local(boxes, now)
    moved, speed = geometry.to_global(own, given["vel9"], given["pose"])
    back, back_speed = geometry.to_vehicle(moved, speed, given["pose"])
    at_origin = torch.cat([torch.zeros_like(own[:, :3]), own[:, 3:]], 1)
    pairs = torch.stack([own, own], 1)
    return {
        "out.local_boxes": local,
        "out.local_boxes_common_centre": geometry.to_local(boxes, now[:, :, :, :1]),
        "out.local_vel": geometry.velocity_to_local(given["vel"], boxes, now),
        "out.back_to_global": geometry.from_local(local, now),
        "out.encode": ResidualCoder().encode(own, anchor),
        "out.decode": ResidualCoder().decode(SCALE * own, anchor),
        "out.corners_8": box_corners(own),
        "out.corner_points": geometry.corner_points(own),
        "out.corner_points_local": geometry.corner_points(at_origin),
        "out.spherical": geometry.spherical(given["spherical_src"], given["spherical_diag"]),
        "out.global_boxes": moved,
        "out.global_vels": speed,
        "out.current_boxes": back,
        "out.current_vels": back_speed,
        "out.rotate": geometry.rotated(pairs, anchor[:, 6:7].expand(-1, 2)),
    }


@runs("tracking", "trajectoryformer_networks")
def networks(case: Case, grads: bool) -> Values:
    """The encoder of motion in both modes, and every layer of the two transformers."""
    with every_setting_counts(case.config) as config:
        shape = (config["hidden_dim"], config["nhead"], config["dim_feedforward"], config["enc_layers"])
        motion = MotionEncoder(config["motion_input_dim"], config["hidden_dim"], config["out_channels"])
    points, hypotheses = PointTransformer(*shape), HypothesisTransformer(*shape)
    modules = nn.ModuleDict({"motion": motion, "encoder_fg": points, "encoder_globallocal": hypotheses})
    modules.load_state_dict(case.tensors("param"))
    given = case.tensors("in")
    inputs = {name: given[name].requires_grad_(grads) for name in ("poly", "token", "points", "hyp")}
    values = {"out.motion_eval": motion.eval()(inputs["poly"], given["mask"])}
    values["out.motion_train"] = motion.train()(inputs["poly"], given["mask"])
    norm = motion.pre_mlps.get_submodule("1")
    values |= {f"out.motion_{name}_0": getattr(norm, name) for name in ("running_mean", "running_var")}
    layers = points(inputs["token"], inputs["points"]), hypotheses(inputs["hyp"])
    for name, found in zip(("token", "global_local"), layers, strict=True):
        values |= {f"out.{name}_{i}": layer for i, layer in enumerate(found)}
    if grads:
        wanted = {f"in.{name}": tensor for name, tensor in inputs.items()} | dict(modules.named_parameters())
        return {**values, **backward(values, case, wanted)}
    return values


@runs("tracking", "trajectoryformer_motion_prediction")
def motion(case: Case, grads: bool) -> Values:
    """Boxes of the next frames, and their loss."""
    with every_setting_counts(case.config) as config:
        frames = config["future_frames"]
        network = published.motion_predictor(config, frames)
        published.load(network, case.tensors("param"))
        network.train(_is_training(config, "train"))
        options = config["nms_thresh"], config["score_thresh"]
        found = network(organised(_samples(case, config), *options, published=True))
    count = range(len(found.future))
    true = [case.tensor(f"in.{i}.gt_boxes")[:, BOX] for i in count]
    futures = [case.tensor(f"in.{i}.future_gt_boxes").unflatten(0, (frames + 1, -1))[1:, :, BOX] for i in count]
    loss = motion_loss(found, true, futures, published=True)
    values: dict[str, Tensor] = {"out.future_traj_local": found.future}
    values["out.loss"] = found.future.sum() * torch.nan if loss is None else loss
    return {**values, **_gradients(values["out.loss"], network)} if grads else values


def _is_training(config: Mapping[str, Any], name: str) -> bool:
    if config["mode"] not in (name, "eval"):
        raise ValueError(f"mode must be {name!r} or 'eval', got {config['mode']!r}")
    return bool(config["mode"] == name)


def _samples(case: Case, config: Settings) -> list[DetectionBlocks]:
    """Detections of the frames of each sample."""
    count = config["batch_size"]
    there = sum(key.startswith("in.") and key.endswith(".pred_boxes3d") for key in case.arrays)
    if count != there:
        raise ValueError(f"batch_size is {count}, but the case has {there} samples")
    return [_blocks(case, i, config["traj_length"] + 1) for i in range(count)]


def _blocks(case: Case, number: int, frames: int) -> DetectionBlocks:
    columns = (case.tensor(f"in.{number}.pred_{name}") for name in ("boxes3d", "scores", "labels"))
    boxes, score, label = (column.unflatten(0, (frames, -1))[None] for column in columns)
    return DetectionBlocks(boxes[..., BOX], boxes[..., VELOCITY], score, label)


@runs("tracking", "trajectoryformer_train_step")
def training(case: Case, grads: bool) -> Values:
    """One step: hypotheses, what the network says of them, and the losses."""
    with every_setting_counts(case.config) as config:
        network = published.tracker_network(config)
        published.load(network, case.tensors("param"))
        network.train(_is_training(config, "train, velboxembed eval")).velboxembed.eval()
        blocks = _samples(case, config)
        options = TrainingOptions(
            nms=config["train_nms_thresh"],
            score_threshold=config["train_score_thresh"],
            distance=config["dist_thresh"],
            points=config["num_lidar_points"],
            published=True,
        )
        config.skip((*TRACKER, "numpy_seed", "device"))  # of inference, and of drawn hypotheses, which the case gives
    inputs = [(case.tensor(f"in.{i}.points"), case.tensor(f"in.{i}.gt_boxes")[:, BOX]) for i in range(len(blocks))]
    samples = [TrainingSample(own, *pair) for own, pair in zip(blocks, inputs, strict=True)]
    step = training_step(network, samples, options, drawn=case.tensor("in.hypotheses_aug"))
    classification, correction = _sum(step, "points", "boxes", "joint"), _sum(step, "codes", "corners")
    values: dict[str, Tensor] = {
        "out.point_cls": step.judged.point_logits.reshape(-1, 1),
        "out.point_reg": step.judged.corrections.reshape(1, -1, 7),
        "out.boxes_cls": step.judged.box_logits,
        "out.joint_cls": step.judged.joint_logits.flatten(0, 1),
        "out.loss_cls": classification,
        "out.loss_reg": correction,
    }
    return {**values, **_gradients(classification + correction, network)} if grads else values


def _sum(step: TrainingStep, *names: str) -> Tensor:
    """The sum of some losses; NaN where one has nothing to learn from, which the published code takes a mean of."""
    none = step.judged.point_logits.sum() * torch.nan
    return torch.stack([step.losses.get(name, none) for name in names]).sum()


def _gradients(total: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Gradients of a number with respect to every parameter."""
    named = dict(network.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    pairs = zip(named.items(), found, strict=True)
    return {f"grad.{name}": torch.zeros_like(t) if grad is None else grad for (name, t), grad in pairs}


@runs("tracking", "trajectoryformer_track")
def tracks(case: Case, grads: bool) -> Values:
    """A whole sequence: every box that is written, as the tracker gives it frame by frame."""
    with every_setting_counts(case.config) as config:
        network = published.tracker_network(config)
        published.load(network, case.tensors("param"))
        tracker = TrajectoryTracker(network, published.tracker_options(config))
        config.skip(published.OF_TRAINING)
    columns: dict[str, list[np.ndarray]] = {}
    for frame, pose in enumerate(case.arrays["in.pose"]):
        points = case.tensor(f"in.{frame}.points")
        found = tracker.update(_detections(case, frame), pose, geometry.PERIOD * frame, points).numpy()
        if found.track_ids is None:
            raise ValueError("the tracker gave no numbers")
        own = {"boxes": found.boxes[:, :7], "score": found.scores, "label": found.labels + 1}
        for name, column in {**own, "track_id": found.track_ids, "frame": np.full(len(found), frame)}.items():
            columns.setdefault(name, []).append(np.asarray(column))
    return {f"out.{name}": np.concatenate(parts) for name, parts in columns.items()}


def _detections(case: Case, frame: int) -> Detections:
    """The detections of a frame, without the empty one that stands for none."""
    boxes, scores, labels = (case.arrays[f"in.{frame}.{name}"] for name in ("boxes", "scores", "labels"))
    real = labels > 0
    table = np.concatenate([boxes[real][:, BOX], boxes[real][:, VELOCITY]], axis=1)
    return Detections(table, scores[real], labels[real].astype(np.int64) - 1, published.CLASSES)
