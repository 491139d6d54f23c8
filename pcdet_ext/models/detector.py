"""A complete detector: points → voxels → (3-D backbone) → bird's-eye-view map → (2-D backbone) → heads → results."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pcdet_ext.config import ConfigError, Node, errors_name_overrides, setting, suggest
from pcdet_ext.data.formats import point_features
from pcdet_ext.models import batch_tree  # noqa: F401  (makes batches known to torch's trees)
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.bev import BEV_BACKBONES, flatten_to_bev
from pcdet_ext.models.data_settings import check_whole_voxels, classes_of, range_of, wrong_range
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.heads import HEADS
from pcdet_ext.models.heads.base import Features, FollowingHead, Head, Reads, followed_heads
from pcdet_ext.models.heads.shortcuts import detected
from pcdet_ext.models.module_checks import check_not_exported, parameter_dtype
from pcdet_ext.models.places import PlaceModel as _PlaceModel  # noqa: F401  (its room registers models)
from pcdet_ext.models.registry import DETECTORS
from pcdet_ext.models.task_weights import weighted_losses
from pcdet_ext.models.temporal import TEMPORAL, VoxelMemory
from pcdet_ext.scenes import FrameContext
from pcdet_ext.structures import Detections, PointBatch, Predictions, SparseVoxels, Targets, tensor_of

RADII = ("positive_radius", "negative_radius")  # of the data, by which models of place recognition learn
ON_MAP = frozenset({"map", "scene"})  # what heads that need a map of the bird's-eye view read
ONLY = "head"  # the name of a head that has none
MOST_PARAMETERS = 10_000  # tensors; the published detectors have up to 1,500


@DETECTORS.register
class VoxelDetector(nn.Module):
    """An encoder, one or several heads and, between them, optional 3-D and 2-D backbones.

    Args:
        classes: names.
        point_cloud_range: (x, y, z minimum, then maximum) in metres.
        num_point_features: columns of the points.
        voxel_size: (x, y, z) in metres.
        encoder: configuration; each component gets what its predecessor decides (channels, grid, stride).
        head: configuration of the only head,
        heads: or those of several, by name; each may say its `weight` in the loss (1 by default). A head that finds
            boxes may have `classes` of its own, some of the detector's: it learns from boxes of these alone.
        backbone: configuration of a 3-D backbone, or None.
        bev_backbone: configuration of a 2-D backbone, or None.
        temporal: configuration of what remembers the voxels of earlier frames, or None; the backbone must take voxels
            that share a cell.
        balance: name of a head by whose loss those of the others are scaled, or None; see `weighted_losses`.

    Attributes: stride, voxels per cell of the map that heads read.

    Raises:
        ConfigError: when a component does not fit.
    """

    def __init__(
        self,
        classes: Sequence[str],
        point_cloud_range: Sequence[float],
        num_point_features: int,
        voxel_size: Sequence[float],
        encoder: Mapping[str, Any],
        head: Mapping[str, Any] | None = None,
        backbone: Mapping[str, Any] | None = None,
        bev_backbone: Mapping[str, Any] | None = None,
        heads: Mapping[str, Mapping[str, Any]] | None = None,
        temporal: Mapping[str, Any] | None = None,
        balance: str | None = None,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.num_point_features = num_point_features
        _check_geometry(self.classes, point_cloud_range, voxel_size, num_point_features)
        geometry = {"point_cloud_range": tuple(point_cloud_range), "voxel_size": tuple(voxel_size)}
        self.encoder = ENCODERS.build(encoder, in_channels=num_point_features, **geometry)
        channels, grid, stride = self.encoder.out_channels, self.encoder.grid, 1
        self.temporal = None
        if temporal is not None:
            self.temporal = TEMPORAL.build(temporal, channels=channels, grid=grid, **geometry)
        self.backbone = None
        if backbone is not None:
            self.backbone = BACKBONES.build(backbone, in_channels=channels, grid=grid, **geometry)
            channels, grid, stride = self.backbone.out_channels, self.backbone.out_grid, self.backbone.stride
        if temporal is not None and not getattr(self.backbone, "takes_repeated", False):
            raise ValueError("temporal needs a backbone that takes voxels which share a cell: LION with merge_repeated")
        widths: dict[Reads, int] = {"voxels": channels, "map": channels * grid[0]}
        widths["points"] = self.encoder.out_channels + (channels if self.backbone is not None else 0)
        self.bev_backbone = None
        if bev_backbone is not None:
            self.bev_backbone = BEV_BACKBONES.build(bev_backbone, in_channels=widths["map"], map_size=grid[1:])
            widths["map"], stride = self.bev_backbone.out_channels, stride * self.bev_backbone.stride
        widths["scene"] = widths["map"]
        self.stride = stride
        context = {"classes": self.classes, "stride": stride, "grid": self.encoder.grid, **geometry}
        context["num_point_features"] = num_point_features
        nodes, self.weights = _head_nodes(head, heads)
        built = {name: HEADS.build(node, in_channels=_width(node, widths), **context) for name, node in nodes.items()}
        if heads and any(getattr(module, "double_flip", False) for module in built.values()):
            raise ValueError("double_flip is for the only head of a detector: others would see the flipped copies too")
        for name, module in built.items():
            _check_head_classes(name, self._classes_of(module), self.classes)
        self.head = built[ONLY] if head is not None else None
        self.heads = nn.ModuleDict({} if head is not None else built)
        self.followed = followed_heads(built)
        if balance is not None and balance not in self.heads:
            raise ValueError(f"balance must be one of several heads{suggest(balance, self.heads)}, got {balance!r}")
        self.balance = balance
        self.reads = {module.reads for module in built.values()}
        self.encoder.keep_point_index = "points" in self.reads
        if bev_backbone is not None and not self.reads & ON_MAP:
            raise ValueError("bev_backbone makes a map that no head reads")

    def named_heads(self) -> dict[str, Head]:
        """The heads by name; an only head has the name "head"."""
        return {ONLY: self.head} if self.head is not None else cast("dict[str, Head]", dict(self.heads.items()))

    def forward(self, batch: PointBatch) -> Any:
        """The output of the only head, or those of several by name."""
        return self._outputs(self.features(batch))

    def _outputs(self, features: Features) -> Any:
        outputs: dict[str, Any] = {}
        for name, head in self.named_heads().items():
            outputs[name] = head(replace(features, outputs=outputs).of(head.reads))
        return outputs[ONLY] if self.head is not None else outputs

    def features(self, batch: PointBatch, memory: VoxelMemory | None = None) -> Features:
        """What the heads read, and what a detector that remembers needs with the next batch.

        Args:
            batch: the points; without a context each frame is taken to begin a sequence.
            memory: what the batch before left, None at the beginning.

        Raises:
            ValueError: for points with other columns than the detector was built for.
        """
        check_not_exported()
        if batch.points.shape[1] != self.num_point_features:
            raise ValueError(
                f"points must have the {self.num_point_features} columns the detector was built for, "
                f"got {batch.points.shape[1]}"
            )
        dtype = parameter_dtype(self)
        encoded = self.encoder(batch)
        encoded = encoded if dtype is None else encoded.with_features(encoded.features.to(dtype))
        present, memory = self._recalled(encoded, batch, memory)
        voxels = present if self.backbone is None else self.backbone(present)
        strides = (1, 1, 1) if self.backbone is None else _strides(self.backbone, encoded.grid)
        if not self.reads & ON_MAP:
            return Features(batch, encoded, voxels, None, strides, memory=memory)
        bev = flatten_to_bev(voxels)
        bev = bev if self.bev_backbone is None else self.bev_backbone(bev)
        return Features(batch, encoded, voxels, bev, strides, memory=memory)

    def _recalled(
        self, encoded: SparseVoxels, batch: PointBatch, memory: VoxelMemory | None
    ) -> tuple[SparseVoxels, VoxelMemory | None]:
        """The voxels with those that are remembered, and what is remembered then."""
        if self.temporal is None:
            return encoded, None
        if batch.context is None:
            return self.temporal(encoded, FrameContext.alone(batch.batch_size))[0], None
        fused, memory = self.temporal(encoded, batch.context, memory)
        return fused, memory

    def bev_map(self, batch: PointBatch) -> Tensor:
        """The map [B, C, Y, X] that heads read. Raises ValueError where none reads a map."""
        bev = self.features(batch).bev
        if bev is None:
            raise ValueError("no head of this detector reads a map")
        return bev

    def loss(self, batch: PointBatch) -> dict[str, Tensor]:
        """Losses for a batch with ground truth, and their weighted sum "total".

        Those of an only head have their own names, those of several heads the names "head/loss".
        """
        return self.loss_and_memory(batch)[0]

    def loss_and_memory(
        self, batch: PointBatch, memory: VoxelMemory | None = None
    ) -> tuple[dict[str, Tensor], VoxelMemory | None]:
        """Losses as `loss` gives them, and what to remember; arguments are those of `features`."""
        if batch.targets is None:
            raise ValueError("the batch has no ground truth (targets) to compute a loss from")
        features = self.features(batch, memory)
        output = self._outputs(features)
        if self.head is not None:
            losses = self.head.loss(output, self._targets_of(self.head, batch.targets))
        else:
            own = {name: self._head_loss(name, output, batch.targets) for name in self.heads}
            losses = weighted_losses(own, self.weights, self.balance)
        return losses | {"total": sum(losses.values())}, features.memory

    def _head_loss(self, name: str, outputs: Mapping[str, Any], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The losses of one of several heads; one that follows another also learns which of its rows are objects."""
        head: Any = self.heads[name]
        own = self._targets_of(head, targets)
        if not hasattr(head, "of"):
            return cast("dict[str, Tensor]", head.loss(outputs[name], own))
        matches = cast("Any", self.heads[head.of]).matches(outputs[head.of], own)
        return cast("dict[str, Tensor]", head.loss(outputs[name], own, matches))

    def _classes_of(self, head: Any) -> tuple[str, ...]:
        """The classes by which a head numbers its boxes: its own, or the detector's where it has none."""
        return tuple(getattr(head, "classes", self.classes))

    def _targets_of(self, head: Head, targets: Sequence[Targets]) -> Sequence[Targets]:
        """The targets with only the boxes that a head is to find, their labels being positions in its classes."""
        classes = self._classes_of(head)
        if classes == self.classes:
            return targets
        return [_of_some_classes(target, self.classes, classes) for target in targets]

    def _decoded(self, features: Features) -> dict[str, list[Any]]:
        """What each head finds in each frame."""
        outputs: dict[str, Any] = {}
        found: dict[str, list[Any]] = {}
        for name, head in self.named_heads().items():
            read = replace(features, outputs=outputs).of(head.reads)
            if name in self.followed:
                outputs[name] = head(read)
                found[name] = head.decode(outputs[name])
            elif hasattr(head, "of"):
                found[name] = cast("FollowingHead", head).decode(head(read), found[head.of])
            else:
                found[name] = detected(head, read)
        return found

    def _copies(self, batch: PointBatch) -> PointBatch:
        """The batch as the head wants it in testing: one that merges flipped copies of a frame makes them itself."""
        make: Callable[[PointBatch], PointBatch] | None = getattr(self.head, "copies", None)
        return batch if make is None else make(batch)

    def predict(self, batch: PointBatch) -> list[Any]:
        """The result in each frame of a batch, by a module that is in evaluation mode.

        Of an only head what it decodes, as `Detections`; of several `Predictions`, by their names.
        """
        return self.predict_and_memory(batch)[0]

    @torch.no_grad()
    def predict_and_memory(
        self, batch: PointBatch, memory: VoxelMemory | None = None
    ) -> tuple[list[Any], VoxelMemory | None]:
        """Results as `predict` gives them, and what to remember; arguments are those of `features`."""
        features = self.features(self._copies(batch), memory)
        names, decoded = batch.frame_ids or ("",) * batch.batch_size, self._decoded(features)
        if self.head is not None:
            return [_in_frame(found, name) for found, name in zip(decoded[ONLY], names, strict=True)], features.memory
        frames = [
            Predictions({name: _in_frame(found[i], frame) for name, found in decoded.items()})
            for i, frame in enumerate(names)
        ]
        return frames, features.memory


