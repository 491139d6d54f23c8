"""PointPillars for KITTI by this library, Open3D-ML and mmdetection3d, on the same frames on the CPU.

sh benchmarks/install_cpu_peers.sh
python benchmarks/cpu_peers.py [FRAME.bin …] [--threads 2 --rounds 7 --json FILE]

Frames are one that is simulated in KITTI's layout and the files given: cut to what the camera sees, where a calib
folder lies beside theirs, as KITTI's detectors do it. All libraries have the same network and the same parameters (see
pointpillars_peers/network.py) on the same torch, each in a process of its own on the same cores. The processes take
turns: one works, the others wait. A pass starts with points in memory and ends with boxes in memory, after the
suppression; what a library does before and behind (reading and cutting files, objects around boxes) is left out.

The parameters are drawn, the statistics of the batch norms are those of the simulated frame, and the bias of the
classes lets `CANDIDATES` of its anchors pass the threshold of 0.1, as many as a trained network has: the suppression
has its usual share of the time, and the boxes can be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pointpillars_peers import network
from torch import nn

from pcdet_ext import checkpoint, config
from pcdet_ext.benchmark.simulated import usual_frame
from pcdet_ext.config import ConfigError
from pcdet_ext.data.kitti.calibration import Calibration, in_image
from pcdet_ext.data.kitti.files import read_points
from pcdet_ext.engine.info import hardware, versions
from pcdet_ext.files import DataError, atomic_write, check_output_file
from pcdet_ext.inference import Detector
from pcdet_ext.plugins.mmdet3d.weights import library_settings, to_mmdet3d
from pcdet_ext.structures import PointBatch

HERE = Path(__file__).resolve().parent
OURS = ("pcdet_ext, optimized", "pcdet_ext")  # the first is what others are compared with
SIMULATED = "simulated"  # name of the frame that is no file
CANDIDATES = 300
PAUSE = 0.1  # seconds between turns, in which threads of the last one stop to look for work
IMAGE = (375, 1242)  # rows and columns, KITTI's usual ones, where the image itself is not there


class PeerError(Exception):
    """A library that cannot be measured here; the message says why."""


@dataclass
class Worker:
    """A library in a process of its own; see pointpillars_peers/worker.py."""

    process: subprocess.Popen[str]
    log: Path
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def start(cls, python: Path, name: str, folder: Path, threads: int) -> Worker:
        """Start it and wait until it is ready. Raises PeerError where it does not come up."""
        if not python.exists():
            raise PeerError(f"{python} is missing; sh benchmarks/install_cpu_peers.sh makes it")
        log = folder / f"{name.replace(':', '_')}.log"
        path = os.pathsep.join([str(HERE), str(HERE.parent)])
        with log.open("w") as errors:
            process = subprocess.Popen(
                [str(python), "-m", "pointpillars_peers.worker", name, str(folder), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
            )
        worker = cls(process, log)
        worker.versions = worker._answer()["versions"]
        return worker

    def ask(self, **request: str) -> dict[str, Any]:
        """Let it do something; all other libraries wait meanwhile. Raises PeerError where it ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that there is no answer tells why
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise PeerError(f"ended with code {self.process.wait()}; its last words: {said[-1]}")
        return json.loads(line)

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.communicate()


def prepare(folder: Path, frames: Mapping[str, np.ndarray], first: str) -> dict[str, int]:
    """Write the frames and one set of parameters in the form of each library. Returns the pillars of each frame.

    Args:
        folder: where they are written.
        frames: points float32 [N, 4] by name.
        first: name of the frame that sets the batch norms and the bias of the classes.
    """
    torch.manual_seed(0)
    settings = library_settings(network.mmdetection3d())
    model = Detector(settings, "cpu").model
    with torch.no_grad():
        model.encoder.pfn_layers[0].linear.weight[:, -1] = 0  # of the offset in z, which Open3D-ML does not have
    batches = {name: PointBatch.from_points([torch.from_numpy(points)]) for name, points in frames.items()}
    set_statistics(model, batches[first])
    set_bias(model, batches[first])
    for name, points in frames.items():
        np.save(folder / f"{name}.npy", points)
    checkpoint.write(folder / "ours.ckpt", {"config": settings.plain(), "model": model.state_dict()})
    text = "".join(f"{name} = {value!r}\n" for name, value in network.mmdetection3d().items())
    (folder / "config.py").write_text(text, encoding="utf-8")
    to_mmdet3d(folder / "config.py", folder / "ours.ckpt", folder / "parameters.pt")
    with torch.inference_mode():
        return {name: len(model.encoder(batch)) for name, batch in batches.items()}


