"""How long detectors take for a frame in two versions of this library, in one run, and whether they find the same.

python benchmarks/before_after.py BEFORE AFTER [CONFIG …] [--threads 2 --rounds 3 --json FILE]

BEFORE and AFTER are working trees of two versions with their native libraries built, e.g. by `git worktree add`. Both
get the same frame, the usual one of each configuration's data set, and the same parameters, made by AFTER. Each pass
is that of `VoxelDetector.predict`, by what `Detector.optimize` makes of the detector where a version has that, in a
process that keeps freed memory, as `tools/test.py` does. The versions take turns, each in a process of its own that is
started anew for every turn. Processor time, of all threads together, depends less than time on what else the machine
does. What is compared are the boxes and, in every fifth row and column, the logits of the heatmaps, since untrained
heads may find no box.

The values of untrained heads are of any size, and so is their rounding. What it may be is told by a third pass: that of
AFTER's plain detector in float64. How far each version is from it stands beside how far they are from each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CONFIGS = ("waymo/flatformer", "waymo/dsvt_pillar", "waymo/scatterformer", "lion/waymo_mamba")
COLUMNS = ("x", "y", "z", "length", "width", "height", "heading", "velocity_x", "velocity_y")


def prepare(name: str, folder: Path) -> None:
    """Write the frame and the parameters, with as many candidates as a trained head has (in a process of AFTER)."""
    import torch

    from pcdet_ext import config
    from pcdet_ext.benchmark.models import set_peaks
    from pcdet_ext.benchmark.simulated import usual_frame
    from pcdet_ext.models.detector import build_detector

    torch.manual_seed(0)
    settings = config.load(config.find(name))
    detector = build_detector(settings).eval()
    batch, _ = usual_frame(settings)
    set_peaks(detector, batch)
    np.save(folder / "points.npy", batch.points.numpy())
    torch.save(detector.state_dict(), folder / "parameters.pt")


def run(name: str, folder: Path, threads: int, rounds: int, side: str) -> None:
    """Time passes and write them, with what is found, to `<side>.npz` (in a process of either version)."""
    from pcdet_ext.engine.allocation import keep_freed_memory

    keep_freed_memory()
    import torch

    torch.set_num_threads(threads)
    detector, batch = load(name, folder)
    try:
        from pcdet_ext.models.layers.folding import folded
    except ImportError:  # a version without
        pass
    else:
        detector = folded(detector)
    seconds, busy = [], []
    with torch.inference_mode():
        for _ in range(rounds + 1):  # the first warms up
            start, cpu = time.perf_counter(), time.process_time()
            detector.predict(batch)
            seconds.append(time.perf_counter() - start)
            busy.append(time.process_time() - cpu)
    np.savez(folder / f"{side}.npz", seconds=seconds[1:], busy=busy[1:], **found_by(detector, batch))


def referee(name: str, folder: Path, threads: int) -> None:
    """Write what the plain detector finds in float64 to `float64.npz` (in a process of AFTER)."""
    import torch

    torch.set_num_threads(threads)
    detector, batch = load(name, folder)
    np.savez(folder / "float64.npz", **found_by(detector.double(), batch))


def load(name: str, folder: Path) -> tuple[Any, Any]:
    """The plain detector with the prepared parameters, and the frame."""
    import torch

    from pcdet_ext import config
    from pcdet_ext.models.detector import build_detector
    from pcdet_ext.structures import PointBatch

    detector = build_detector(config.load(config.find(name))).eval()
    detector.load_state_dict(torch.load(folder / "parameters.pt", weights_only=True))
    return detector, PointBatch.from_points([torch.from_numpy(np.load(folder / "points.npy"))])


def found_by(detector: Any, batch: Any) -> dict[str, np.ndarray]:
    """The boxes, "rows" [M, columns of a box, then score and label], and some "logits" of the heatmaps, flat."""
    import torch

    with torch.inference_mode():
        (found,) = detector.predict(batch)
        maps = [task.heatmap[..., ::5, ::5].flatten() for task in detector(batch).tasks]
    rows = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None]], 1)
    return {"rows": rows, "logits": torch.cat(maps).numpy()}


def difference(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """How far detections [box..., score, label] are from the nearest of the other version, and in which column.

    Nearest and worst are by differences relative to values above 1: sizes are exponentials, and those of an untrained
    head may be huge. Beside the worst stand its value and how far it is off in the column's own unit (metres, radians
    for headings, scores without one), and the largest such difference of every column. Headings are compared as they
    are; equal scores may come in any order. Infinite where a version lacks a detection.
    """
    if len(before) != len(after):
        return {"largest_difference": float("inf")}
    columns = [*COLUMNS[: before.shape[1] - 2], "score", "label"]
    worst: dict[str, Any] = {"largest_difference": 0.0}
    largest = np.zeros(before.shape[1])
    for these, others in ((before, after), (after, before)):
        for row in these:
            relative = np.abs(others - row) / np.maximum(1, np.abs(row))
            nearest = int(relative.max(1).argmin())
            off, column = np.abs(others[nearest] - row), int(relative[nearest].argmax())
            largest = np.maximum(largest, off)
            if relative[nearest, column] > worst["largest_difference"]:
                place = {"column": columns[column], "value": float(row[column]), "absolute": float(off[column])}
                worst = {"largest_difference": float(relative[nearest, column]), "where_largest": place}
    return worst | {"largest_by_column": dict(zip(columns, largest.tolist(), strict=True))}


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far what `found_by` gives is from another one."""
    logits = float(np.abs(one["logits"] - other["logits"]).max())
    return {**difference(one["rows"], other["rows"]), "largest_logit_difference": logits}


