"""Where detected objects will go: several possible paths for each (UniLION's motion head).

Published properties that one would not choose are named options, all off:
  choice_of_unknown       steps of which nothing is known count, as standing still, where the best path is chosen
  masks_in_object_order   known steps are those of another object wherever matching has changed the order
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pcdet_ext.models.heads.base import Features, Reads
from pcdet_ext.models.heads.paths import MapFusion, anchors_of, best_mode, mlp, mode_loss, sine_embedding, two_layers
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.heads.transfusion_decoder import DecoderLayer
from pcdet_ext.models.heads.transfusion_queries import QueryOutput
from pcdet_ext.ranges import check_range
from pcdet_ext.scenes import Forecasts
from pcdet_ext.structures import Detections, Targets, tensor_of

FFN_CHANNELS = 1024
Matches = Sequence[tuple[Tensor, Tensor]]  # of each frame: queries int64 [K] and their objects int64 [K]


@dataclass(frozen=True)
class MotionOutput:
    """Possible paths of P queries a frame.

    steps: offsets [B, P, K, T, 2] in each half second; logits: [B, P, K]; queries: [B, P * K, C], what they were made
    of.
    """

    steps: Tensor
    logits: Tensor
    queries: Tensor


@HEADS.register
class MotionHead(nn.Module):
    """Possible paths of the objects that a head of queries finds, in the frame's axes.

    Every query of that head becomes K, one for each typical path of its class, which look at each other and at the
    whole map.

    Args:
        in_channels: of the map.
        classes: of the objects.
        of: name of the head that finds them, a `TransFusionHead` that comes before this one.
        hidden_channels: of that head's queries, and of all layers here.
        modes: possible paths, K.
        steps: of half a second, T.
        anchors: typical paths [classes, K, T, 2], nested numbers or the path of a .npy file, in metres from the object;
            by default a fan of arcs.
        num_heads: of the attention.
        dropout: of the attention.
        classification_weight: of the loss of the choice between paths.
        regression_weight: of the loss of their places.
        alpha: of the focal loss of the choice.
        gamma: of the same.
        choice_of_unknown: see the module.
        masks_in_object_order: see the module.

    Raises:
        ValueError: the anchors have another shape, or num_heads does not divide hidden_channels.
    """

    reads: ClassVar[Reads] = "scene"
    finds: ClassVar[type] = Forecasts

    anchors: Tensor

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        of: str = "detection",
        hidden_channels: int = 128,
        modes: int = 6,
        steps: int = 12,
        anchors: Any = None,
        num_heads: int = 8,
        dropout: float = 0.1,
        classification_weight: float = 5.0,
        regression_weight: float = 1.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        choice_of_unknown: bool = False,
        masks_in_object_order: bool = False,
    ) -> None:
        super().__init__()
        check_range(1, hidden_channels=hidden_channels, modes=modes, steps=steps, num_heads=num_heads)
        check_range(0, 1, dropout=dropout, alpha=alpha)
        check_range(0, classification_weight=classification_weight, regression_weight=regression_weight, gamma=gamma)
        if hidden_channels % num_heads or hidden_channels % 4:
            raise ValueError(f"hidden_channels must divide by num_heads and by 4, got {hidden_channels}, {num_heads}")
        self.of, self.classes, self.modes, self.steps = of, tuple(classes), modes, steps
        self.weights = (classification_weight, regression_weight)
        self.focal = (alpha, gamma)
        self.choice_of_unknown, self.masks_in_object_order = choice_of_unknown, masks_in_object_order
        self.register_buffer("anchors", anchors_of(anchors, (len(self.classes), modes, steps, 2), "anchors"))
        self.fusion = MapFusion(in_channels, hidden_channels)
        self.anchor_encoder = mlp(hidden_channels, hidden_channels)
        self.decoder = DecoderLayer(hidden_channels, num_heads, FFN_CHANNELS, dropout, momentum=0.1, placed=False)
        self.layers = two_layers(hidden_channels)
        self.regression = nn.Linear(hidden_channels, steps * 2)
        self.classification = nn.Linear(hidden_channels, 1)

    def forward(self, features: Features) -> MotionOutput:
        """Paths for the queries of the other head, whose output is in the features.

        Raises ValueError where that head did not come before or has no queries.
        """
        found = features.outputs.get(self.of)
        if not isinstance(found, QueryOutput):
            raise ValueError(f"motion is of the queries of the head {self.of!r}, a TransFusionHead before this head")
        return self.paths(features.map(), found)

    def paths(self, bev: Tensor, found: QueryOutput) -> MotionOutput:
        """Paths for queries on a map [B, in_channels, Y, X]."""
        query = found.features.transpose(1, 2)  # [B, P, C]
        if query.shape[2] != self.anchor_encoder[-1].out_features:
            raise ValueError(f"queries have {query.shape[2]} channels, not hidden_channels")
        ends = sine_embedding(self.anchors[..., -1, :], query.shape[2])
        anchors = self.anchor_encoder(ends.to(query))[_classes(found)]  # [B, P, K, C]
        queries = (query[:, :, None] + anchors).flatten(1, 2)
        turned = bev.transpose(2, 3)  # rows of the published maps stand for x
        keys = self.fusion(turned, turned).flatten(2)
        queries = self.decoder(queries.transpose(1, 2), keys).transpose(1, 2)
        hidden = self.layers(queries)
        shape = (*query.shape[:2], self.modes)
        steps = self.regression(hidden).float().view(*shape, self.steps, 2)
        return MotionOutput(steps, self.classification(hidden).float().view(shape), hidden)

    def loss(self, output: MotionOutput, targets: Sequence[Targets], matches: Matches) -> dict[str, Tensor]:
        """Losses "regression" and "classification" of the queries that stand for an object.

        Args:
            output: of `forward`.
            targets: of each frame, with futures.
            matches: of each frame, rows int64 [K] of the other head's queries, and the objects int64 [K] that they
                stand for.

        Raises:
            ValueError: a frame has no futures, or others than of `steps` steps.
        """
        steps, logits, wanted, masks = [], [], [], []
        for frame, (target, (query, found)) in enumerate(zip(targets, matches, strict=True)):
            futures, known = self._futures(frame, target)
            steps.append(output.steps[frame, query])
            logits.append(output.logits[frame, query])
            wanted.append(futures.to(output.steps)[found])
            masks.append(self._in_object_order(known, query) if self.masks_in_object_order else known[found])
        predicted, true, mask = torch.cat(steps), torch.cat(wanted), torch.cat(masks).to(output.steps)
        if not len(predicted):
            return {"regression": output.steps.sum() * 0, "classification": output.logits.sum() * 0}
        best = best_mode(predicted.detach(), true, None if self.choice_of_unknown else mask)
        own = predicted[torch.arange(len(best), device=best.device), best]
        error = (own.cumsum(1) - true.cumsum(1)).abs() * mask[..., None]
        choice = mode_loss(torch.cat(logits), best, *self.focal)
        return {
            "regression": self.weights[1] * error.mean(),
            "classification": self.weights[0] * choice.mean(),
        }

    def _futures(self, frame: int, target: Targets) -> tuple[Tensor, Tensor]:
        if target.futures is None or target.future_mask is None:
            raise ValueError(f"frame {frame} of the batch has no futures to learn from")
        futures = tensor_of(target.futures)
        if futures.shape[1] != self.steps:
            raise ValueError(f"the futures of frame {frame} have {futures.shape[1]} steps, not {self.steps}")
        return futures, tensor_of(target.future_mask)

    @staticmethod
    def _in_object_order(known: Tensor, query: Tensor) -> Tensor:
        if len(known) != len(query):
            raise ValueError(
                f"masks_in_object_order needs a query for each object, there are {len(query)} for {len(known)} objects"
            )
        return known

    @torch.no_grad()
    def decode(self, output: MotionOutput, found: Sequence[Detections]) -> list[Forecasts]:
        """Paths of the detections of the other head in each frame, from the centres of their boxes.

        Raises ValueError for detections that do not say which query each is of.
        """
        return [self._decoded(output, frame, detections) for frame, detections in enumerate(found)]

    def _decoded(self, output: MotionOutput, frame: int, found: Detections) -> Forecasts:
        if found.queries is None:
            raise ValueError(f"the detections of {self.of!r} do not say which query each is of")
        query = tensor_of(found.queries)
        paths = output.steps[frame, query].cumsum(2) + tensor_of(found.boxes)[:, None, None, :2]
        return Forecasts(paths, output.logits[frame, query], self.of)


def _classes(found: QueryOutput) -> Tensor:
    """int64 [B, P]: the class that each query is scored with, that of its peak unless its score there is 0."""
    own = nn.functional.one_hot(found.labels, found.logits.shape[1]).transpose(1, 2)
    return (found.logits.sigmoid() * found.peak_scores * own).argmax(1)
