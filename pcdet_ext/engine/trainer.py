"""The training loop, on Lightning Fabric, which can be stopped and continued at every step.

Fabric brings devices, mixed precision and several processes. The loop is ours, so that a checkpoint holds everything
that decides the next step (parameters, optimiser, place in the epoch, random states) and a resumed run repeats the
losses of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError
from pcdet_ext.engine.averaging import WeightAverage
from pcdet_ext.engine.devices import seed_everything
from pcdet_ext.engine.freezing import FrozenParts
from pcdet_ext.engine.interrupts import StopRequest
from pcdet_ext.engine.loader import EpochBatches, Loader, training_loader
from pcdet_ext.engine.loss_step import LossStep, Wrapped
from pcdet_ext.engine.optimizer import build_optimizer, clip_gradients, restore_optimizer, set_schedule
from pcdet_ext.engine.progress import Progress
from pcdet_ext.engine.records import all_records
from pcdet_ext.engine.run_folder import BEST, LAST
from pcdet_ext.engine.runlog import RunLog
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.engine.summary import summary
from pcdet_ext.evaluation.base import Result
from pcdet_ext.models.temporal import VoxelMemory

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Evaluation = Callable[[nn.Module, Callable[[], bool]], Result | None]


class TrainingError(RuntimeError):
    """A training that cannot go on."""


@dataclass(frozen=True)
class TrainingInputs:
    """What a training works on.

    Args:
        detector: a module with `loss(batch) -> {"total": ..., ...}`.
        dataset: dataset(epoch) is the data set of an epoch, of one length in all epochs, with `set_epoch(epoch)` and
            `[index]`; the first one's `epoch_order(rng)`, where it has one, orders the samples of every epoch.
        collate: joins samples into a batch, which has `.to(device)`.
        config: the whole configuration in plain types, kept in checkpoints.
        evaluate: evaluate(model, should_stop) is the detector's evaluation, None when it was stopped; called in every
            process, with gradients off.
        notes: texts to log when the training begins.
        closing: gives texts to log when the training ends or is stopped; called in every process.
    """

    detector: nn.Module
    dataset: Callable[[int], Any]
    collate: Callable[[Sequence[Any]], Any]
    config: Mapping[str, Any]
    evaluate: Evaluation | None = None
    notes: Sequence[str] = ()
    closing: Callable[[], Sequence[str]] = tuple


class Trainer:
    """Trains a detector and keeps checkpoints; `fit` runs to the end or to a stop request.

    Args:
        inputs: the detector and what it is trained with.
        settings: the `train:` section.
        out: folder for checkpoints and logs.
        fabric: devices, precision and processes; see `devices.make_fabric`.
        resume: the content of a checkpoint to continue from. Written by another number of processes, it leaves their
            random states to start anew.

    Raises:
        CheckpointError: `resume` does not fit the model, the optimiser or the length of an epoch.
        ConfigError: `sync_batchnorm` without CUDA.
        TypeError: the detector has no loss.
    """

    def __init__(
        self,
        inputs: TrainingInputs,
        settings: TrainConfig,
        out: Path,
        fabric: Fabric,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        self.inputs, self.settings, self.out, self.fabric = inputs, settings, out, fabric
        self.progress = Progress.of(resume["progress"]) if resume else Progress()
        self.dataset = inputs.dataset(self.progress.epoch)
        self.batches = EpochBatches(
            len(self.dataset),
            settings.batch_size,
            settings.seed,
            fabric.global_rank,
            fabric.world_size,
            _order(self.dataset, settings.batch_size * fabric.world_size),
            settings.accumulate,
        )
        self.total_steps = settings.epochs * self.batches.steps
        if settings.max_steps is not None:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.loader: Loader | None = None
        self.detector = self._synchronised(inputs.detector)
        self.frozen = FrozenParts(self.detector, settings.freeze)
        self.loss_step = LossStep(self.detector)
        self.module = fabric.setup_module(self.loss_step)
        self.optimizer = build_optimizer(self.detector, settings)
        wrapped: Any = fabric.setup_optimizers(self.optimizer)  # one for one, which its annotations do not say
        self._step_optimizer = wrapped.step
        self.scaler = getattr(fabric.strategy.precision, "scaler", None)
        self._window: list[dict[str, Tensor]] = []
        seed_everything(settings.seed + fabric.global_rank)
        if resume:
            self._restore(resume)
        self.average = self._average(resume or {})
        self.progress.steps = self.batches.steps

    def fit(self) -> bool:
        """Train to the end. Returns False when a stop was requested before; `last.ckpt` then continues exactly there.

        Raises TrainingError when a loss or gradient is not finite, CheckpointError when the checkpoint that ends the
        training cannot be written.
        """
        first = self.fabric.global_rank == 0
        records = all_records(self.out, self.progress.step, self.settings.wandb, self.inputs.config) if first else None
        with StopRequest() as self.stop, RunLog(self.out, self.total_steps, self.progress.step, records) as self.log:
            for note in filter(None, (*self.inputs.notes, self.frozen.note)):
                self.log.message(note)
            try:
                while not self.finished:
                    if not (self._train_epoch() and self._end_epoch()):
                        self._flush()
                        self._save(LAST, must=True)
                        self._close()
                        self.log.message(f"stopped at step {self.progress.step}; {self.out / LAST} continues from here")
                        return False
                self._close()
                self.log.message(summary(self.progress, self.out))
            finally:
                if self.loader is not None:
                    self.loader.close()
        return True

    def _close(self) -> None:
        """Log what is to be said at the end."""
        for text in self.inputs.closing():
            self.log.message(text)

    @property
    def finished(self) -> bool:
        """Whether the last epoch, its evaluation included, is over."""
        progress = self.progress
        ended = progress.step >= self.total_steps or self._no_better
        return progress.epoch >= self.settings.epochs or (ended and progress.batch == 0)

    @property
    def _no_better(self) -> bool:
        """Whether the score has not been better for as long as an early stop waits."""
        stop = self.settings.early_stop
        return stop is not None and self.progress.without_better >= stop.patience

    def _train_epoch(self) -> bool:
        """The rest of the current epoch; False when stopped."""
        progress = self.progress
        batches = iter(self._batches())
        for first in batches:
            if progress.step >= self.total_steps:
                break
            if self._should_stop():
                return False
            self._train_step(chain([first], islice(batches, self.settings.accumulate - 1)))
            progress.batch, progress.step = progress.batch + 1, progress.step + 1
            self.log.step(f"epoch {progress.epoch + 1}/{self.settings.epochs}")
            if progress.step % self.settings.log_every == 0:
                self._flush()
        return not self._should_stop(now=True)

    def _end_epoch(self) -> bool:
        """Evaluate, keep checkpoints, go on to the next epoch; False when stopped."""
        settings, progress = self.settings, self.progress
        self._flush()
        done = progress.epoch + 1
        final = done == settings.epochs or progress.step >= self.total_steps
        evaluate = self.inputs.evaluate if settings.evaluate_every > 0 else None
        if evaluate is not None and (final or done % settings.evaluate_every == 0):
            if final or done % settings.checkpoint_every == 0:
                self._save(LAST)  # an evaluation may take long: keep the epoch's work first
            if not self._evaluate(evaluate):
                return False
        if self._no_better and not final:
            final = True
            waited = f"no better score in {progress.without_better} evaluations"
            self.log.message(f"{waited}: the training ends after epoch {done} of {settings.epochs}")
        progress.epoch, progress.batch = done, 0
        if final or done % settings.checkpoint_every == 0:
            self._save(LAST, must=final)
        return True

    def _evaluate(self, evaluate: Evaluation) -> bool:
        """Evaluate and keep the best checkpoint; False when stopped."""
        was_training = self.detector.training
        self.detector.eval()
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        averaged = self.average.applied(self.detector) if self.average else nullcontext()
        with averaged, torch.random.fork_rng(devices), torch.no_grad():
            result = evaluate(self.detector, lambda: self.stop.requested)
        self.detector.train(was_training)
        if not self._agree(result is not None, every=True) or result is None:
            return False
        self.log.values("test", self.progress.step, result.values, epoch=self.progress.epoch)
        self.log.message(result.table())
        before = self.progress.best, self.progress.best_epoch
        early_stop = self.settings.early_stop
        if self.progress.scored(result.score, early_stop.min_delta if early_stop else 0.0) and not self._save(BEST):
            self.progress.best, self.progress.best_epoch = before  # so that the next one as good is kept
        return True

    def _train_step(self, batches: Iterable[Any]) -> None:
        """One step of the optimiser with the mean gradient of `accumulate` batches."""
        learning_rate, momentum = self.settings.at(self.progress.step, self.total_steps)
        set_schedule(self.optimizer, learning_rate, momentum)
        self.optimizer.zero_grad()
        self.module.train()
        self.frozen.keep()
        seen = [self._backward(batch, last=i == self.settings.accumulate) for i, batch in enumerate(batches, 1)]
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.detector.parameters(), self.settings.grad_norm_clip)
        self._step_optimizer()
        if self.average:
            self.average.update(self.detector)
        means = {name: torch.stack([losses[name] for losses in seen]).mean(0) for name in seen[0]}
        self._window.append(means | {"grad_norm": norm})

    def _backward(self, batch: Any, last: bool) -> dict[str, Tensor]:
        """Add a batch's share to the gradients, and give its losses. Processes exchange theirs at the `last` one."""
        with self.fabric.no_backward_sync(self.module, enabled=not last):
            losses = self.module(Wrapped(batch.to(self.fabric.device, non_blocking=True)))
            self.fabric.backward(losses["total"] / self.settings.accumulate)
        return {name: value.detach() for name, value in losses.items()}

    def _flush(self) -> None:
        """Log the means since the last time, and check that they are finite (which waits for the device)."""
        if not self._window:
            return
        names = list(self._window[0])
        means = torch.stack([torch.stack([w[k].float() for w in self._window]).mean() for k in names])
        means = self._reduced(means, "mean") if self.fabric.world_size > 1 else means
        values = dict(zip(names, means.tolist(), strict=True))
        self._window.clear()
        # scaled float16 gradients overflow now and then: the scaler skips such a step, so their norm is no alarm
        wrong = [k for k, v in values.items() if not math.isfinite(v) and not (self.scaler and k == "grad_norm")]
        if wrong:
            raise TrainingError(
                f"{', '.join(wrong)} not finite at or before step {self.progress.step}; the checkpoints in {self.out} "
                "are from before. A lower train.learning_rate, train.grad_norm_clip or train.precision=fp32 may help"
            )
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.log.values("train", self.progress.step, values | {"lr": learning_rate}, epoch=self.progress.epoch)

    def _batches(self) -> Iterable[Any]:
        dataset = self.inputs.dataset(self.progress.epoch)
        if self.loader is None or dataset is not self.dataset:
            self.dataset = dataset
            settings, device = self.settings, self.fabric.device
            self.loader = training_loader(dataset, self.batches, self.inputs.collate, settings.num_workers, device)
        self.batches.seek(self.progress.epoch, self.progress.batch)
        return self.loader

    def _should_stop(self, now: bool = False) -> bool:
        """Whether any process was asked to stop. Several processes agree at the steps where they log, or `now`."""
        if self.fabric.world_size > 1 and not now and self.progress.step % self.settings.log_every:
            return False
        return self._agree(self.stop.requested, every=False)

    def _agree(self, value: bool, every: bool) -> bool:
        """Whether `value` holds in every (or else in any) process."""
        if self.fabric.world_size == 1:
            return value
        count = self._reduced(torch.tensor(float(value), dtype=torch.float32, device=self.fabric.device), "sum")
        return bool(count == self.fabric.world_size) if every else bool(count > 0)

    def _reduced(self, value: Tensor, how: Literal["sum", "mean"]) -> Tensor:
        """The sum or mean of a tensor over all processes."""
        return cast(Tensor, self.fabric.all_reduce(value, reduce_op=how))  # a tensor for a tensor

    def _synchronised(self, detector: nn.Module) -> nn.Module:
        if not self.settings.sync_batchnorm:
            return detector
        if self.fabric.device.type != "cuda":
            raise ConfigError("train.sync_batchnorm: synchronised batch statistics need CUDA devices")
        return nn.SyncBatchNorm.convert_sync_batchnorm(detector)

    def state(self) -> dict[str, Any]:
        """The content of a checkpoint; every process takes part."""
        memory = self.loss_step.memory
        own = checkpoint.random_state(), None if memory is None else memory.plain()
        states: list[Any] = [own]
        if self.fabric.world_size > 1:
            states = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(states, own)
        model = {"model": self.detector.state_dict()}
        if self.average:  # what is evaluated is what a checkpoint is used with, whoever reads it
            ema = {"updates": self.average.updates, "trained": model["model"]}
            model = {"model": self.average.state, "ema": ema}
        return {
            "config": dict(self.inputs.config),
            **model,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "progress": asdict(self.progress),
            "rng": [random for random, _ in states],
            **({"memory": [remembered for _, remembered in states]} if self.loss_step.remembers else {}),
        }

    def _save(self, name: str, must: bool = False) -> bool:
        """Write a checkpoint. When that fails, training goes on and tries again at the next turn, unless it `must`."""
        state, written = self.state(), True
        if self.fabric.global_rank == 0:
            try:
                checkpoint.write(self.out / name, state)
            except CheckpointError as error:
                if must:
                    raise
                self.log.message(f"{error}. Training goes on and tries again after a later epoch")
                written = False
        return self._agree(written, every=True)

    def _restore(self, content: Mapping[str, Any]) -> None:
        if self.progress.batch and self.progress.steps != self.batches.steps:
            raise CheckpointError(
                f"stands inside an epoch of {self.progress.steps} steps, now an epoch "
                f"has {self.batches.steps}: continue with the same data, train.batch_size and number of processes"
            )
        with _restoring("moving average of the weights"):
            trained = content["ema"]["trained"] if "ema" in content else content["model"]
        checkpoint.load_model(self.detector, trained, "the checkpoint to resume from")
        with _restoring("state of the optimiser"):
            restore_optimizer(self.optimizer, content["optimizer"])
        set_schedule(self.optimizer, *self.settings.at(max(0, self.progress.step - 1), self.total_steps))
        if self.scaler is not None and content["scaler"]:
            with _restoring("state of the gradient scaler"):
                self.scaler.load_state_dict(dict(content["scaler"]))
        if len(content["rng"]) == self.fabric.world_size:
            with _restoring("state of the random numbers"):
                checkpoint.restore_random_state(content["rng"][self.fabric.global_rank])
        if self.loss_step.remembers and len(content.get("memory", ())) == self.fabric.world_size:
            with _restoring("memory of earlier frames"):
                remembered = content["memory"][self.fabric.global_rank]
                memory = None if remembered is None else VoxelMemory.of_plain(remembered).to(self.fabric.device)
            self.loss_step.memory = memory

    def _average(self, resumed: Mapping[str, Any]) -> WeightAverage | None:
        """The moving average of the weights, continued where there was one."""
        if self.settings.ema is None:
            return None
        average = WeightAverage(self.detector, self.settings.ema)
        if "ema" in resumed:
            with _restoring("moving average of the weights"):
                average.load(resumed["model"])
                average.updates = int(resumed["ema"]["updates"])
        return average


@contextmanager
def _restoring(what: str) -> Iterator[None]:
    """Whatever goes wrong while a part of a checkpoint is taken means that the part does not fit: a CheckpointError."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"the {what} does not fit ({type(error).__name__}: {error})") from error


def _order(dataset: Any, lanes: int) -> Callable[[np.random.Generator], np.ndarray] | None:
    """What draws the order of an epoch: through sequences side by side where the data set has some."""
    if getattr(dataset, "sequence_parts", None) is not None:
        return partial(dataset.walk_order, lanes=lanes)
    order: Callable[[np.random.Generator], np.ndarray] | None = getattr(dataset, "epoch_order", None)
    return order
