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
    """How long is measured: `warm_up` calls of each contender, then at least `rounds`, and more until `seconds`.

    A contender whose first call takes longer than `slow` seconds is not warmed up, and takes part in one round only.
    """

    warm_up: int = 2
    rounds: int = 7
    max_rounds: int = 100
    seconds: float = 1.0
    slow: float = 2.0


@dataclass(frozen=True)
class Timing:
    """What one contender took: median and fastest round in seconds, and whether its result agreed with ours."""

    median: float
    fastest: float
    rounds: int
    agrees: bool


def measure(contest: Contest, device: torch.device, effort: Effort) -> dict[str, Timing]:
    """Time ours, the reference and the peers of a contest, after comparing their results with ours.

    Args:
        contest: what is measured; it may leave the reference out.
        device: where it computes.
        effort: how often each is measured, and how often before that counts.

    Returns:
        Times by name.
    """
    contenders: dict[str, Callable[[], Any]] = {OURS: contest.ours}
    if contest.reference is not None and not contest.reference_left_out:
        contenders[REFERENCE] = contest.reference
    contenders |= contest.peers
    agrees, slow = {}, set()
    for name, call in contenders.items():
        seconds, result = _timed(call, device)
        agrees[name] = contest.agrees(contest.ours(), result)
        if seconds > effort.slow:
            slow.add(name)
        del result
    for name in contenders.keys() - slow:
        for _ in range(effort.warm_up):
            contenders[name]()
    rounds = _rounds(contenders, slow, device, effort)
    return {name: Timing(median(took), min(took), len(took), agrees[name]) for name, took in rounds.items()}


def _rounds(
    contenders: Mapping[str, Callable[[], Any]], slow: set[str], device: torch.device, effort: Effort
) -> dict[str, list[float]]:
    """Seconds of every round."""
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + effort.seconds
    for done in range(effort.max_rounds):
        if done >= effort.rounds and time.perf_counter() > end:
            break
        for name, call in contenders.items():
            if done and name in slow:
                continue
            seconds, result = _timed(call, device)
            rounds[name].append(seconds)
            del result  # its memory is free for the next contender, outside of the timing
        if slow.issuperset(contenders):
            break
    return rounds


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - start, result


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: str) -> float:
    """Seconds on a clock, when the device has done what it was given."""
    synchronize(torch.device(device))
    return time.perf_counter()
