"""Where a training records its numbers: lines of JSON, tables for spreadsheets, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from pcdet_ext.config import ConfigError
from pcdet_ext.files import atomic_write

WANDB_ID = "wandb_id.txt"


class Record(Protocol):
    """A place for numbers. A record that cannot be written raises OSError."""

    def add(self, kind: str, step: int, values: Mapping[str, float], more: Mapping[str, Any]) -> None:
        """Write the numbers of one step.

        Args:
            kind: "train" or "test".
            step: optimiser steps so far.
            values: the numbers by name.
            more: what else is known of them, as the epoch, for records that have a place for it.
        """
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class JsonLines:
    """A file with one JSON object per line, which grows; half a line, which a full disk has left, goes."""

    def __init__(self, path: Path) -> None:
        keep_whole_lines(path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, kind: str, step: int, values: Mapping[str, float], more: Mapping[str, Any]) -> None:
        """One line of JSON. Arguments as in `Record.add`."""
        self._file.write(json.dumps({"kind": kind, "step": step, **more, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """See `Record`."""
        self._file.close()


class CsvTables:
    """A table of comma-separated values for each kind of numbers: `train.csv` and `test.csv`, a line for each step.

    A training that is continued takes steps again that come after its checkpoint: their new lines replace the old ones.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: dict[str, _Table] = {}

    def add(self, kind: str, step: int, values: Mapping[str, float], more: Mapping[str, Any]) -> None:
        """One row of the table of this kind. Arguments as in `Record.add`."""
        if kind not in self._tables:
            self._tables[kind] = _Table(self._folder / f"{kind}.csv")
        self._tables[kind].add({"step": step, **more, **values})

    def close(self) -> None:
        """See `Record`."""


class _Table:
    """A file of comma-separated values whose lines are in the order of their steps."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns, rows = self._read()
        self._last = max((int(row["step"]) for row in rows), default=-1)

    def add(self, row: Mapping[str, Any]) -> None:
        if set(row) <= set(self._columns) and row["step"] > self._last:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(_lines(self._columns, [row]))
        else:
            columns, rows = self._read()
            self._columns = list(dict.fromkeys([*columns, *row]))
            before = [old for old in rows if int(old["step"]) < row["step"]]
            with atomic_write(self._path) as temporary:
                header = _lines(self._columns, [{name: name for name in self._columns}])
                temporary.write_text(header + _lines(self._columns, [*before, row]), encoding="utf-8")
        self._last = row["step"]

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and whole lines of the file; none where there is no file."""
        if not self._path.exists():
            return [], []
        keep_whole_lines(self._path)
        with self._path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if str(row.get("step", "")).isdigit()]
            return list(reader.fieldnames or ()), rows


def _lines(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writerows({name: row.get(name, "") for name in columns} for row in rows)
    return text.getvalue()


def keep_whole_lines(path: Path) -> None:
    """Cut off what follows the last end of a line in a file; a file that is not there stays so."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        length = file.seek(0, os.SEEK_END)
        kept = length
        while kept and _byte(file, kept - 1) != b"\n":
            kept -= 1
        if kept < length:
            file.truncate(kept)


def _byte(file: io.BufferedRandom, position: int) -> bytes:
    file.seek(position)
    return file.read(1)


class TensorBoard:
    """Files for TensorBoard, which hides what was recorded beyond the step that a training is continued at."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step)

    def add(self, kind: str, step: int, values: Mapping[str, float], more: Mapping[str, Any]) -> None:
        """One point of the curve of each number. Arguments as in `Record.add`."""
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """See `Record`."""
        self._writer.close()


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """The setting `train.wandb`, whose values go to `wandb.init` of Weights & Biases.

    Args:
        project: where the run is listed.
        entity: user or team; the account's own when None.
        name: of the run, one that the service makes up when None.
        group: what the run is shown with.
        tags: of the run.
        mode: "offline" keeps all in the folder of the run, for `wandb sync`; "disabled" records nothing.
    """

    project: str
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()
    mode: Literal["online", "offline", "disabled"] = "online"


def require_wandb(settings: WandbConfig | None) -> None:
    """Raises ConfigError where Weights & Biases is asked for and its package is missing."""
    if settings is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError("train.wandb: the package is missing: pip install 'pcdet_ext[wandb]'")


class Wandb:
    """A run of Weights & Biases, continued where the folder has one.

    Args:
        folder: of the training, which keeps the run's id.
        settings: project and names of the run.
        config: the training's configuration, which the run shows.

    Raises:
        ConfigError: the run cannot be begun.
    """

    def __init__(self, folder: Path, settings: WandbConfig, config: Mapping[str, Any]) -> None:
        import wandb

        file = folder / WANDB_ID
        if not file.exists():
            with atomic_write(file) as temporary:
                temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
        try:
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                name=settings.name,
                group=settings.group,
                tags=list(settings.tags),
                mode=settings.mode,
                dir=str(folder),
                config=dict(config),
                id=file.read_text(encoding="utf-8"),
                resume="allow",
            )
        except wandb.Error as error:
            raise ConfigError(f"train.wandb: {error}") from error

    def add(self, kind: str, step: int, values: Mapping[str, float], more: Mapping[str, Any]) -> None:
        """One step of the run. Arguments as in `Record.add`."""
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """See `Record`."""
        self._run.finish()


def all_records(
    folder: Path, step: int, wandb: WandbConfig | None, config: Mapping[str, Any]
) -> list[Callable[[], Record]]:
    """What makes the records of a training; with a warning where the package for TensorBoard is missing.

    Args:
        folder: where the files are.
        step: number of steps so far.
        wandb: settings of Weights & Biases, where it is used.
        config: the whole configuration in plain types, for Weights & Biases.
    """
    makers: list[Callable[[], Record]] = [partial(JsonLines, folder / "log.jsonl"), partial(CsvTables, folder)]
    if importlib.util.find_spec("tensorboard") is None:
        warnings.warn("no TensorBoard log: pip install pcdet_ext[train]", stacklevel=2)
    else:
        makers.append(partial(TensorBoard, folder, step))
    return makers if wandb is None else [*makers, partial(Wandb, folder, wandb, config)]
