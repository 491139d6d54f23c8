"""The graph transformer of 3DMOTFormer: its edges, layers, losses, matches and whole sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.conformance.golden import Case, Values, backward, runs
from pcdet_ext.evaluation.quaternions import yaws
from pcdet_ext.tracking import graph_edges
from pcdet_ext.tracking.base import StillBoxes
from pcdet_ext.tracking.compiled_boxes import PUBLISHED_IOU, without_overlapping
from pcdet_ext.tracking.graph import GraphTracker
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
def edges_between(case: Case, grads: bool) -> Values:
    """Edges between tracks and detections of a batch, and their features."""
    given = case.tensors("in")
    labels, others = given["track_class"].long(), given["det_class"].long()
    places = graph_edges.moved(given["track_boxes"], given["track_velo"], given["track_age"])
    limits = places.new_tensor(case.config["max_distance"])
    near = graph_edges.may_be(places, labels, given["det_boxes"], others, limits)
    edges = (near & (given["track_batch"][:, None] == given["det_batch"][None])).nonzero().T
    features = graph_edges.features(edges, given["track_boxes"], places, given["track_age"], given["det_boxes"])
    batch = given["track_batch"][edges[0]]
    return {"out.edge_index_inter": edges, "out.edge_attr_inter": features, "out.edge_batch": batch}


@runs("tracking", "motformer_layers")
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
def model(case: Case, grads: bool) -> Values:
    """The whole network on one frame, and its loss."""
    config, given = case.config, case.tensors("in")
    network = _network(case)
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
def matching(case: Case, grads: bool) -> Values:
    """Pairs and what is left over, greedy and optimal."""
    values = {}
    for number in sorted({key.split(".")[1] for key in case.arrays if key.startswith("in.")}):
        given = {key.split(".")[2]: a for key, a in case.arrays.items() if key.startswith(f"in.{number}.")}
        found = matches(given["affinity"], given["adjacency"], float(given["active_thresh"]), bool(given["hungarian"]))
        for name, value in zip(("matches", "unmatched_tracks", "unmatched_dets"), found, strict=True):
            values[f"out.{number}.{name}"] = value
    return values


@runs("tracking", "motformer_train_sequence")
def training(case: Case, grads: bool) -> Values:
    """Losses of a batch of short sequences, with gradients through the features of the tracks."""
    config, network = case.config, _network(case)
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
def tracks(case: Case, grads: bool) -> Values:
    """Whole sequences of prepared detections: every box that is written."""
    x = case.arrays["in.x"]
    label = x[:, 9:16].argmax(1)
    boxes = StillBoxes(x[:, :7][:, UNMOVED].astype(np.float64), x[:, 7:9], label, x[:, 16].astype(np.float64))
    return _tracked(case, boxes, graph_edges.CLASSES, None)


@runs("tracking", "motformer_track_raw")
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
    arrays, tracker = case.arrays, GraphTracker(_network(case), _options(case.config))
    columns: dict[str, list[np.ndarray]] = {}
    for scene, count in enumerate(arrays["in.frames_per_scene"].tolist()):
        tracker.reset()
        for frame in range(count):
            rows = np.flatnonzero((arrays["in.det_scene"] == scene) & (arrays["in.det_frame"] == frame))
            own = boxes.select(rows)
            if nms is not None:
                order = np.argsort(-own.score, kind="stable")
                own = own.select(without_overlapping(own.box, own.label, order, nms, PUBLISHED_IOU))
            found = tracker.associate(own, names, graph_edges.PERIOD * frame)
            for name, column in _columns(found.boxes, names).items():
                columns.setdefault(name, []).append(column)
            columns.setdefault("tracking_id", []).append(found.number)
            for name, value in (("scene", scene), ("frame", frame)):
                columns.setdefault(name, []).append(np.full(len(found.number), value))
    return {f"out.{name}": np.concatenate(parts) for name, parts in columns.items()}


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
