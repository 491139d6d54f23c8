"""Processes that work side by side and end quietly, their temporary files removed, when the command is interrupted."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from types import FrameType
from typing import Any, TypeVar

from pcdet_ext.files import DataError

T = TypeVar("T")


def run_in_processes(work: Callable[[Any], T], tasks: Sequence[Any], workers: int, ahead: int) -> Iterator[T]:
    """Results of a function in the order of the tasks, from several processes.

    Args:
        work: the function; it is sent to each process once, with all that it holds.
        tasks: what it is called with.
        workers: processes; never more than there are tasks.
        ahead: tasks per process that may be begun before their results are taken.

    Raises:
        DataError: a process ended by itself, as when memory runs out.
        KeyboardInterrupt: on Ctrl-C; the tasks under way are broken off, and no other one is begun.
    """
    workers = max(1, min(workers, len(tasks)))
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (work,)) as pool:
        try:
            yield from in_order(pool, _do, tasks, ahead * workers)
        except BrokenProcessPool as error:
            raise DataError("a worker process ended by itself; is there enough memory for so many of them?") from error
        finally:  # after an error the tasks not yet begun are not waited for
            pool.shutdown(cancel_futures=True)


def in_order(pool: Executor, work: Callable[[Any], T], tasks: Sequence[Any], ahead: int) -> Iterator[T]:
    """Results of `work` in the order of the tasks, few of which are begun before their results are asked for.

    `Executor.map` begins all of them: results would pile up where they are taken more slowly than they are made.

    Args:
        pool: what runs the tasks.
        work: the function to call with each task.
        tasks: its arguments.
        ahead: how many tasks at most are begun before their results are asked for.
    """
    begun: deque[Future[T]] = deque()
    for task in tasks:
        with _interrupts_held_back():
            begun.append(pool.submit(work, task))
        if len(begun) == ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits. A process that begins meanwhile inherits this, so that it is not interrupted before it is ready.

    Blocking the signal in this thread does not suffice: it may reach another one, for which Python acts in this one.
    """
    held: list[tuple[int, FrameType | None]] = []
    with _handler(lambda *signalled: held.append(signalled)) as before:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if held and callable(before):
        before(*held[0])


@contextmanager
def _handler(handler: Callable[[int, FrameType | None], object]) -> Iterator[Any]:
    """Another handler of Ctrl-C, in the main thread, which alone may have one; gives that of before."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield None
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield before
    finally:
        signal.signal(signal.SIGINT, before)


class _Process:
    """What a worker process was begun with, whether it works on a task, and whether Ctrl-C has reached it."""

    work: Callable[[Any], Any]
    busy = False
    interrupted = False


def _begin(work: Callable[[Any], Any]) -> None:
    _Process.work = staticmethod(work)
    signal.signal(signal.SIGINT, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Break off a task, which removes its temporary files; outside of one the main process ends this process."""
    _Process.interrupted = True
    if _Process.busy:
        raise KeyboardInterrupt


def _do(task: Any) -> Any:
    try:
        _Process.busy = True
        if _Process.interrupted:
            raise KeyboardInterrupt
        return _Process.work(task)
    finally:
        _Process.busy = False
