"""Checkpoints: one file of plain types and tensors, written atomically, read without running code.

    {"format": 1, "config": plain dict, "model": state_dict,
     "optimizer": state_dict, "scaler": state_dict, "progress": plain dict, "rng": one entry per process,
     "ema": {"updates": steps averaged, "trained": state_dict}, "memory": one entry per process}

The last two lines are there only to continue a training, "ema" only where the training averages the weights ("model" is
then the average, which is what the checkpoint is used with, "trained" what the optimiser changes), and "memory" only of
a detector over time: what it remembers of the frames before.
"""

from __future__ import annotations

import difflib
import io
import pickle
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pcdet_ext.file_kinds import kind_of
from pcdet_ext.files import DataError, MissingFileError, atomic_write

FORMAT = 1
WEIGHTS = Path(__file__).resolve().parent / "weights"
# What other programs have in their checkpoints, and which they are; the first that is there tells.
ORIGINS = {
    "pytorch-lightning_version": "Lightning",
    "model_state": "OpenPCDet or a code base built on it",
    "state_dict": "mmdetection3d or another code base",
    "model_state_dict": "another code base",
    "model": "another code base",
}
CONVERT = (
    "parameters of a published detector are converted with `pcdet convert FILE CONFIGURATION OUT.ckpt` "
    "(pcdet_ext.interop.checkpoints.convert)"
)
NO_CHECKPOINT = "damaged or no checkpoint: not a file as torch.save writes it"


class CheckpointError(DataError):
    """A checkpoint that cannot be read, written or used; the message names the file."""


class MissingCheckpointError(CheckpointError, MissingFileError):
    """A checkpoint that is not there."""


