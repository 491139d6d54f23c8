"""Timing of a contest: warm-up, then rounds in which every contender runs once, so that all see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from pcdet_ext.benchmark.registry import Contest

OURS, REFERENCE = "ours", "reference"


@dataclass(frozen=True)
class Effort:
    """How long is measured: `warm_up` calls of each contender, then at least `rounds`, and more until `seconds`."""

    warm_up: int = 2
    rounds: int = 7
    max_rounds: int = 100
    seconds: float = 1.0


@dataclass(frozen=True)
class Timing:
    """What one contender took: median and fastest round in seconds, and whether its result agreed with ours."""

    median: float
    fastest: float
    rounds: int
    agrees: bool


def measure(contest: Contest, device: torch.device, effort: Effort) -> dict[str, Timing]:
    """Time ours, the reference and the peers of a contest, after comparing their results with ours."""
    contenders: dict[str, Callable[[], Any]] = {OURS: contest.ours}
    if contest.reference is not None:
        contenders[REFERENCE] = contest.reference
    contenders |= contest.peers
    agrees = {name: contest.agrees(contest.ours(), call()) for name, call in contenders.items()}
    for call in contenders.values():
        for _ in range(effort.warm_up):
            call()
    seconds = _rounds(contenders, device, effort)
    return {name: Timing(median(s), min(s), len(s), agrees[name]) for name, s in seconds.items()}


def _rounds(
    contenders: Mapping[str, Callable[[], Any]], device: torch.device, effort: Effort
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + effort.seconds
    for done in range(effort.max_rounds):
        if done >= effort.rounds and time.perf_counter() > end:
            break
        for name, call in contenders.items():
            _synchronize(device)
            start = time.perf_counter()
            result = call()
            _synchronize(device)
            seconds[name].append(time.perf_counter() - start)
            del result  # its memory is free for the next contender, outside of the timing
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
