"""What a training reports while it runs: a progress bar, TensorBoard, and `log.jsonl` with one JSON object per line."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm


class RunLog:
    """Progress of a training: a bar, log.jsonl, and files of TensorBoard.

    A log that cannot be written (disk full) is reported once and then left; it never ends a training.

    Args:
        folder: where the files are.
        total_steps: of the whole training.
        step: number of steps so far.
        silent: whether it does nothing, as in processes other than the first.
    """

    def __init__(self, folder: Path, total_steps: int, step: int, silent: bool = False) -> None:
        self.silent = silent
        self._folder = folder
        self._file = None if silent else (folder / "log.jsonl").open("a", encoding="utf-8")
        self._board = None if silent else _tensorboard(folder, step)
        self._bar = tqdm(
            total=total_steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=silent,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._attempt(self._close)

    def step(self, label: str) -> None:
        """One more step is done; `label` stands before the bar."""
        self._bar.set_description(label, refresh=False)
        self._bar.update()

    def values(self, kind: str, step: int, values: Mapping[str, float], **more: Any) -> None:
        """Record numbers, and show those of the training in the progress bar.

        Args:
            kind: "train" or "test"; the numbers are recorded as `kind/name`.
            step: number of steps so far.
            values: numbers by name.
            more: what else the line in log.jsonl holds.
        """
        if kind == "train":
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)
        self._attempt(lambda: self._record(kind, step, values, more))

    def message(self, text: str) -> None:
        """A line above the bar."""
        if not self.silent:
            self._bar.write(text, file=sys.stderr)

    def _record(self, kind: str, step: int, values: Mapping[str, float], more: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, "step": step, **more, **values}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def _close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            self._file.close()

    def _attempt(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            self._file = self._board = None
            self.message(f"{self._folder}: cannot write the log, going on without it: {error}")


def _tensorboard(folder: Path, step: int) -> Any:
    """A TensorBoard writer, or None with a warning where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warnings.warn("no TensorBoard log: pip install pcdet_ext[train]", stacklevel=2)
        return None
    return SummaryWriter(str(folder), purge_step=step)  # hides what a run recorded beyond the step it resumes at
