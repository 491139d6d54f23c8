"""python -m pointpillars_peers.worker PEER FOLDER THREADS: a library in a process of its own that waits for requests.

PEER is a module beside this one with a class `Peer`, with an option behind a colon where it has one. Requests and
answers are lines of JSON on standard input and output; what libraries print goes to standard error. While a process
waits it takes no time from the others.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn


class Boxes(NamedTuple):
    """Found boxes float32 [M, 7] (x, y, z of the bottom, dx, dy, dz, heading), their scores [M] and labels [M]."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Maps(NamedTuple):
    """What the head gives for a frame: logits [Y, X, anchors * classes], and the number of channels of each map."""

    logits: np.ndarray
    channels: list[int]


class Library(Protocol):
    """A library with the network and the parameters of a folder."""

    stages: Mapping[str, nn.Module]  # timed one by one; what is in none of them is "rest"
    versions: Mapping[str, str]

    def detect(self, points: np.ndarray) -> Boxes:
        """Find boxes in points float32 [N, 4]; this is what is timed."""

    def maps(self, points: np.ndarray) -> Maps:
        """What the head gives."""


def answer(library: Library, folder: Path, request: Mapping[str, str]) -> dict[str, Any]:
    """Do what is asked for with a frame of the folder: "time", "parts" or "results"."""
    points = np.load(folder / f"{request['frame']}.npy")
    if request["do"] == "time":
        start, busy = time.perf_counter(), time.process_time()
        library.detect(points)
        return {"seconds": time.perf_counter() - start, "busy": time.process_time() - busy}
    if request["do"] == "parts":
        return {"parts": parts(library, points)}
    if request["do"] == "results":
        found, maps = library.detect(points), library.maps(points)
        np.savez(request["out"], **found._asdict(), logits=maps.logits)
        return {"boxes": len(found.boxes), "map": [*maps.logits.shape[:2]], "channels": maps.channels}
    raise ValueError(f"do must be time, parts or results, got {request['do']!r}")


def parts(library: Library, points: np.ndarray) -> dict[str, float]:
    """Seconds of each stage in one more pass, and of the rest."""
    seconds = dict.fromkeys(library.stages, 0.0)
    start = time.perf_counter()
    with _timed(library.stages, seconds):
        library.detect(points)
    return seconds | {"rest": time.perf_counter() - start - sum(seconds.values())}


@contextmanager
def _timed(stages: Mapping[str, nn.Module], seconds: dict[str, float]) -> Iterator[None]:
    begun: dict[str, float] = {}

    def before(name: str) -> Callable[..., None]:
        return lambda *_: begun.update({name: time.perf_counter()})

    def behind(name: str) -> Callable[..., None]:
        return lambda *_: seconds.update({name: seconds[name] + time.perf_counter() - begun[name]})

    handles = [module.register_forward_pre_hook(before(name)) for name, module in stages.items()]
    handles += [module.register_forward_hook(behind(name)) for name, module in stages.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def main(name: str, folder: Path, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):  # for libraries with threads of their own, beside torch's
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    module, _, option = name.partition(":")
    library: Library = importlib.import_module(f"pointpillars_peers.{module}").Peer(folder, option)
    print(json.dumps({"versions": {"torch": torch.__version__, **library.versions}}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(library, folder, json.loads(line))), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
