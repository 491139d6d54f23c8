"""The `train:` section of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pcdet_ext.engine.averaging import EMAConfig
from pcdet_ext.engine.optimizer import OneCycle
from pcdet_ext.engine.records import WandbConfig
from pcdet_ext.engine.stopping import EarlyStopConfig

MAX_SEED = 2**63 - 1  # torch's generators take no more than 64 bits


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OneCycle):
    """The `train:` section of a configuration, which has the settings of `OneCycle` too.

    Args:
        epochs: passes over the training frames.
        batch_size: frames per batch in each process.
        accumulate: batches per step in each process, whose gradients are averaged. With losses that are means over
            frames and without batch norm, a step is that of one batch of `accumulate * batch_size` frames.
        max_steps: end after this many steps, whatever `epochs` says; the cycle of the learning rate is as long.
        precision: "bf16" and "fp16" are mixed precision; fp16 needs CUDA.
        num_workers: loader processes.
        seed: of parameters, the order of the frames and the augmentations.
        evaluate_every: epochs between evaluations; 0 never evaluates, and so keeps no best checkpoint.
        checkpoint_every: epochs between checkpoints.
        log_every: steps between log lines.
        fade_epochs: how many of the last epochs leave out the augmentations that `fade_augmentations` names.
        fade_augmentations: names of augmentations in the data section.
        fade_restores: whether augmentations that `data.disable_augmentations` leaves out are back in the fading epochs,
            as in OpenPCDet, whose hook puts one list in the place of the other.
        ema: keep a moving average of the weights, which is then what is evaluated and what checkpoints are used with.
        freeze: patterns of the names of parameters or modules that are left as they are; see `FrozenParts`.
        early_stop: end when the score gets no better.
        wandb: record with Weights & Biases too.
        sync_batchnorm: take batch statistics over all processes; needs CUDA.
        init_from: a checkpoint whose parameters a new training starts with, as far as they fit.

    Raises:
        ValueError: a value is outside its range.
    """

    epochs: int
    batch_size: int = 4
    accumulate: int = 1
    max_steps: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    num_workers: int = 2
    seed: int = 0
    evaluate_every: int = 1
    checkpoint_every: int = 1
    log_every: int = 10
    fade_epochs: int = 0
    fade_augmentations: Sequence[str] = ()
    fade_restores: bool = False
    ema: EMAConfig | None = None
    freeze: Sequence[str] = ()
    early_stop: EarlyStopConfig | None = None
    wandb: WandbConfig | None = None
    sync_batchnorm: bool = False
    init_from: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {
            "epochs": 1,
            "batch_size": 1,
            "accumulate": 1,
            "num_workers": 0,
            "seed": 0,
            "evaluate_every": 0,
            "checkpoint_every": 1,
            "log_every": 1,
            "fade_epochs": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.seed > MAX_SEED:
            raise ValueError(f"seed must be at most {MAX_SEED}, got {self.seed}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if self.early_stop and not self.evaluate_every:
            raise ValueError("early_stop needs scores, and evaluate_every=0 never evaluates")
