"""Ctrl-C and SIGTERM (as batch systems send it) as a request to stop at the next step."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch.distributed

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def signal_with_parent(parent: int, number: int) -> None:
    """Let Linux send this process a signal when its parent ends, however that ends; on other systems nothing happens.

    Args:
        parent: process number of the parent, which may have ended already.
        number: the signal.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


class StopRequest:
    """Context in which SIGINT and SIGTERM set `requested` instead of raising; a second SIGINT raises KeyboardInterrupt.

    Outside the main thread signals cannot be caught, and nothing changes.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def end_process(code: int) -> NoReturn:
    """End with an exit code. One of several processes ends at once, its output flushed, without cleaning up.

    The threads of the gloo backend may still run when the interpreter takes its objects apart, which aborts the process
    (and with it the whole group) now and then, after all work is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
