"""What a training reports while it runs: a progress bar, messages, and numbers for its records."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from pcdet_ext.engine.records import Record


class RunLog:
    """Progress of a training: a bar, and records of its numbers.

    A record that cannot be begun or written (disk full) is reported once and then left; it never ends a training.

    Args:
        folder: where the records are, for messages.
        total_steps: of the whole training.
        step: number of steps so far.
        records: make what takes the numbers; None in processes other than the first, where nothing is shown.
    """

    def __init__(
        self, folder: Path, total_steps: int, step: int, records: Sequence[Callable[[], Record]] | None
    ) -> None:
        self.silent = records is None
        self._folder = folder
        self._records: list[Record] = []
        self._bar = tqdm(
            total=total_steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=self.silent,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )
        for make in records or ():
            try:
                self._records.append(make())
            except OSError as error:
                self._left(error)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._for_each(lambda record: record.close())

    def step(self, label: str) -> None:
        """One more step is done; `label` stands before the bar."""
        self._bar.set_description(label, refresh=False)
        self._bar.update()

    def values(self, kind: str, step: int, values: Mapping[str, float], **more: Any) -> None:
        """Record numbers, and show those of the training in the progress bar.

        Args:
            kind: "train" or "test".
            step: number of steps so far.
            values: numbers by name.
            more: what else is known, as the epoch.
        """
        if kind == "train":
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)
        self._for_each(lambda record: record.add(kind, step, values, more))

    def message(self, text: str) -> None:
        """A line above the bar."""
        if not self.silent:
            self._bar.write(text, file=sys.stderr)

    def _for_each(self, action: Callable[[Record], None]) -> None:
        for record in list(self._records):
            try:
                action(record)
            except OSError as error:
                self._records.remove(record)
                self._left(error)

    def _left(self, error: OSError) -> None:
        self.message(f"{self._folder}: cannot write a log, going on without it: {error}")
