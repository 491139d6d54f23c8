"""Entries in OpenPCDet's registries, and the channels and strides that follow from what was built before."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import nn

from pcdet_ext.config import ConfigError
from pcdet_ext.plugins.imports import after_import, tell
from pcdet_ext.plugins.openpcdet.parts import Backbone2D, Backbone3D, DenseHead, Encoder, MapToBEV
from pcdet_ext.plugins.openpcdet.sections import BACKBONE_READERS, BEV_READERS, ENCODER_READERS, NAME

# Dictionaries `__all__` of OpenPCDet, and what is entered there under which names.
ENTRIES: dict[str, tuple[type[nn.Module], Sequence[str]]] = {
    "pcdet.models.backbones_3d.vfe": (Encoder, (NAME, *ENCODER_READERS)),
    "pcdet.models.backbones_3d": (Backbone3D, (NAME, *BACKBONE_READERS)),
    "pcdet.models.backbones_2d.map_to_bev": (MapToBEV, (NAME,)),
    "pcdet.models.backbones_2d": (Backbone2D, (NAME, *BEV_READERS)),
    "pcdet.models.dense_heads": (DenseHead, (NAME,)),
}
TEMPLATE = "pcdet.models.detectors.detector3d_template"
OPTIMIZATION = "train_utils.optimization"  # in the folder tools
PARTS = (Encoder, Backbone3D, Backbone2D, DenseHead)  # those with parameters
STRIDES = {"VoxelBackBone8x": 8, "VoxelResBackBone8x": 8}  # of OpenPCDet's 3-D backbones, which do not tell theirs


def register() -> None:
    """Enter this library's components into OpenPCDet's registries: at once, or as soon as they are imported."""
    for module in ENTRIES:
        after_import(module, _enter)
    after_import(TEMPLATE, _follow_building)
    after_import(OPTIMIZATION, _follow_optimizers)


def _enter(module: ModuleType) -> None:
    part, names = ENTRIES[module.__name__]
    registry: dict[str, Any] = module.__all__
    for name in names:
        if name in registry and registry[name] is not part:
            tell(f"{module.__name__} has a {name} of its own, which stays; write {{NAME: {NAME}, CONFIG: …}} for ours")
        else:
            registry[name] = part


def _follow_building(module: ModuleType) -> None:
    """Tell map and head, when a detector is built, what follows from the parts before them."""
    template: Any = module.__dict__["Detector3DTemplate"]
    for method, prepare in (("build_map_to_bev_module", _fill_map), ("build_dense_head", _fill_head)):
        setattr(template, method, _after(prepare, getattr(template, method)))


def _after(prepare: Callable[[Any, Sequence[nn.Module]], None], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def build(self: Any, model_info_dict: dict[str, Any]) -> Any:
        prepare(self.model_cfg, model_info_dict["module_list"])
        return method(self, model_info_dict=model_info_dict)

    return build


def _fill_map(model_cfg: Mapping[str, Any], modules: Sequence[nn.Module]) -> None:
    """Derive NUM_BEV_FEATURES behind one of our parts, and check what the user wrote."""
    section = model_cfg.get("MAP_TO_BEV")
    if section is None or not modules or not isinstance(modules[-1], (Encoder, Backbone3D)):
        return
    channels = modules[-1].map_channels
    if _given(section, "NUM_BEV_FEATURES", channels) != channels:
        raise ConfigError(
            f"MODEL.MAP_TO_BEV.NUM_BEV_FEATURES is {section['NUM_BEV_FEATURES']}, but the map of {modules[-1].section} "
            f"has {channels} channels (channels times cells along z); leave it out, and it follows"
        )


def _fill_head(model_cfg: Mapping[str, Any], modules: Sequence[nn.Module]) -> None:
    """Derive STRIDE for one of our heads, and the setting that OpenPCDet wants of every head."""
    section = model_cfg.get("DENSE_HEAD")
    if section is None or section.get("NAME") != NAME:
        return
    _given(section, "CLASS_AGNOSTIC", False)
    stride = map_stride(model_cfg, modules)
    if stride is None:
        return
    if _given(section, "STRIDE", stride) != stride:
        raise ConfigError(f"MODEL.DENSE_HEAD.STRIDE is {section['STRIDE']}, but the map has a stride of {stride}")


def _given(section: Any, key: str, value: Any) -> Any:
    """What a section says, or the value, which is then entered; EasyDict notices assignments alone."""
    if key not in section:
        section[key] = value
    return section[key]


def map_stride(model_cfg: Mapping[str, Any], modules: Sequence[nn.Module]) -> int | None:
    """Voxels per cell of the map that heads read, or None where one of OpenPCDet's own parts does not tell."""
    ours = {type(module): module.stride for module in modules if isinstance(module, (Backbone3D, Backbone2D))}
    before = model_cfg.get("BACKBONE_3D")
    first = ours.get(Backbone3D, 1 if before is None else STRIDES.get(before["NAME"]))
    second = ours.get(Backbone2D, _stride_2d(model_cfg.get("BACKBONE_2D")))
    return None if first is None or second is None else int(first * second)


def _stride_2d(section: Mapping[str, Any] | None) -> float | None:
    """The stride of one of OpenPCDet's 2-D backbones: what its first level has and does not take back."""
    if section is None:
        return 1
    strides, back = section.get("LAYER_STRIDES"), section.get("UPSAMPLE_STRIDES")
    if not strides:
        return None
    return float(strides[0] / back[0]) if back else None


def _follow_optimizers(module: ModuleType) -> None:
    """Let OpenPCDet's optimizers train every parameter of our parts; see `_complete`."""
    build_optimizer: Callable[..., Any] = module.__dict__["build_optimizer"]

    @functools.wraps(build_optimizer)
    def build(model: nn.Module, optim_cfg: Any) -> Any:
        optimizer = build_optimizer(model, optim_cfg)
        _complete(optimizer, model)
        return optimizer

    module.__dict__["build_optimizer"] = build


def _complete(optimizer: Any, model: nn.Module) -> None:
    """Add the parameters of our parts that an optimizer lacks to its first group.

    `adam_onecycle` and `adam_cosineanneal` collect the parameters of modules without children alone, and would leave
    those untrained that stand beside children, such as the state matrix of a Mamba layer.
    """
    inner = getattr(optimizer, "opt", optimizer)
    known = {id(p) for group in inner.param_groups for p in group["params"]}
    ours = [p for module in model.modules() if isinstance(module, PARTS) for p in module.parameters()]
    missing = [p for p in dict.fromkeys(ours) if p.requires_grad and id(p) not in known]
    inner.param_groups[0]["params"].extend(missing)
    if missing:
        tell(f"{len(missing)} parameters beside submodules, which OpenPCDet's optimizer does not see, are trained, too")
