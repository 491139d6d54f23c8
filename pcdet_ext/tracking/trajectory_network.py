"""The network of TrajectoryFormer: which hypothesis of a track is right, and where exactly the object is.

Chen et al., "TrajectoryFormer: 3D Object Tracking Transformer with Predictive Trajectory Hypotheses", ICCV 2023.
Parameters have the published names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pcdet_ext.tracking.trajectory_attention import HypothesisTransformer, PointTransformer
from pcdet_ext.tracking.trajectory_encoders import MotionEncoder, Perceptron, TrajectoryEncoder
from pcdet_ext.tracking.trajectory_motion import FEATURES as MOTION_FEATURES
from pcdet_ext.tracking.trajectory_motion import MOVED
from pcdet_ext.tracking.trajectory_points import FEATURES as POINT_FEATURES
from pcdet_ext.tracking.trajectory_points import point_features

BOX_FEATURES = 8  # box and time
CODE = 7
CLASSES = 3  # inputs that the published code leaves zero


@dataclass(frozen=True, eq=False)
class Judged:
    """What the network says of M = B * N * H hypotheses, after each of L layers.

    point_logits: [L, M], of being right, by its points alone; corrections: [L, M, 7], codes of the right box;
    box_logits: [B * N, H], by the trajectory alone; joint_logits: [L, B * N, H], by both and all other hypotheses.
    """

    point_logits: Tensor
    corrections: Tensor
    box_logits: Tensor
    joint_logits: Tensor


class TrajectoryNetwork(nn.Module):
    """Judges hypotheses by the points around them and by the boxes before them.

    Args:
        hidden: width of all features.
        heads: of each attention.
        layers: of each of the two transformers.
        feed: width between the linear layers of the transformers.
        frames: how many frames the motion predictor sees ahead.
    """

    def __init__(self, hidden: int = 256, heads: int = 4, layers: int = 3, feed: int = 1024, frames: int = 10) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden must be a multiple of heads, got {hidden} and {heads}")
        self.frames = frames
        self.settings = {"hidden": hidden, "heads": heads, "layers": layers, "feed": feed, "frames": frames}
        self.token = nn.Parameter(torch.zeros(1, 1, hidden))
        self.seqboxembed = TrajectoryEncoder(BOX_FEATURES, hidden)
        self.velboxembed = MotionEncoder(MOTION_FEATURES, hidden, len(MOVED) * frames)
        self.point_reg = Perceptron(hidden, hidden, CODE)
        self.joint_cls, self.point_cls, self.boxes_cls = (Perceptron(hidden, hidden, 1) for _ in range(3))
        self.cls_embed = Perceptron(2 * hidden + CLASSES, hidden, hidden)
        self.up_dimension_geometry = Perceptron(POINT_FEATURES, hidden, hidden)
        self.encoder_fg = PointTransformer(hidden, heads, feed, layers)
        self.encoder_globallocal = HypothesisTransformer(hidden, heads, feed, layers)
        nn.init.normal_(self.token)

    def forward(self, hypotheses: Tensor, points: Tensor) -> Judged:
        """Judge hypotheses.

        Args:
            hypotheses: [B, T, N, H, 8], trajectories whose first box is the hypothesis.
            points: [B * N * H, K, 6], around the first boxes, see `trajectory_points.sampled_points`.
        """
        batch, _, tracks, count, _ = hypotheses.shape
        looks = self.up_dimension_geometry(point_features(points, hypotheses[:, 0].flatten(0, 2)))
        tokens = self.encoder_fg(self.token.expand(len(looks), -1, -1), looks)
        moves = self.seqboxembed(_box_rows(hypotheses))
        none = moves.new_zeros(len(moves), CLASSES)
        joint = self.cls_embed(torch.cat([tokens[-1][:, 0], moves, none], 1)).relu()
        layers = self.encoder_globallocal(joint.view(batch, tracks, count, -1))
        every = torch.stack(tokens)[:, :, 0]
        return Judged(
            point_logits=self.point_cls(every)[..., 0],
            corrections=self.point_reg(every),
            box_logits=self.boxes_cls(moves)[:, 0].view(-1, count),
            joint_logits=self.joint_cls(torch.stack(layers))[..., 0].flatten(1, 2),
        )


def _box_rows(hypotheses: Tensor) -> Tensor:
    """Trajectories [M, T, 8], headings from 0 to 2π; zeros where a box is empty."""
    rows = hypotheses.movedim(1, 3).flatten(0, 2)
    rows = torch.cat([rows[..., :6], rows[..., 6:7] % (2 * math.pi), rows[..., 7:]], -1)
    return rows.masked_fill(rows[..., :6].sum(-1, keepdim=True) == 0, 0.0)
