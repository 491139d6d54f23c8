"""Batches for training: every epoch's order and randomness follow from (seed, epoch), wherever one starts to read."""

from __future__ import annotations

import atexit
import os
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pcdet_ext.config import ConfigError
from pcdet_ext.engine.interrupts import signal_with_parent
from pcdet_ext.files import DataError

EXPECTED = (DataError, ConfigError, OSError)  # errors whose message is all that there is to know


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one of several processes.

    An epoch is an order of the samples, drawn from (seed, epoch), and repeated from its start, or cut, until it fills
    whole steps of every process: all batches have one size, and step t of all processes together reads the same
    samples as one process with a batch `processes * accumulate` times as large. `seek` says where the next pass begins.

    Args:
        size: samples in an epoch.
        batch_size: samples of a batch of one process.
        seed: of the order.
        rank: number of this process.
        processes: how many there are.
        order: draws the order of an epoch, int64 [K], from a random generator; a permutation when None.
        accumulate: batches per step of one process, which come one after the other.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        order: Callable[[np.random.Generator], np.ndarray] | None = None,
        accumulate: int = 1,
    ) -> None:
        if size < 1:
            raise ValueError("the data set holds no frame to train on")
        if accumulate > 1 and accumulate * batch_size * processes > size:
            raise ValueError(
                f"train.accumulate {accumulate}: a step would take {accumulate * batch_size * processes} frames, "
                f"the data set has {size}"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.processes, self.order = rank, processes, order
        self.accumulate = accumulate
        self.steps = -(-size // (batch_size * processes * accumulate))
        self.epoch, self.start = 0, 0

    def seek(self, epoch: int, start: int = 0) -> None:
        """Begin the next pass at step `start` of an epoch."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.size) if self.order is None else self.order(rng)
        steps = np.resize(order, (self.steps, self.accumulate, self.processes, self.batch_size))
        for batch in steps[self.start :, :, self.rank].reshape(-1, self.batch_size):
            yield [(self.epoch, int(index)) for index in batch]


class Loader:
    """The batches of a torch loader. An expected error in one of its processes is raised here as it was there.

    torch itself raises one whose message is the traceback of the process.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._batches: Any = None
        _OPEN.add(self)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        self._batches = iter(self._loader)
        for batch in self._batches:
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch

    def close(self) -> None:
        """End the loader processes now; the loader cannot be read any more.

        torch ends them when the last reference to its iterator goes, but the traceback of an error keeps it.
        """
        if hasattr(self._batches, "_shutdown_workers"):  # torch has no public way
            self._batches._shutdown_workers()


_OPEN: weakref.WeakSet[Loader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before multiprocessing, which was imported earlier, waits for processes that live through its SIGTERM."""
    for loader in list(_OPEN):
        loader.close()


class _Failure:
    """Stands for a sample, or for the batch that it would be in, where a sample could not be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Samples(Dataset[Any]):
    """Samples by what `read` takes, with a failure in the place of one that cannot be read."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._read(key)
        except EXPECTED as error:
            return _Failure(error)


def _joined(collate: Callable[[Sequence[Any]], Any], samples: Sequence[Any]) -> Any:
    """The batch of some samples, or the first failure among them."""
    return next((sample for sample in samples if isinstance(sample, _Failure)), None) or collate(samples)


def _read_in_epoch(dataset: Any, key: tuple[int, int]) -> Any:
    """A sample by (epoch, index), so that workers that outlive an epoch know which one they are in."""
    epoch, index = key
    dataset.set_epoch(epoch)
    return dataset[index]


def training_loader(
    dataset: Any, batches: EpochBatches, collate: Callable[[Sequence[Any]], Any], workers: int, device: torch.device
) -> Loader:
    """A loader of the batches for training.

    Args:
        dataset: has `set_epoch(epoch)` and `[index]`.
        batches: which (epoch, index) make each batch.
        collate: joins the samples of a batch.
        workers: loader processes; 0 reads in this process.
        device: where the batches are used; for CUDA they are read into pinned memory.
    """
    loader = DataLoader(
        _Samples(partial(_read_in_epoch, dataset)),
        batch_sampler=batches,
        collate_fn=partial(_joined, collate),
        persistent_workers=workers > 0,
        **_common(workers, device),
    )
    return Loader(loader)


def frame_loader(
    dataset: Any,
    indices: Sequence[int],
    batch_size: int,
    collate: Callable[[Sequence[Any]], Any],
    workers: int,
    device: torch.device,
) -> Loader:
    """A loader of some samples of a data set in their order; each item is (samples, batch).

    Args:
        dataset: has `[index]`.
        indices: the samples to read.
        batch_size: samples per batch; the last batch may be smaller.
        collate: joins the samples of a batch.
        workers: loader processes; 0 reads in this process.
        device: where the batches are used; for CUDA they are read into pinned memory.
    """
    loader = DataLoader(
        _Samples(dataset.__getitem__),
        batch_size=batch_size,
        sampler=indices,
        collate_fn=partial(_joined, partial(_keep_samples, collate)),
        **_common(workers, device),
    )
    return Loader(loader)


def _common(workers: int, device: torch.device) -> dict[str, Any]:
    """Arguments of every loader.

    Its own generator keeps the loader from drawing from the global one, which would make a resumed training differ.
    """
    return {
        "num_workers": workers,
        "generator": torch.Generator(),
        "pin_memory": device.type == "cuda",
        "worker_init_fn": partial(_begin_worker, os.getpid()),
    }


def _keep_samples(collate: Callable[[Sequence[Any]], Any], samples: Sequence[Any]) -> tuple[list[Any], Any]:
    return list(samples), collate(samples)


def _begin_worker(parent: int, _: int) -> None:
    signal_with_parent(parent, signal.SIGKILL)  # instead of when the worker next asks for work
    _outlive_signals()


def _outlive_signals() -> None:
    """Ctrl-C and torchrun's SIGTERM reach the whole process group, but the main process decides what happens then: the
    workers live through Ctrl-C and one SIGTERM. A second one, as comes when the main process clears up, ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
