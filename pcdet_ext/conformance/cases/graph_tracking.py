"""The graph transformer of 3DMOTFormer: its edges, layers, losses, matches and whole sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.conformance.golden import Case, Values, backward, every_setting, runs
from pcdet_ext.evaluation.quaternions import yaws
from pcdet_ext.interop.settings import skip
from pcdet_ext.tracking import graph_edges
from pcdet_ext.tracking.base import StillBoxes
from pcdet_ext.tracking.graph import GraphTracker
from pcdet_ext.tracking.graph_data import Annotations, node_features, objects_of, prepared, windows
from pcdet_ext.tracking.graph_matching import matches
from pcdet_ext.tracking.graph_network import (
    DecoderLayer,
    EncoderLayer,
    GraphTrackerNetwork,
    association_loss,
)
from pcdet_ext.tracking.graph_states import FrameNodes, GraphOptions, same_object, sequence_losses

UNMOVED = [0, 1, 2, 4, 3, 5, 6]  # x, y, z, width, length, height, yaw, and the other way round


@runs("tracking", "motformer_inter_graph")
@every_setting
def edges_between(case: Case, grads: bool) -> Values:
    """Edges between tracks and detections of a batch, and their features."""
    given = case.tensors("in")
    _check_classes(case.config)
    skip(case.config, "batch_size")  # the rows say which sample they are of
    labels, others = given["track_class"].long(), given["det_class"].long()
    elapsed = given["track_age"] * case.config["frame_time"]
    places = graph_edges.moved(given["track_boxes"], given["track_velo"], elapsed)
    limits = places.new_tensor(case.config["max_distance"])
    near = graph_edges.may_be(places, labels, given["det_boxes"], others, limits)
    edges = (near & (given["track_batch"][:, None] == given["det_batch"][None])).nonzero().T
    features = graph_edges.features(edges, given["track_boxes"], places, given["track_age"], given["det_boxes"])
    batch = given["track_batch"][edges[0]]
    return {"out.edge_index_inter": edges, "out.edge_attr_inter": features, "out.edge_batch": batch}


@runs("tracking", "motformer_layers")
@every_setting
def layers(case: Case, grads: bool) -> Values:
    """One encoder layer on the tracks, and one decoder layer on the detections."""
    config, given = case.config, case.tensors("in")
    plain = (config["d_model"], config["nhead"], config["dropout"], config["norm_first"])
    encoder, decoder = EncoderLayer(*plain), DecoderLayer(*plain, config["cross_attn_value_gate"])
    modules = torch.nn.ModuleDict(
        {"spatial_encoders": torch.nn.ModuleList([encoder]), "decoders": torch.nn.ModuleList([decoder])}
    )
    modules.load_state_dict(case.tensors("param"))
    inputs = {name: given[name].requires_grad_(grads) for name in ("tracks", "dets", "edge_attr")}
    tracks = encoder(inputs["tracks"], given["edge_index_track"])
    dets, edge = decoder(
        inputs["dets"], tracks, inputs["edge_attr"], given["edge_index_det"], given["edge_index_inter"]
    )
    values = {"out.tracks": tracks, "out.dets": dets, "out.edge_attr": edge}
    if grads:
        wanted = {f"in.{name}": tensor for name, tensor in inputs.items()} | dict(modules.named_parameters())
        values |= backward(values, case, wanted)
    return values


@runs("tracking", "motformer_model")
@every_setting
def model(case: Case, grads: bool) -> Values:
    """The whole network on one frame, and its loss."""
    config, given = case.config, case.tensors("in")
    network = _network(case)
    skip(config, "batch_size")  # the network does not know of samples
    names = ("dets", "tracks", "edge_attr_inter")
    inputs = {name: given[name].requires_grad_(grads) for name in names}
    found = network(
        inputs["dets"],
        inputs["tracks"],
        *(given[f"edge_index_{side}"] for side in ("det", "track", "inter")),
        inputs["edge_attr_inter"],
    )
    target = same_object(given["track_gt"], given["det_gt"], given["edge_index_inter"]).float()
    weights = (config["gamma"], config["velo_loss_weight"], config["normalize_by_positive"])
    loss = association_loss(found, target, given["velo_target"], given["next_exist"], *weights)
    outputs = {"affinity": found.affinity, "tracks": found.tracks, "dets": found.detections}
    outputs["pred_velo"] = found.velocity
    values: dict[str, Tensor] = {f"out.{name}": value for name, value in outputs.items()}
    values |= {"out.loss": loss, "out.target": target}
    if grads:
        total = loss + sum((case.tensor(f"probe.{name}") * value).sum() for name, value in outputs.items())
        values |= _gradients(case, total, {f"in.{n}": t for n, t in inputs.items()} | dict(network.named_parameters()))
    return values


@runs("tracking", "motformer_matching")
@every_setting
def matching(case: Case, grads: bool) -> Values:
    """Pairs and what is left over, greedy and optimal."""
    values = {}
    numbers = {key.split(".")[1] for key in case.arrays if key.startswith("in.")}
    if case.config["cases"] != len(numbers):
        raise ValueError(f"cases is {case.config['cases']}, but {len(numbers)} are there")
    for number in sorted(numbers):
        given = {key.split(".")[2]: a for key, a in case.arrays.items() if key.startswith(f"in.{number}.")}
        found = matches(given["affinity"], given["adjacency"], float(given["active_thresh"]), bool(given["hungarian"]))
        for name, value in zip(("matches", "unmatched_tracks", "unmatched_dets"), found, strict=True):
            values[f"out.{number}.{name}"] = value
    return values


@runs("tracking", "motformer_train_sequence")
@every_setting
def training(case: Case, grads: bool) -> Values:
    """Losses of a batch of short sequences, with gradients through the features of the tracks."""
    config, network = case.config, _network(case)
    skip(config, "batch_size")  # the rows say which sample they are of
    frames = [_training_frame(case, i) for i in range(config["sample_length"])]
    weights = (config["gamma"], config["velo_loss_weight"], config["normalize_by_positive"])
    losses = torch.stack(sequence_losses(network, frames, _options(config), *weights))
    values = {"out.losses": losses, "out.total_loss": losses.sum()}
    if grads:
        values |= _gradients(case, losses.sum(), dict(network.named_parameters()))
    return values


def _training_frame(case: Case, number: int) -> FrameNodes:
    given = {name: case.tensor(f"in.{number}.{name}") for name in ("x", "batch", "tracking_id")}
    true = (given["tracking_id"], case.tensor(f"in.{number}.velo_target"), case.tensor(f"in.{number}.next_exist"))
    return FrameNodes(given["x"], given["batch"], *true)


@runs("tracking", "motformer_track")
@every_setting
def tracks(case: Case, grads: bool) -> Values:
    """Whole sequences of prepared detections: every box that is written."""
    x = case.arrays["in.x"]
    skip(case.config, "class_names", "apply_nms", "nms_iou_threshold")  # of the preparation, which is done
    label = x[:, 9:16].argmax(1)
    boxes = StillBoxes(x[:, :7][:, UNMOVED].astype(np.float64), x[:, 7:9], label, x[:, 16].astype(np.float64))
    return _tracked(case, boxes, graph_edges.CLASSES, None)


@runs("tracking", "motformer_track_raw")
@every_setting
def tracks_of_detections(case: Case, grads: bool) -> Values:
    """Whole sequences of detections as they come, of all classes, suppressed first where asked for."""
    arrays, config = case.arrays, case.config
    size, heading = arrays["in.det_size"][:, [1, 0, 2]], yaws(arrays["in.det_rotation"])[:, None]
    box = np.concatenate([arrays["in.det_translation"], size, heading], axis=1)
    columns = (box, arrays["in.det_velocity"], arrays["in.det_score"])
    box, velocity, score = (column.astype(np.float32).astype(np.float64) for column in columns)
    boxes = StillBoxes(box, velocity, arrays["in.det_class"], score)
    return _tracked(case, boxes, config["class_names"], config["nms_iou_threshold"] if config["apply_nms"] else None)


def _tracked(case: Case, boxes: StillBoxes, names: Any, nms: float | None) -> Values:
    arrays, tracker = case.arrays, _tracker(case, nms)
    columns: dict[str, list[np.ndarray]] = {}
    for scene, count in enumerate(arrays["in.frames_per_scene"].tolist()):
        tracker.reset()
        for frame in range(count):
            rows = np.flatnonzero((arrays["in.det_scene"] == scene) & (arrays["in.det_frame"] == frame))
            found = tracker.associate(boxes.select(rows), names, graph_edges.PERIOD * frame)
            for name, column in _columns(found.boxes, names).items():
                columns.setdefault(name, []).append(column)
            columns.setdefault("tracking_id", []).append(found.number)
            for name, value in (("scene", scene), ("frame", frame)):
                columns.setdefault(name, []).append(np.full(len(found.number), value))
    return {f"out.{name}": np.concatenate(parts) for name, parts in columns.items()}


def _tracker(case: Case, nms: float | None) -> GraphTracker:
    config = case.config
    _check_classes(config)
    skip(config, "gamma", "velo_loss_weight", "normalize_by_positive", "nms_iou_threshold")  # of training, and above
    return GraphTracker(
        _network(case),
        _options(config),
        nms=nms,
        score_threshold=config.get("score_threshold", 0.0),
        period=graph_edges.PERIOD,
        max_outputs=config["max_outputs_per_frame"],
    )


def _columns(boxes: StillBoxes, names: Any) -> dict[str, np.ndarray]:
    half = boxes.box[:, 6] / 2
    number = np.array([graph_edges.CLASSES.index(names[label]) for label in boxes.label.tolist()], np.int64)
    return {
        "class": number,
        "score": boxes.score,
        "translation": boxes.box[:, :3],
        "size": boxes.box[:, [4, 3, 5]],
        "rotation": np.stack([np.cos(half), 0 * half, 0 * half, np.sin(half)], axis=1),
        "velocity": boxes.velocity,
    }


def _check_classes(config: Mapping[str, Any]) -> None:
    if tuple(config["class_order"]) != graph_edges.CLASSES:
        raise ValueError(f"class_order must be {', '.join(graph_edges.CLASSES)}, got {list(config['class_order'])}")


def _network(case: Case) -> GraphTrackerNetwork:
    config = case.config
    network = GraphTrackerNetwork(
        config["d_model"],
        config["nhead"],
        config["encoder_nlayers"],
        config["decoder_nlayers"],
        config["norm_first"],
        config["cross_attn_value_gate"],
        config.get("dropout", 0.0),
    )
    network.load_state_dict(case.tensors("param"))
    return network


def _options(config: Mapping[str, Any]) -> GraphOptions:
    return GraphOptions(
        threshold=config["active_track_thresh"],
        max_age=config["max_age"],
        feature_weight=config["feature_update_weight"],
        optimal=config["hungarian_matching"],
        neighbours=config["graph_truncation_dist"],
    )


def _gradients(case: Case, total: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wanted = {name: tensor for name, tensor in inputs.items() if f"grad.{name}" in case.arrays}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    pairs = zip(wanted.items(), found, strict=True)
    return {f"grad.{name}": torch.zeros_like(t) if grad is None else grad for (name, t), grad in pairs}


@runs("tracking", "motformer_preprocess")
@every_setting
def preparation(case: Case, grads: bool) -> Values:
    """Features, objects and velocities of detections, edges between them, and the windows of training."""
    config, arrays = case.config, case.arrays
    names = tuple(config["class_names"])
    _check_classes(config)
    skip(config, "nms_iou_threshold")  # counts where suppression is asked for
    parts: dict[str, list[np.ndarray]] = {}
    for scene, frame in _frames_of(arrays, "det"):
        nms = config["nms_iou_threshold"] if config["apply_nms"] else None
        rows = (arrays["in.det_scene"] == scene) & (arrays["in.det_frame"] == frame)
        own = prepared(_still(arrays, "det", rows), names, nms, config["score_threshold"])
        features = node_features(own)
        found, velocity, has_next = objects_of(features, _annotations(case, scene, frame), config["iou_matching"])
        columns = {"x": features, "matched_instance": found, "velo_target": velocity, "next_exist": has_next}
        columns |= {name: np.full(len(own), value) for name, value in (("scene", scene), ("frame", frame))}
        for name, column in columns.items():
            parts.setdefault(name, []).append(column)
    values = {f"out.{name}": np.concatenate(columns) for name, columns in parts.items()}
    x, frames = torch.from_numpy(values["out.x"]), values["out.scene"] * 10_000 + values["out.frame"]
    label, distance = x[:, 9:16].argmax(1), config["graph_truncation_dist"]
    edges = graph_edges.within(x[:, :7], label, torch.from_numpy(frames), distance)
    return {**values, "out.edge_index_det": edges, **_windows(case)}


def _frames_of(arrays: Mapping[str, np.ndarray], side: str) -> list[tuple[int, int]]:
    pairs = zip(arrays[f"in.{side}_scene"].tolist(), arrays[f"in.{side}_frame"].tolist(), strict=True)
    return sorted(set(pairs))


def _still(arrays: Mapping[str, np.ndarray], side: str, rows: np.ndarray) -> StillBoxes:
    given = {name: arrays[f"in.{side}_{name}"][rows] for name in ("translation", "size", "rotation", "class")}
    box = np.concatenate([given["translation"], given["size"][:, [1, 0, 2]], yaws(given["rotation"])[:, None]], axis=1)
    count = len(box)
    velocity, score = np.zeros((count, 2)), np.ones(count)
    if side == "det":
        velocity, score = arrays["in.det_velocity"][rows], arrays["in.det_score"][rows]
    return StillBoxes(box, velocity, given["class"], score)


def _annotations(case: Case, scene: int, frame: int) -> Annotations:
    arrays, names = case.arrays, case.config["class_names"]
    rows = (arrays["in.gt_scene"] == scene) & (arrays["in.gt_frame"] == frame)
    rows &= np.isin(np.array(names)[arrays["in.gt_class"]], graph_edges.CLASSES)
    objects = arrays["in.gt_instance"][rows]
    following = np.full((len(objects), 2), np.nan)
    for i, instance in enumerate(objects.tolist()):
        later = (arrays["in.gt_scene"] == scene) & (arrays["in.gt_instance"] == instance)
        later &= arrays["in.gt_frame"] > frame
        if later.any():
            first = np.flatnonzero(later)[arrays["in.gt_frame"][later].argmin()]
            following[i] = arrays["in.gt_translation"][first, :2]
    still = prepared(_still(arrays, "gt", rows), tuple(names))
    return Annotations(still, objects, following, ~np.isnan(following[:, 0]))


def _windows(case: Case) -> dict[str, np.ndarray]:
    annotated = set(_frames_of(case.arrays, "gt"))
    starts: list[tuple[int, int]] = []
    for scene in sorted({scene for scene, _ in annotated}):
        last = max(frame for other, frame in annotated if other == scene)
        there = np.array([(scene, frame) in annotated for frame in range(last + 1)])
        starts += [(scene, start) for start in windows(there, case.config["sample_length"]).tolist()]
    rows = np.array(starts, np.int64).reshape(-1, 2)
    return {"out.sample_start_scene": rows[:, 0], "out.sample_start_frame": rows[:, 1]}
