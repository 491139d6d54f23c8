"""Files with the networks of trackers: what kind it is, the arguments that it was made with, and its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from pcdet_ext import checkpoint
from pcdet_ext.files import DataError, expand_path

Network = TypeVar("Network", bound=nn.Module)


def save(path: Path, kind: str, network: nn.Module, settings: Mapping[str, Any]) -> None:
    """Write a network.

    Args:
        path: a file that exists is replaced when all is written; `~` and `$NAME` are replaced.
        kind: what `load` must be told to read it.
        network: of any device.
        settings: the arguments that it was made with, in plain types.
    """
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    checkpoint.write(expand_path(str(path)), {"kind": kind, "settings": dict(settings), "state": state})


def load(path: Path, kind: str, build: Callable[..., Network]) -> Network:
    """Read a network, in evaluation mode.

    Args:
        path: of the file; `~` and `$NAME` are replaced.
        kind: as it was written with.
        build: makes the network of its settings.

    Raises:
        DataError: the file is missing, damaged, or of something else; the message names it.
    """
    path = expand_path(str(path))
    content = checkpoint.load_safely(path, "only tensors and plain values are read")
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise DataError(f"{path}: no network of a {kind}")
    for key in ("settings", "state"):
        if not isinstance(content.get(key), Mapping):
            raise DataError(f"{path}: damaged: {key} of a {kind} must be a mapping, is {content.get(key)!r:.60}")
    try:
        network = build(**content["settings"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged: the settings are none of a {kind}: {error}") from error
    checkpoint.load_model(network, content["state"], path)
    return network.eval()
