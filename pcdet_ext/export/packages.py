"""The optional packages that write and run ONNX models."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_package(name: str) -> Any:
    """A package of the extra "onnx". Raises ImportError that says how it is installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported ({error}): pip install 'pcdet_ext[onnx]'") from error