@torch.no_grad()
def set_statistics(model: Any, batch: PointBatch) -> None:
    """Let batch norms have the statistics of a frame, so that values neither vanish nor grow from layer to layer."""
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(batch)
    model.eval()
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def set_bias(model: Any, batch: PointBatch) -> None:
    """Let `CANDIDATES` anchors of a frame score above the threshold."""
    best = model(batch).logits[0].amax(1).topk(CANDIDATES + 1).values[-2:].mean()
    model.head.conv_cls.bias += math.log(network.SCORE / (1 - network.SCORE)) - best


def read_frame(path: Path) -> np.ndarray:
    """Points float32 [N, 4] of a velodyne file, those that the camera sees where the calibration lies beside."""
    points = read_points(path)
    calibration = path.parent.parent / "calib" / f"{path.stem}.txt"
    if calibration.exists():
        found = Calibration.read(calibration)
        points = points[in_image(points, found.with_image_size(found.known_image_size() or IMAGE))]
    return points


def measure(workers: Mapping[str, Worker], frame: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds and processor time of each pass, in turns, and of the parts of a pass more, by library."""
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "busy": []} for name in workers}
    for number in range(rounds + 1):  # the first warms up
        for name in rotated(list(workers), number):
            time.sleep(PAUSE)
            took = workers[name].ask(do="time", frame=frame)
            if number:
                for key, values in found[name].items():
                    values.append(took[key])
    for name, worker in workers.items():
        time.sleep(PAUSE)
        found[name]["parts"] = worker.ask(do="parts", frame=frame)["parts"]
    return found


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The names, starting with another one each time, so that none always follows the same one."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def summary(
    taken: Mapping[str, Mapping[str, Any]], results: Mapping[str, Mapping[str, Any]], folder: Path, frame: str
) -> dict[str, Any]:
    """Medians and comparisons of a frame, by library, and how much longer than ours each took."""
    reference = results_file(folder, OURS[0], frame)
    medians = {name: statistics.median(values["seconds"]) for name, values in taken.items()}
    rows = {}
    for name, values in taken.items():
        rows[name] = {
            "median": medians[name],
            "fastest": min(values["seconds"]),
            "processor_median": statistics.median(values["busy"]),
            "times_ours": medians[name] / medians[OURS[0]],
            **values,
            **results[name],
            **compare(reference, results_file(folder, name, frame)),
        }
    peers = {name: median for name, median in medians.items() if name not in OURS}
    best = min(peers, key=lambda name: peers[name]) if peers else None
    return {"libraries": rows, "best_peer": best, "ratio": None if best is None else rows[best]["times_ours"]}


def results_file(folder: Path, name: str, frame: str) -> Path:
    return folder / f"results_{frame}_{''.join(c if c.isalnum() else '_' for c in name)}.npz"


def compare(reference: Path, other: Path) -> dict[str, Any]:
    """How far the logits are apart, and how many boxes of either are not found in the other (see `unmatched`)."""
    with np.load(reference) as a, np.load(other) as b:
        if a["logits"].shape != b["logits"].shape:
            raise ValueError(f"the maps have the shapes {a['logits'].shape} and {b['logits'].shape}; they must agree")
        apart = float(np.abs(a["logits"] - b["logits"]).max())
        return {"logits_apart": apart, "only_here": unmatched(b, a), "only_ours": unmatched(a, b)}


def unmatched(these: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], tolerance: float = 1e-3) -> int:
    """How many boxes have no box of the same label among the others within the tolerance (m, rad and score)."""
    count = 0
    for box, score, label in zip(these["boxes"], these["scores"], these["labels"], strict=True):
        same = others["labels"] == label
        apart = np.abs(others["boxes"][same] - box)
        apart[:, 6] = np.abs((apart[:, 6] + math.pi) % (2 * math.pi) - math.pi)
        worst = np.maximum(apart.max(1, initial=0), np.abs(others["scores"][same] - score))
        count += not bool((worst <= tolerance).any())
    return count


def lines(frame: Mapping[str, Any]) -> list[str]:
    """What to print of a frame."""
    said = [f"{frame['name']}: {frame['points']} points, {frame['pillars']} pillars"]
    for name, row in frame["libraries"].items():
        listed = ", ".join(f"{part} {1000 * seconds:.0f}" for part, seconds in row["parts"].items())
        said += [
            f"  {name:22s} {1000 * row['median']:7.0f} ms (fastest {1000 * row['fastest']:.0f}), "
            f"{row['times_ours']:.2f} times ours",
            f"    one pass more, in ms: {listed}",
            f"    map {row['map']}, channels {row['channels']}, logits apart by {row['logits_apart']:.1e}; "
            f"{row['boxes']} boxes, {row['only_here']} not among ours, {row['only_ours']} of ours not here",
        ]
    if frame["best_peer"] is None:
        return [*said, "  no peer could be measured"]
    return [*said, f"  the best peer, {frame['best_peer']}, takes {frame['ratio']:.2f} times as long as ours"]


@contextmanager
def started(folder: Path, peers: Path, threads: int) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """The processes of all libraries, until the end of the block, and why those that are missing do not run."""
    ours = Path(sys.executable)
    wanted = {
        OURS[0]: (ours, "ours:optimized"),
        OURS[1]: (ours, "ours"),
        "Open3D-ML": (peers / "open3d_ml" / "bin" / "python", "open3d_ml"),
        "mmdetection3d": (peers / "mmdetection3d" / "bin" / "python", "mmdetection3d"),
    }
    workers: dict[str, Worker] = {}
    missing: dict[str, str] = {}
    try:
        for name, (python, module) in wanted.items():
            try:
                workers[name] = Worker.start(python, module, folder, threads)
            except PeerError as error:
                if name in OURS:
                    raise
                missing[name] = str(error)
                print(f"{name} is left out: {error}", file=sys.stderr)
        yield workers, missing
    finally:
        for worker in workers.values():
            worker.end()


def run(folder: Path, frames: Mapping[str, np.ndarray], options: argparse.Namespace) -> None:
    """Measure all libraries on all frames, and print and write what was found after each."""
    pillars = prepare(folder, frames, next(iter(frames)))
    with started(folder, options.peers, options.threads) as (workers, missing):
        content: dict[str, Any] = {
            "hardware": hardware() | {"threads": options.threads},
            "versions": versions(),
            "libraries": {name: worker.versions for name, worker in workers.items()},
            "left_out": missing,
            "rounds": options.rounds,
            "frames": [],
        }
        for frame, points in frames.items():
            taken = measure(workers, frame, options.rounds)
            results = {
                name: worker.ask(do="results", frame=frame, out=str(results_file(folder, name, frame)))
                for name, worker in workers.items()
            }
            about = {"name": frame, "points": len(points), "pillars": pillars[frame]}
            content["frames"].append(about | summary(taken, results, folder, frame))
            print("\n".join(lines(content["frames"][-1])), flush=True)
            if options.json is not None:
                with atomic_write(options.json) as temporary:
                    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def named_frames(simulated: np.ndarray, files: Sequence[Path]) -> dict[str, np.ndarray]:
    """The simulated frame and those of files, by name. Raises PeerError where two have one name."""
    given: dict[str, Path] = {}
    for path in files:
        if path.stem == SIMULATED or path.stem in given:
            other = given.get(path.stem, "the simulated frame")
            raise PeerError(f"{path}: has the name {path.stem!r}, as has {other}; frames need names of their own")
        given[path.stem] = path
    return {SIMULATED: simulated} | {name: read_frame(path) for name, path in given.items()}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path, nargs="*", metavar="FRAME.bin")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", type=Path, default=HERE.parent / "build" / "peers", help="their environments")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    for name in ("threads", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    torch.set_num_threads(options.threads)
    try:
        if options.json is not None:
            check_output_file(options.json, options.frames)
        simulated, _ = usual_frame(config.load(config.find("kitti/pointpillars")))
        frames = named_frames(simulated.points.numpy(), options.frames)
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), frames, options)
    except (PeerError, ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
