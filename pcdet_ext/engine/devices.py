"""The devices and processes of a training, and its random numbers."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from pcdet_ext.config import ConfigError
from pcdet_ext.engine.interrupts import signal_with_parent

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def make_fabric(
    precision: str = "fp32", device: str = "auto", devices: int | None = None, strategy: str = "auto", nodes: int = 1
) -> Fabric:
    """Lightning's Fabric for a device and a number of processes on each of `nodes` machines.

    Under torchrun its numbers of processes and machines are taken.

    Args:
        precision: see `TrainConfig`.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", "mps".
        devices: processes on this machine, each with a device of its own; one when None.
        strategy: how processes work together, by Lightning's names.
        nodes: machines.

    Raises:
        ConfigError: the device is missing, cannot compute in the precision, or is one of several.
        ImportError: Lightning is not installed.
    """
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.plugins import MixedPrecision
    except ImportError as error:
        raise ImportError("training needs Lightning: pip install pcdet_ext[train]") from error
    for name, value in {"devices": 1 if devices is None else devices, "nodes": nodes}.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a killed torchrun would leave its processes: they save and end
        signal_with_parent(os.getppid(), signal.SIGTERM)
    kind, index = training_device(device)
    if precision == "fp16" and kind != "cuda":
        raise ConfigError("train.precision: fp16 needs a CUDA device; use bf16 or fp32 on the CPU")
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if index is not None and (devices or 1) * nodes > 1:
        raise ConfigError(f"device {device!r} is one device; for several processes name their kind, {kind!r}")
    mixed: dict[str, Literal["bf16-mixed", "16-mixed"]] = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
    plugin = mixed.get(precision)
    try:
        return Fabric(
            accelerator=kind,
            devices=(devices or 1) if index is None else [index],
            num_nodes=nodes,
            strategy=strategy,
            plugins=[MixedPrecision(plugin, kind)] if plugin else None,
        )
    except (ValueError, TypeError) as error:  # of Lightning, for names and numbers that do not fit each other
        raise ConfigError(f"{devices or 1} {kind} devices, strategy {strategy!r}: {error}") from error


def training_device(name: str) -> tuple[Literal["cpu", "cuda", "mps"], int | None]:
    """The kind of a device by name, and its index where the name has one that matters; "auto" for CUDA if there is one.

    The device itself is not touched, so that several processes do not all take memory of the first one. Raises
    ConfigError for a device that is not there, and for kinds that Lightning does not know.
    """
    if name == "auto":
        return ("cuda" if torch.cuda.is_available() else "cpu"), None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cpu":
        return "cpu", None
    if device.type == "cuda" and count:
        if (device.index or 0) >= count:
            raise ConfigError(f"device {name!r}: torch sees {count} CUDA devices, cuda:0 to cuda:{count - 1}")
        return "cuda", device.index
    if device.type == "cuda":
        raise ConfigError(f"device {name!r}: no CUDA device is available")
    if device.type == "mps" and torch.backends.mps.is_available():
        return "mps", None
    raise ConfigError(f"device {name!r}: not available, or none that Lightning trains on (cpu, cuda, mps)")


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, which foreign code may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - NumPy takes no more than 32 bits
    torch.manual_seed(seed)
