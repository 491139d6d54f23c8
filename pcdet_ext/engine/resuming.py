"""Whether a checkpoint can be continued with the settings of now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import Node
from pcdet_ext.engine.settings import TrainConfig

# Settings of the data that decide what the parameters mean: a checkpoint cannot be continued with other values.
MEANING = ("classes", "point_cloud_range", "point_features")


def check_same_order(content: Mapping[str, Any], seed: int, path: str | Path) -> None:
    """Inside an epoch the frames that are left follow from the seed, so it must be the same.

    Args:
        content: of the checkpoint.
        seed: train.seed now.
        path: the checkpoint, for messages.

    Raises:
        CheckpointError: the checkpoint stands inside an epoch, and the seed is another one.
    """
    saved = content["config"].get("train", {}).get("seed", TrainConfig.seed)
    if content["progress"].get("batch") and saved != seed:
        raise CheckpointError(
            f"{path}: stands inside an epoch whose frames are in the order of train.seed={saved}, now it is {seed}: "
            "continue with the same seed"
        )


def check_same_frozen(content: Mapping[str, Any], freeze: Sequence[str], path: str | Path) -> None:
    """The optimiser's state is that of the parameters in training, so these must be the same.

    Args:
        content: of the checkpoint.
        freeze: train.freeze now.
        path: the checkpoint, for messages.

    Raises:
        CheckpointError: other parameters are frozen.
    """
    saved = content["config"].get("train", {}).get("freeze", TrainConfig.freeze)
    if sorted(saved) != sorted(freeze):
        raise CheckpointError(
            f"{path}: train.freeze was {list(saved)}, now {list(freeze)}: continue with the same, or start a new "
            "training from its parameters with train.init_from"
        )


def check_same_model(before: Mapping[str, Any], settings: Node, resume: str | Path) -> None:
    """Refuse to continue the training of another model, or of the same parameters with another meaning.

    What decides the training alone may change.

    Args:
        before: the configuration in the checkpoint.
        settings: the one now.
        resume: the checkpoint, for messages.

    Raises:
        CheckpointError: naming each key whose value is another one.
    """
    now = settings.plain()
    changed = [*differences("model", before.get("model"), now.get("model")), *meaning_changes(before, now)]
    if changed:
        raise CheckpointError(
            f"{resume}: holds the training of another model ({'; '.join(changed[:3])}): continue it with the same "
            "settings, or start a new one from its parameters with train.init_from"
        )


def meaning_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What the parameters of one configuration mean otherwise in another one, as texts "data.classes was …, now …"."""
    old, new = before.get("data") or {}, now.get("data") or {}
    return [line for key in MEANING for line in differences(f"data.{key}", old.get(key), new.get(key))]


def differences(key: str, old: Any, new: Any) -> list[str]:
    """Where two plain values differ, as texts "a.b was 1, now 2".

    Args:
        key: what the values are called.
        old: the one before; mappings are compared key by key.
        new: the one now.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [line for k in keys for line in differences(f"{key}.{k}", old.get(k), new.get(k))]
    return [] if old == new else [f"{key} was {old!r}, now {new!r}"]