def write(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; whatever goes wrong, a file that was there stays whole.

    content: what the file holds besides its format number. Raises CheckpointError when the file cannot be written (disk
    full, no permission).
    """
    buffer = io.BytesIO()  # so that a full disk is an OSError of our own write and not torch's, which loses the reason
    torch.save({"format": FORMAT, **content}, buffer)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    except OSError as error:
        kept = "; the one written before is intact" if Path(path).exists() else ""
        raise CheckpointError(f"{path}: cannot write the checkpoint: {error.strerror or error}{kept}") from error


def packaged() -> dict[str, Path]:
    """The checkpoints that come with the library, by name ("kitti/demo_sim"), sorted."""
    return {path.relative_to(WEIGHTS).with_suffix("").as_posix(): path for path in sorted(WEIGHTS.rglob("*.ckpt"))}


def find(path: str | Path) -> Path:
    """The file of a checkpoint: a path, or the name of one that comes with the library, with or without ".ckpt".

    A file that exists wins. Raises MissingCheckpointError, with the nearest name, when there is neither.
    """
    file, known = Path(path), packaged()
    if file.exists():
        return file
    name = file.as_posix().removesuffix(".ckpt")
    if name in known:
        return known[name]
    raise MissingCheckpointError(f"{path}: no such checkpoint{suggestion(path)}")


def suggestion(path: str | Path) -> str:
    """The checkpoint that comes with the library and may be meant by a path where there is none, as a question."""
    name = Path(path).as_posix().removesuffix(".ckpt")
    close = difflib.get_close_matches(name, packaged(), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}, which comes with the library?" if close else ""


def compact(content: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a checkpoint is used with, for passing it on: parameters in half precision, nothing to train on with.

    Args:
        content: a checkpoint, as `read` gives it.
        changes: values of the configuration's section `data` to replace, as the folder that the data lay in.

    Raises:
        ValueError: a parameter is too large for half precision.
    """
    model = {name: value.half() if value.is_floating_point() else value for name, value in content["model"].items()}
    large = [name for name, value in model.items() if not bool(torch.isfinite(value).all())]
    if large:
        raise ValueError(f"too large for half precision: {', '.join(large[:3])}")
    settings = dict(content["config"])
    settings["data"] = {**settings.get("data", {}), **(changes or {})}
    return {"config": settings, "model": model}


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Args:
        path: the file, or the name of a checkpoint that comes with the library (see `find`).

    Raises:
        CheckpointError: it is missing, damaged or of another program.
    """
    path = find(path)
    content = load_safely(path, "not a checkpoint that is safe to load")
    if not isinstance(content, dict) or not {"format", "config", "model"} <= set(content):
        raise CheckpointError(f"{path}: not a checkpoint of this library, but {_origin(content)}; {CONVERT}")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {content['format']!r}; this library reads {FORMAT}")
    _require_types(content, {"config": Mapping, "model": Mapping}, path)
    for name, value in content["model"].items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: damaged: the parameter {name!r} is a {type(value).__name__}, no tensor")
    return content


def require_training(content: Mapping[str, Any], path: str | Path) -> None:
    """Raise CheckpointError where what `read` gave holds no training to continue, or a damaged one."""
    types: dict[str, type] = {"optimizer": Mapping, "scaler": Mapping, "progress": Mapping, "rng": Sequence}
    if missing := [name for name in types if name not in content]:
        raise CheckpointError(
            f"{path}: holds no training to continue (it has no {', '.join(missing)}); a new training starts from its "
            f"parameters with train.init_from={path}"
        )
    _require_types(content, types | ({"ema": Mapping} if "ema" in content else {}), path)


def _require_types(content: Mapping[str, Any], types: Mapping[str, type], path: str | Path) -> None:
    for name, kind in types.items():
        if not isinstance(content[name], kind):
            found = type(content[name]).__name__
            raise CheckpointError(f"{path}: damaged: {name!r} must be a {kind.__name__.lower()}, it is a {found}")


def load_safely(path: str | Path, refusal: str) -> Any:
    """What torch saved in a file, on the CPU, tensors and plain values only: nothing that is read runs code.

    Raises CheckpointError for a file that is missing or damaged, and beginning with `refusal` for one that holds more.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MissingCheckpointError(f"{path}: no such checkpoint") from None
    except IsADirectoryError:
        raise MissingCheckpointError(f"{path}: is a folder, not a checkpoint") from None
    except pickle.UnpicklingError as error:
        found = _what_was_found(error)
        raise CheckpointError(f"{path}: {refusal} ({found})" if found else _unreadable(path)) from error
    except Exception as error:  # bytes that are no checkpoint can raise anything in torch's reader
        reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        raise CheckpointError(f"{_unreadable(path)}{reason}") from error


def _unreadable(path: str | Path) -> str:
    """What a message says of a file that torch cannot read."""
    kind = kind_of(path)
    return f"{path}: {NO_CHECKPOINT}" + (f"; it is {kind}" if kind else "")


def _origin(content: Any) -> str:
    """Whose checkpoint something is that torch has read, in words."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    for key, whose in ORIGINS.items():
        if key in content:
            return f"one of {whose} (it has {key!r})"
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    if content and tensors == len(content):
        return f"{tensors} parameters by name, without the configuration of their model"
    return f"a mapping with {', '.join(map(repr, list(content)[:5])) or 'nothing in it'}"


def _what_was_found(error: pickle.UnpicklingError) -> str:
    """What torch did not load, by name, or nothing where its message names none; without the terminal's codes."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds a {found[1]}"
    return ""


def load_model(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Give a model the parameters and buffers of a checkpoint, all of them.

    Args:
        model: the module, which is changed in place.
        state: tensors by name, as `state_dict()` gives them.
        path: the file they are from, for messages.

    Raises:
        CheckpointError: some are missing, unknown, of another shape, or not finite; the message names the first ones.
    """
    own = model.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    reshaped = [
        f"{k} is {tuple(state[k].shape)}, the model's {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems = [
        f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unknown", unexpected), ("other shapes", reshaped))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path}: the parameters do not fit the model ({'; '.join(problems)})")
    _require_finite(state, path)
    model.load_state_dict(state)


def _require_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise CheckpointError that names the parameters and buffers that hold a NaN or an infinity."""
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise CheckpointError(f"{path}: parameters with NaN or infinite values: {', '.join(broken[:3])}{more}")


@dataclass(frozen=True)
class Transfer:
    """What a model took from the parameters of another one, all by name.

    taken: same name and shape; reshaped: same name, another shape ("head.cls.weight: (3, 64) there, (1, 64) here");
    new: only the model has them, they keep their initial values; unused: only the other one has them.
    """

    taken: tuple[str, ...]
    reshaped: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        rows = {
            "not taken, another shape": self.reshaped,
            "not in the checkpoint, initialised anew": self.new,
            "in the checkpoint, but not in the model": self.unused,
        }
        lines = [f"{len(self.taken)} parameters and buffers taken"]
        return "\n".join([*lines, *(f"  {what}: {', '.join(names)}" for what, names in rows.items() if names)])


def transfer(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> Transfer:
    """Give a model those parameters and buffers of another one that have the same name and shape.

    Args:
        model: the module, which is changed in place.
        state: tensors of the other model by name.
        path: the file they are from, for messages.

    Returns:
        What was taken, and what was not and why.

    Raises:
        CheckpointError: not one parameter of the model fits, or one that fits is not finite.
    """
    own = model.state_dict()
    shared = [name for name in own if name in state]
    taken = tuple(name for name in shared if state[name].shape == own[name].shape)
    if not set(taken) & {name for name, _ in model.named_parameters()}:
        raise CheckpointError(f"{path}: not one of its parameters fits the model")
    chosen = {name: state[name] for name in taken}
    _require_finite(chosen, path)
    model.load_state_dict(chosen, strict=False)
    return Transfer(
        taken=taken,
        reshaped=tuple(
            f"{name}: {tuple(state[name].shape)} there, {tuple(own[name].shape)} here"
            for name in shared
            if name not in taken
        ),
        new=tuple(name for name in own if name not in state),
        unused=tuple(name for name in state if name not in own),
    )


def random_state() -> dict[str, Any]:
    """The state of this process's global generators (Python, NumPy, torch, CUDA), as plain types and tensors."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - the state that foreign code draws from
    keys, position = torch.from_numpy(numpy["state"]["key"].astype(np.int64)), int(numpy["state"]["pos"])
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            keys,
            position,
            int(numpy["has_gauss"]),
            float(numpy["gauss"]),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Continue the generators from `random_state`. CUDA's is left alone where there is none now or was none then."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
