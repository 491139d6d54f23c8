"""What is here: versions, devices, native libraries, optional packages. `pcdet info` prints it."""

from __future__ import annotations

import os
import platform
import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import pcdet_ext
from pcdet_ext.ops import _native

REQUIRED = ("torch", "numpy", "pyyaml", "numba", "scipy", "tqdm", "pyarrow", "pillow")
# What is imported, the extra of `pip install pcdet_ext[…]` it comes with, and the distributions that bring it.
OPTIONAL = {
    "spconv": ("spconv", ("spconv-cu120", "spconv-cu126", "spconv-cu121", "spconv-cu118", "spconv")),
    "torch_scatter": ("scatter", ("torch-scatter",)),
    "lightning": ("train", ("lightning",)),
    "tensorboard": ("train", ("tensorboard",)),
    "open3d": ("vis", ("open3d", "open3d-cpu")),
    "matplotlib": ("vis", ("matplotlib",)),
    "rerun": ("rerun", ("rerun-sdk",)),
    "shapely": ("dev", ("shapely",)),
    "faiss": ("faiss", ("faiss-cpu", "faiss-gpu")),
    "onnx": ("onnx", ("onnx",)),
    "onnxruntime": ("onnx", ("onnxruntime", "onnxruntime-gpu")),
    "laspy": ("las", ("laspy",)),
}


def distribution_version(*names: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str]:
    """Versions of this library, Python, and the packages that it requires."""
    found = {"pcdet_ext": pcdet_ext.__version__, "python": platform.python_version()}
    return found | {name: distribution_version(name) or "missing" for name in REQUIRED}


def optional_packages() -> dict[str, str | None]:
    """Version of each optional package ("unknown" where it does not say), None where it is not here."""
    found = {}
    for module, (_, distributions) in OPTIONAL.items():
        found[module] = (distribution_version(*distributions) or "unknown") if find_spec(module) else None
    return found


def hardware() -> dict[str, Any]:
    """The machine as a benchmark records it: processor, cores this process may use, torch's threads, GPUs."""
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [gpu_name(i) for i in range(torch.cuda.device_count())],
    }


def processor_name() -> str:
    """Model name of the processor where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def gpu_name(index: int) -> str:
    """Name, memory and architecture of a CUDA device."""
    device = torch.cuda.get_device_properties(index)
    return f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}"


def native_status(device_type: str) -> str:
    """What became of the native library for "cpu" or "cuda", in words."""
    path = _native.library_path(device_type)
    built = "built" if path.exists() else "not built"
    if os.environ.get("PCDET_EXT_NATIVE") == "0":
        return f"{built}, switched off by PCDET_EXT_NATIVE=0: PyTorch references are used"
    if not path.exists():
        return f"not built: PyTorch references are used; {_native.how_to_build(device_type)}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = _native.library(device_type)
    if loaded is None:
        return f"built, but not loaded: {caught[-1].message if caught else 'see the warning above'}"
    if device_type == "cuda" and not torch.cuda.is_available():
        return "built, loaded, but torch sees no CUDA device"
    return "built, loaded"


def describe() -> str:
    """All of it as text."""
    machine = hardware()
    sections = {
        "versions": versions(),
        "devices": {
            "cpu": f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads",
            **{f"cuda:{i}": name for i, name in enumerate(machine["gpus"])},
        },
        "native kernels": {kind: native_status(kind) for kind in ("cpu", "cuda")},
        "optional packages": {
            name: version or f"missing (pip install 'pcdet_ext[{OPTIONAL[name][0]}]')"
            for name, version in optional_packages().items()
        },
    }
    lines = [f"pcdet_ext in {Path(pcdet_ext.__file__).parent}"]
    for title, rows in sections.items():
        lines.append(f"{title}:")
        lines += [f"  {name:<14} {text}" for name, text in rows.items()]
    return "\n".join(lines)
