"""Running benchmarks, printing what they gave, and writing it down."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pcdet_ext.benchmark.frames import SIZES, load_frames
from pcdet_ext.benchmark.registry import Benchmark, Contest, Workload, benchmarks
from pcdet_ext.benchmark.timing import OURS, Effort, Timing, measure
from pcdet_ext.data.files import atomic_write
from pcdet_ext.info import hardware, native_status, optional_packages, versions

FORMAT = 1


@dataclass(frozen=True)
class Result:
    """One contest as it went on one frame."""

    name: str
    frame: str
    contest: Contest
    timings: dict[str, Timing]

    @property
    def bandwidth(self) -> float | None:
        """Achieved GB/s of ours, where the contest states its bytes."""
        return None if self.contest.bytes is None else self.contest.bytes / self.timings[OURS].median / 1e9

    def ratios(self) -> dict[str, float]:
        """How many times longer each other contender took, of medians."""
        return {n: t.median / self.timings[OURS].median for n, t in self.timings.items() if n != OURS}

    def line(self) -> str:
        """One line for the terminal."""
        parts = [f"{self.name} {self.contest.setting} · {self.frame}: {self.timings[OURS].median * 1e3:.3f} ms"]
        if self.bandwidth is not None:
            parts.append(f"{self.bandwidth:.2f} GB/s")
        for name, ratio in self.ratios().items():
            doubt = "" if self.timings[name].agrees else " RESULT DIFFERS"
            parts.append(f"{ratio:.2f}x {name} ({self.timings[name].median * 1e3:.3f} ms){doubt}")
        return ", ".join(parts)

    def record(self) -> dict[str, Any]:
        """The same as built-in types, times in milliseconds."""
        return {
            "name": self.name,
            "setting": self.contest.setting,
            "frame": self.frame,
            "work": dict(self.contest.work),
            "bytes": self.contest.bytes,
            "gb_per_s": self.bandwidth,
            "timings": {
                name: {
                    "median_ms": t.median * 1e3,
                    "fastest_ms": t.fastest * 1e3,
                    "rounds": t.rounds,
                    "agrees": t.agrees,
                }
                for name, t in self.timings.items()
            },
            "ratios": self.ratios(),
        }


def run_ops(
    device: str = "cpu",
    paths: Sequence[Path] = (),
    only: Sequence[str] = (),
    json_path: Path | None = None,
    threads: int | None = None,
    sizes: Sequence[int] = SIZES,
    effort: Effort | None = None,
) -> bool:
    """Measure the operations, printing a line each; True when every result agreed with that of its peers.

    paths: point files or folders, instead of synthetic scans of `sizes` points; only: names of benchmarks; json_path:
    where everything is written, once, at the end; threads: of torch and the native kernels.
    Raises ValueError for an unknown benchmark or folder without frames, DataError for a damaged frame.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch sees no CUDA device")
    if threads is not None:
        torch.set_num_threads(threads)
    effort, wanted, results = effort or Effort(), benchmarks(only), []
    for result in _measure_all(wanted, device, paths, sizes, effort):
        print(result.line(), flush=True)
        results.append(result)
    if json_path is not None:
        _write(json_path, device, effort, results)
    return all(t.agrees for result in results for t in result.timings.values())


def _measure_all(
    wanted: list[Benchmark], device: str, paths: Sequence[Path], sizes: Sequence[int], effort: Effort
) -> Iterator[Result]:
    for number, (frame, points) in enumerate(load_frames(paths, sizes)):
        workload = Workload(frame, torch.from_numpy(points).to(device))
        for entry in wanted:
            if number and not entry.per_frame:
                continue
            for contest in entry.prepare(workload):
                name = frame if entry.per_frame else "own input"
                yield Result(entry.name, name, contest, measure(contest, workload.device, effort))


def _write(path: Path, device: str, effort: Effort, results: list[Result]) -> None:
    content = {
        "format": FORMAT,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": device,
        "hardware": hardware(),
        "versions": versions() | {name: v for name, v in optional_packages().items() if v},
        "native": native_status(device),
        "effort": asdict(effort),
        "results": [result.record() for result in results],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
