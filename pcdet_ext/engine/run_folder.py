"""The folder of a training: what may be written into it, and by whom."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from pcdet_ext.engine.records import WANDB_ID
from pcdet_ext.files import check_output_folder, remove_temporaries

LAST, BEST = "last.ckpt", "best.ckpt"
OWN_FILES = ("config.yaml", "log.jsonl", "train.csv", "test.csv", WANDB_ID, "events.out.tfevents.*")


class RunFolder:
    """A folder that one training at a time writes into; a context, at whose end the next one may.

    The lock is one of the operating system on the file `.lock`, which goes with the process, however that ends. The
    file stays. Processes that read the data do not inherit the lock.

    Args:
        path: the folder, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def require_new(self, overwrite: bool) -> None:
        """Never write over the checkpoints of another run, nor beside them, unless told so. Raises FileExistsError."""
        if not overwrite and any((self.path / name).exists() for name in (LAST, BEST)):
            raise FileExistsError(
                f"{self.path}: holds a run already; pass --resume to continue it, --overwrite, or another --out"
            )

    def claim(self) -> None:
        """Take the folder, where it is there, for this process.

        Raises:
            FileExistsError: another training is at work in it.
            OSError: it cannot be written to, or its file system has no locks.
        """
        check_output_folder(self.path)
        if self._lock is not None or not self.path.is_dir():
            return
        lock = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._holder(lock)
            lock.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise FileExistsError(
                f"{self.path}: another training writes here ({holder}); wait for its end, or name another --out"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        self._lock = lock
        for name in (LAST, BEST, "config.yaml", "train.csv", "test.csv"):
            remove_temporaries(self.path / name)

    @staticmethod
    def _holder(lock: IO[str]) -> str:
        lock.seek(0)
        return lock.read(200) or "which has just begun"

    def begin(self, new: bool) -> None:
        """Make and claim the folder; for a `new` run, what an earlier one left there goes.

        Raises as `claim`. The last checkpoint goes last: an earlier run whose removal is broken off can be continued.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.claim()
        for pattern in (*OWN_FILES, BEST, LAST) if new else ():
            for path in self.path.glob(pattern):
                path.unlink()

    def newest(self) -> Path | None:
        """The checkpoint to continue from: the last one, or else the best one, where a run was broken off before."""
        return next((self.path / name for name in (LAST, BEST) if (self.path / name).exists()), None)
