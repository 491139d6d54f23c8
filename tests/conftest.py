"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cuda_emulator.emulator import Accelerator, compiler

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden cases and sensor frames beside the project; skips where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"reference material is not here ({SHARED})")
    return SHARED


@pytest.fixture(params=[pytest.param(None, marks=pytest.mark.gpu, id="cuda"), "forward", "reversed"])
def accelerator(request: pytest.FixtureRequest) -> Accelerator:
    """A CUDA device, and the emulator with its threads in two orders, which find out where a barrier is missing."""
    if request.param is not None and compiler() is None:
        pytest.skip("no C++ compiler")
    return Accelerator(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # its keywords hold the names of folders too
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
