"""The training data of each epoch: the last ones leave out some of the augmentations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pcdet_ext.config import ConfigError, Node, setting, suggest
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.engine.settings import TrainConfig


def training_datasets(data: Node, options: TrainConfig) -> Callable[[int], Any]:
    """The training set of an epoch: in the last `fade_epochs` ones without the augmentations to fade.

    Both sets are made at once, so that a wrong data section is known before the training. Of several sources each fades
    those of its own augmentations that are named. Raises ConfigError when `fade_augmentations` names one that no source
    uses.
    """
    used = list(dict.fromkeys(name for part in _parts(data) for name in _augmentations(part)))
    for name in options.fade_augmentations:
        if name not in used:
            raise ConfigError(f"train.fade_augmentations: data.augment has no {name!r}{suggest(name, used)}")

    def make(section: Node) -> Any:
        return build_dataset(section, split="train", training=True, seed=options.seed)

    first = make(data)
    fades = bool(options.fade_augmentations and options.fade_epochs)
    faded = make(_faded(data, options)) if fades else first
    return lambda epoch: faded if epoch >= options.epochs - options.fade_epochs else first


def _parts(data: Node) -> list[Node]:
    """What each source of a data section is made from; the section itself where it names no sources."""
    sources = setting(data, "sources", Sequence[Mapping[str, Any]] | None, None)
    return [data] if sources is None else [Node({**data, **source}, data.key_path, data.sources) for source in sources]


def _augmentations(part: Node) -> list[str]:
    """Names of the augmentations of a source."""
    return [str(node.get("name")) for node in setting(part, "augment", Sequence[Mapping[str, Any]], [])]


def _faded(data: Node, options: TrainConfig) -> Node:
    """The data section of the fading epochs."""

    def left_out(part: Node) -> list[str]:
        disabled = setting(part, "disable_augmentations", Sequence[str], [])
        own = _augmentations(part)
        return [n for n in disabled_augmentations(disabled, options, options.epochs - 1) if n in own]

    faded = Node({**data, "disable_augmentations": left_out(data)}, data.key_path, data.sources)
    if data.get("sources") is not None:
        pairs = zip(data["sources"], _parts(data), strict=True)
        faded["sources"] = [
            Node(
                {**source, "disable_augmentations": left_out(part)},
                getattr(source, "key_path", ""),
                getattr(source, "sources", None),
            )
            for source, part in pairs
        ]
    return faded


def disabled_augmentations(disabled: Sequence[str], options: TrainConfig, epoch: int) -> tuple[str, ...]:
    """Names of the augmentations that are left out in an epoch.

    Args:
        disabled: those that the data section leaves out.
        options: of the training, with what fades in the last epochs.
        epoch: number of the epoch, from 0.
    """
    if not options.fade_augmentations or epoch < options.epochs - options.fade_epochs:
        return tuple(disabled)
    return tuple(dict.fromkeys([*(() if options.fade_restores else disabled), *options.fade_augmentations]))
