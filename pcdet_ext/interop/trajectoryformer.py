"""TrajectoryFormer and its motion predictor under their published configurations and parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pcdet_ext.interop.parameters import load_renamed
from pcdet_ext.interop.settings import skip, skip_rest
from pcdet_ext.tracking.trajectory import TrajectoryOptions
from pcdet_ext.tracking.trajectory_motion import MotionPredictor
from pcdet_ext.tracking.trajectory_network import TrajectoryNetwork

UNUSED = ("token_traj", "seqboxembed.fc_s", "seqboxembed.fc_ce", "seqboxembed.fc_hr")  # published, but never called
FIXED = {"motion_input_dim": 6, "point_dim": 30, "boxes_dim": 8, "num_hypo_pred": 1, "num_hypo_det": 1}
FIXED |= {"num_hypo": 2}
# Settings of training and of numeric cases, which a network and its tracker do not need.
OF_TRAINING = ("batch_size", "device", "dist_thresh", "mode", "nms_thresh", "score_thresh", "traj_length")
SHORT = {"car": "VEHICLE", "ped": "PEDESTRIAN", "cyc": "CYCLIST"}  # in the thresholds of scores
CLASSES = tuple(SHORT.values())


def from_official(config: Mapping[str, Any], state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The tracker's network, or the motion predictor where the configuration is one of that.

    Args:
        config: with the section `model`, or that section itself.
        state_dict: the published parameters; those of layers that the published code never calls are left out.
    """
    model = _section(config, "model")
    if "num_hypo" in model:
        network: nn.Module = motion_predictor(model, _frames(config))
        skip(model, *OF_TRAINING)
    else:
        network = tracker_network(model)
        tracker_options(model)
        skip(model, *OF_TRAINING)
    for name in ("dataset", "dataloader", "solver"):  # how it is trained, which a network does not say
        if name in config:
            skip_rest(config[name])
    if state_dict is not None:
        load(network, state_dict)
    return network.eval()


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of the configuration, or all of it where it has none."""
    section: Mapping[str, Any] = config.get(name, config)
    return section


def _frames(config: Mapping[str, Any]) -> int:
    return int(_section(config, "dataset")["future_frames"])


def tracker_network(model: Mapping[str, Any]) -> TrajectoryNetwork:
    """The network of a section `model`. Raises ValueError for a setting that has no counterpart here."""
    _only_fixed(model)
    return TrajectoryNetwork(
        model["hidden_dim"], model["nhead"], model["enc_layers"], model["dim_feedforward"], model["motion_pred_frames"]
    )


def motion_predictor(model: Mapping[str, Any], frames: int) -> MotionPredictor:
    """The motion predictor of a section `model` that sees so many frames ahead; raises as `tracker_network`."""
    _only_fixed(model)
    return MotionPredictor(model["hidden_dim"], frames, model["dist_thresh"], published=True)


def tracker_options(model: Mapping[str, Any]) -> TrajectoryOptions:
    """How the tracker of a section `model` works, with the behaviour of the published code."""
    first = model["eval_class"]
    if first is not None and first not in CLASSES:
        raise ValueError(f"eval_class must be one of {', '.join(CLASSES)}, or null, got {first!r}")
    return TrajectoryOptions(
        kept_score={SHORT[name]: value for name, value in model["track_score"].items()},
        birth_score={SHORT[name]: value for name, value in model["new_born_score"].items()},
        limits=dict(model["max_dist"]),
        nms=model["nms_thresh"],
        predictions=model["num_hypo_pred_eval"],
        history=model["history_frames_eval"],
        points=model["num_lidar_points"],
        new_overlap=model["new_born_nms_thresh"],
        first_class=first,
        published=True,
    )


def _only_fixed(model: Mapping[str, Any]) -> None:
    for name, value in FIXED.items():
        if name in model and model[name] != value:
            raise ValueError(f"{name}: only {value} is known here, got {model[name]!r}")


def load(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load published parameters, without those of layers that are never called. Raises ValueError as `renamed`."""
    used = {name: value for name, value in state_dict.items() if not name.startswith(UNUSED)}
    load_renamed(network, used, lambda name: name)