def _of_some_classes(targets: Targets, classes: Sequence[str], chosen: Sequence[str]) -> Targets:
    """The boxes of the chosen classes alone, their labels being positions in `chosen` instead of `classes`."""
    if targets.labels is None:
        return targets
    labels = tensor_of(targets.labels)
    number = [chosen.index(name) if name in chosen else -1 for name in classes]
    renamed = torch.tensor(number, dtype=torch.int64, device=labels.device)[labels]
    return targets.map(tensor_of).replace(labels=renamed, class_names=tuple(chosen)).select(renamed >= 0)


def _check_head_classes(head: str, chosen: Sequence[str], classes: Sequence[str]) -> None:
    """Raises ValueError for a class of a head that the detector does not have: there would be no box to learn from."""
    for name in chosen:
        if name not in classes:
            raise ValueError(f"head {head!r} has the unknown class {name!r}{suggest(name, classes)}")


def _in_frame(found: Any, frame_id: str) -> Any:
    return replace(found, frame_id=frame_id) if isinstance(found, Detections) else found


def _strides(backbone: Any, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """Cells of a backbone's input per cell of its output (z, y, x).

    A backbone of another package may lack `strides`; z is then taken to be divided evenly.
    """
    if hasattr(backbone, "strides"):
        z, y, x = backbone.strides
        return z, y, x
    return -(-grid[0] // backbone.out_grid[0]), backbone.stride, backbone.stride


def _head_nodes(
    head: Mapping[str, Any] | None, heads: Mapping[str, Mapping[str, Any]] | None
) -> tuple[dict[str, Mapping[str, Any]], dict[str, float]]:
    """Configurations of the heads by name, and their weights. Raises ValueError for none, or both kinds."""
    if (head is None) == (not heads):
        raise ValueError("a detector needs either `head`, its only one, or `heads`, several by name")
    if head is not None:
        return {ONLY: head}, {ONLY: 1.0}
    nodes: dict[str, Mapping[str, Any]] = {}
    weights: dict[str, float] = {}
    for name, node in (heads or {}).items():
        weight = node.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ValueError(f"heads.{name}.weight must be a number from 0, got {weight!r}")
        kept = {key: value for key, value in node.items() if key != "weight"}
        nodes[name] = Node(kept, node.key_path, node.sources) if isinstance(node, Node) else kept
        weights[name] = float(weight)
    return nodes, weights


def _width(node: Mapping[str, Any], widths: Mapping[Reads, int]) -> int:
    """Channels of what a head reads; a head that does not exist is the registry's to refuse."""
    name = str(node.get("name"))
    head: Any = HEADS.get(name) if name in HEADS else None
    return 0 if head is None else widths[head.reads]


_DEFAULTS = threading.RLock()


@contextmanager
def usual_defaults() -> Iterator[None]:
    """With torch's defaults as they are at first: float32, on the CPU, tensors that can have gradients.

    The default type belongs to the process, so one thread at a time is in here.
    """
    with _DEFAULTS:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.device("cpu"), torch.inference_mode(False):
                yield
        finally:
            torch.set_default_dtype(before)


def build_detector(config: Node) -> Any:
    """The untrained detector that a whole configuration (sections `data` and `model`) describes.

    Its parameters are of torch's default type on its default device; see `usual_defaults`.
    Raises ConfigError with file and key where it is wrong, and with the overrides that the configuration was read with.
    """
    for section in ("data", "model"):
        if config.get(section) is not None and not isinstance(config[section], Mapping):
            raise ConfigError(f"{config.where(section)}: {section} must be a mapping, got {config[section]!r}")
        if not isinstance(config.get(section), Mapping):
            raise ConfigError(f"{config.where()}: a detector needs the section {section!r}{suggest(section, config)}")
    with errors_name_overrides(config):
        return _build(config["data"], config["model"])


def _build(data: Node, model: Node) -> Any:
    takes = _arguments(model.get("name"))
    known: dict[str, Any] = {"classes": classes_of(data)} if "classes" in takes else {}
    known |= {radius: setting(data, radius, float) for radius in RADII if radius in data and radius in takes}
    with _at_most_parameters(MOST_PARAMETERS):
        detector = DETECTORS.build(
            model,
            point_cloud_range=range_of(data),
            num_point_features=len(point_features(data)),
            **known,
        )
    if hasattr(detector, "encoder"):
        check_whole_voxels(detector.encoder, data)
    return detector


def _arguments(name: Any) -> Collection[str]:
    """What a model takes; of one that does not exist, which the registry refuses, what a detector does."""
    known = isinstance(name, str) and name in DETECTORS
    return inspect.signature(DETECTORS.get(name) if known else VoxelDetector).parameters.keys()


@contextmanager
def _at_most_parameters(most: int) -> Iterator[None]:
    """Refuse, with a ValueError where it is built, a model of so many layers that building it fills all memory."""
    count = 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError(f"has too many layers: the detector would have more than {most} tensors of parameters")

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


def _check_geometry(
    classes: Sequence[str], point_cloud_range: Sequence[float], voxel_size: Sequence[float], num_point_features: int
) -> None:
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be different names, at least one, got {list(classes)}")
    if message := wrong_range(point_cloud_range):
        raise ValueError(message)
    if len(voxel_size) != 3 or min(voxel_size) <= 0:
        raise ValueError(f"voxel_size must be three positive lengths, got {list(voxel_size)}")
    if num_point_features < 3:
        raise ValueError(f"num_point_features must be at least 3 (x, y, z), got {num_point_features}")
