"""Batches for training: every epoch's order and randomness follow from (seed, epoch), wherever one starts to read."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one of several processes.

    An epoch is a permutation of all samples, drawn from (seed, epoch), and repeated from its start until it fills whole
    batches of every process: all batches have one size, and step t of all processes together reads the same samples
    as one process with a batch `processes` times as large. `seek` says where the next pass begins.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        if size < 1:
            raise ValueError("the data set holds no frame to train on")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.processes = rank, processes
        self.steps = -(-size // (batch_size * processes))
        self.epoch, self.start = 0, 0

    def seek(self, epoch: int, start: int = 0) -> None:
        """Begin the next pass at batch `start` of an epoch."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        batches = np.resize(order, (self.steps, self.processes, self.batch_size))[self.start :, self.rank]
        for batch in batches:
            yield [(self.epoch, int(index)) for index in batch]


class EpochView(Dataset[Any]):
    """A data set read by (epoch, index), so that workers that outlive an epoch know which one they are in."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        self.dataset.set_epoch(epoch)
        return self.dataset[index]


def training_loader(
    dataset: Any, batches: EpochBatches, collate: Callable[[Sequence[Any]], Any], workers: int, device: torch.device
) -> DataLoader[Any]:
    """A loader of the batches for training.

    Args:
        dataset: has `set_epoch(epoch)` and `[index]`.
        batches: which (epoch, index) make each batch.
        collate: joins the samples of a batch.
        workers: loader processes; 0 reads in this process.
        device: where the batches are used; for CUDA they are read into pinned memory.
    """
    return DataLoader(
        EpochView(dataset),
        batch_sampler=batches,
        collate_fn=collate,
        persistent_workers=workers > 0,
        **_common(workers, device),
    )


def frame_loader(
    dataset: Any,
    indices: Sequence[int],
    batch_size: int,
    collate: Callable[[Sequence[Any]], Any],
    workers: int,
    device: torch.device,
) -> DataLoader[Any]:
    """A loader of some samples of a data set in their order; each item is (samples, batch).

    Args:
        dataset: has `[index]`.
        indices: the samples to read.
        batch_size: samples per batch; the last batch may be smaller.
        collate: joins the samples of a batch.
        workers: loader processes; 0 reads in this process.
        device: where the batches are used; for CUDA they are read into pinned memory.
    """
    subset = torch.utils.data.Subset(dataset, indices)
    return DataLoader(
        subset, batch_size=batch_size, collate_fn=partial(_keep_samples, collate), **_common(workers, device)
    )


def _common(workers: int, device: torch.device) -> dict[str, Any]:
    """Arguments of every loader.

    Its own generator keeps the loader from drawing from the global one, which would make a resumed training differ.
    """
    return {
        "num_workers": workers,
        "generator": torch.Generator(),
        "pin_memory": device.type == "cuda",
        "worker_init_fn": _outlive_signals,
    }


def _keep_samples(collate: Callable[[Sequence[Any]], Any], samples: Sequence[Any]) -> tuple[list[Any], Any]:
    return list(samples), collate(samples)


def _outlive_signals(_: int) -> None:
    """Ctrl-C and torchrun's SIGTERM reach the whole process group, but the main process decides what happens then: the
    workers live through Ctrl-C and one SIGTERM. A second one, as comes when the main process clears up, ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
