"""What a head finds, by the short way that some of them have."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

LONG_WAY = ("forward", "decode", "candidates")  # methods of a head that `predict` stands for, the last if it has one


def detected(head: Any, features: Any) -> list[Any]:
    """What a head finds in each frame, by the short way (`predict`) if it has one, evaluates, and nobody looks on."""
    if (
        hasattr(head, "predict")
        and not head.training
        and not _is_observed(head)
        and _predicts_as_it_decodes(type(head))
    ):
        return cast("list[Any]", head.predict(features))
    return cast("list[Any]", head.decode(head(features)))


def _is_observed(head: nn.Module) -> bool:
    """Whether forward hooks wait for what a short way would leave out."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in head.modules())


def _predicts_as_it_decodes(kind: type) -> bool:
    """False for a subclass with one of `LONG_WAY` of its own, of which the inherited `predict` knows nothing."""
    place = {name: _depth(kind, name) for name in ("predict", *LONG_WAY) if hasattr(kind, name)}
    return all(place["predict"] <= depth for depth in place.values())


def _depth(kind: type, name: str) -> int:
    """How far up its bases a class finds the method `name`: 0 for one of its own."""
    return next(i for i, base in enumerate(kind.__mro__) if name in vars(base))