def compare(name: str, trees: dict[str, Path], threads: int, rounds: int, turns: int) -> dict[str, Any]:
    """Seconds of both versions for one configuration, and how far apart what they find is."""
    seconds: dict[str, list[float]] = {side: [] for side in trees}
    busy: dict[str, list[float]] = {side: [] for side in trees}
    found: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as place:
        start(trees["after"], "prepare", name, place)
        for _ in range(turns):
            for side, tree in trees.items():
                start(tree, "run", name, place, str(threads), str(rounds), side)
                found[side] = written(place, side)
                seconds[side] += found[side].pop("seconds").tolist()
                busy[side] += found[side].pop("busy").tolist()
        start(trees["after"], "referee", name, place, str(threads))
        exact = written(place, "float64")
        points = len(np.load(Path(place) / "points.npy"))
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    work = {side: statistics.median(values) for side, values in busy.items()}
    result = {
        "config": name,
        "points": points,
        "seconds": seconds,
        "processor_seconds": busy,
        "median": medians,
        "processor_median": work,
        "ratio": medians["before"] / medians["after"],
        "boxes": len(found["after"]["rows"]),
        **apart(found["before"], found["after"]),
        "from_float64": {side: apart(exact, found[side]) for side in trees},
    }
    print("\n".join(lines(result)), flush=True)
    return result


def written(place: str, name: str) -> dict[str, np.ndarray]:
    """The arrays of a file that a step wrote."""
    with np.load(Path(place) / f"{name}.npz") as content:
        return dict(content)


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What to print of one configuration."""
    (before, after), (busy, less) = (result[key].values() for key in ("median", "processor_median"))
    yield (
        f"{result['config']}: {before:.3f} s before, {after:.3f} s after, {result['ratio']:.2f}x "
        f"(processor time {busy:.2f} s, {less:.2f} s, {busy / less:.2f}x); {result['boxes']} boxes"
    )
    distances = {"between the versions": result}
    distances |= {f"from float64 to {side}": found for side, found in result["from_float64"].items()}
    for what, found in distances.items():
        yield (
            f"    largest difference {what}: {found['largest_difference']:.1e} {found.get('where_largest', '')}, "
            f"of logits {found['largest_logit_difference']:.1e}"
        )


def start(tree: Path, *arguments: str) -> None:
    """Run a step of this script on the version in a working tree."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, __file__, "step", *arguments], env=environment, check=True)


def commit(tree: Path) -> str:
    asked = ["git", "-C", str(tree), "rev-parse", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("configs", nargs="*", metavar="CONFIG")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="passes that count in each turn")
    parser.add_argument("--turns", type=int, default=2, help="how often each version has a process of its own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    from pcdet_ext.engine.info import hardware, versions

    trees = {"before": options.before.resolve(), "after": options.after.resolve()}
    names = options.configs or CONFIGS
    content: dict[str, Any] = {
        "hardware": hardware(),
        "versions": versions(),
        "threads": options.threads,
        "commits": {side: commit(tree) for side, tree in trees.items()},
        "results": [],
    }
    for name in names:
        content["results"].append(compare(name, trees, options.threads, options.rounds, options.turns))
        if options.json is not None:
            options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:3] == ["step", "prepare"]:
        prepare(sys.argv[3], Path(sys.argv[4]))
    elif sys.argv[1:3] == ["step", "run"]:
        run(sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]), sys.argv[7])
    elif sys.argv[1:3] == ["step", "referee"]:
        referee(sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
    else:
        main(sys.argv[1:])
