"""Everything that only a GPU can tell, in one command: `make gpu-check`, or with the packages that an interpreter has

    python benchmarks/gpu_check.py [--steps tests ops …] [--out FILE] [--models CONFIG …] [--minutes 60]

    build       compile the native operations, for the architecture of this GPU (unless PCDET_EXT_ARCHS names others)
    tests       the tests that need a CUDA device
    memcheck    every CUDA kernel under compute-sanitizer's memcheck, with gradients
    racecheck   the same under its racecheck
    ops         operations against their references: pcdet benchmark ops --device cuda
    models      time, peak memory and the longest kernels of the published detectors, one frame each

Nothing is fetched from a network. The results go to one JSON file that names the hardware, which may be sent in, and
what each step printed goes to a folder of logs. Exits 1 when a step failed, 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "tests" / "cuda_emulator" / "sanitized.py"  # calls every CUDA kernel
MODELS = ("kitti", "nuscenes", "waymo", "lion")  # folders of configs/
UNPUBLISHED = ("demo", "demo_sim", "sim_to_real")
NOT_SIMULATED = ("argoverse2", "once")  # data sets without a simulation: a dense frame stands for theirs
LONGEST = 20  # kernels of each detector that are listed


@dataclass
class Outcome:
    """What came of a step: "passed", "failed", or "skipped" where a tool is missing; why, and what was measured."""

    status: str
    seconds: float = 0.0
    why: str = ""
    results: Any = None


@dataclass
class Check:
    """Runs the steps; what they print goes to `logs`."""

    logs: Path
    models: Sequence[str]
    end: float  # of time.monotonic, after which no step and no detector begins
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def run(self, name: str) -> None:
        """One step by its name, and what came of it."""
        start = time.monotonic()
        if start > self.end:
            outcome = Outcome("skipped", why="no time was left (--minutes)")
        else:
            print(f"{name} …", flush=True)
            outcome = getattr(self, f"step_{name}")()
        outcome.seconds = round(time.monotonic() - start, 1)
        self.outcomes[name] = outcome
        print(f"{name}: {outcome.status} after {outcome.seconds:.0f} s {outcome.why}", flush=True)

    def call(self, name: str, *command: str, **environment: str) -> int:
        """The status of a command; 124 where it ran out of time."""
        given = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        with (self.logs / f"{name}.log").open("w", encoding="utf-8") as log:
            left = max(1.0, self.end - time.monotonic())
            try:
                return subprocess.run(
                    command, cwd=ROOT, env=given, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=left
                ).returncode
            except subprocess.TimeoutExpired:
                return 124

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def step_build(self) -> Outcome:
        major, minor = torch.cuda.get_device_capability()
        archs = os.environ.get("PCDET_EXT_ARCHS", f"{major}{minor}")
        command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
        status = self.call("build", *command, PCDET_EXT_ARCHS=archs, PCDET_EXT_REQUIRE_NATIVE="1")
        built = (ROOT / "pcdet_ext" / "ops" / "libpcdet_ext_cuda.so").exists()
        if status == 0 and not built:
            return Outcome("failed", why="there is no CUDA library: is nvcc on the PATH?", results={"archs": archs})
        return _outcome(status, "see build.log", {"archs": archs})

    def step_tests(self) -> Outcome:
        report = self.logs / "tests.xml"
        status = self.call(
            "tests",
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "--junitxml",
            str(report),
            "-p",
            "no:cacheprovider",
        )
        counts = count_tests(report.read_text(encoding="utf-8")) if report.exists() else {}
        if status == 0 and not counts.get("passed"):
            return Outcome("failed", why="no test ran", results=counts)
        return _outcome(status, "see tests.log", counts)

    def step_memcheck(self) -> Outcome:
        return self._sanitizer("memcheck")

    def step_racecheck(self) -> Outcome:
        return self._sanitizer("racecheck")

    def _sanitizer(self, tool: str) -> Outcome:
        program = find_sanitizer()
        if program is None:
            return Outcome("skipped", why="compute-sanitizer is not found; it comes with the CUDA toolkit")
        command = (program, "--tool", tool, "--error-exitcode", "9", sys.executable, str(KERNELS), "--device", "cuda")
        status = self.call(tool, *command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        errors = count_errors(self.log(tool))
        if status == 0 and errors is None:
            return Outcome("failed", why=f"the sanitizer did not report, see {tool}.log")
        return _outcome(status or int(bool(errors)), f"see {tool}.log", {"errors": errors})

    def step_ops(self) -> Outcome:
        return self._benchmark("ops", "ops", "--voxels", "20000", "100000")

    def step_models(self) -> Outcome:
        found, failed = {}, []
        for name in self.models:
            if time.monotonic() > self.end:
                failed.append(f"{name}: no time was left (--minutes)")
                continue
            frame = "dense" if name.split("/")[-1].startswith(NOT_SIMULATED) else "usual"
            rest = ("--frames", frame, "--rounds", "5", "--operations", str(LONGEST))
            one = self._benchmark(f"models_{name.replace('/', '_')}", "models", name, *rest)
            print(f"    {name}: {one.status} {one.why}", flush=True)
            if one.status == "passed":
                found[name] = one.results["results"]
            else:
                failed.append(f"{name}: {one.why}")
        return Outcome("failed" if failed else "passed", why="; ".join(failed), results=found)

    def _benchmark(self, log: str, *arguments: str) -> Outcome:
        path = self.logs / f"{log}.json"
        path.unlink(missing_ok=True)
        command = (sys.executable, "-m", "pcdet_ext", "benchmark", *arguments, "--device", "cuda", "--json", str(path))
        status = self.call(log, *command)
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if status == 0 and results is None:
            return Outcome("failed", why=f"nothing was measured, see {log}.log")
        return _outcome(status, f"see {log}.log", results)


STEPS = tuple(name.removeprefix("step_") for name in vars(Check) if name.startswith("step_"))


def _outcome(status: int, why: str, results: Any = None) -> Outcome:
    if status == 0:
        return Outcome("passed", results=results)
    return Outcome(
        "failed", why=f"no time was left, {why}" if status == 124 else f"status {status}, {why}", results=results
    )


def count_tests(report: str) -> dict[str, int]:
    """How many tests of a report in JUnit's format passed, failed and were skipped."""
    suites = list(ElementTree.fromstring(report).iter("testsuite"))
    total, bad, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites for key in keys)
        for keys in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return {"passed": total - bad - skipped, "failed": bad, "skipped": skipped}


def count_errors(log: str) -> int | None:
    """What compute-sanitizer has counted; None where it has not come to an end."""
    found = re.findall(r"^=+ (?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", log, re.MULTILINE)
    return sum(int(errors or hazards) for errors, hazards in found) if found else None


def find_sanitizer() -> str | None:
    """compute-sanitizer on the PATH, or in the CUDA toolkit."""
    folders = [Path(os.environ[key]) / "bin" for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    path = os.pathsep.join(map(str, [os.environ.get("PATH", ""), *folders, "/usr/local/cuda/bin"]))
    return shutil.which("compute-sanitizer", path=path)


def published_models() -> list[str]:
    """The configurations of detectors as published."""
    paths = [path for folder in MODELS for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))]
    return [f"{path.parent.name}/{path.stem}" for path in paths if path.stem not in UNPUBLISHED]


def describe() -> dict[str, Any]:
    """The GPU, and what drives it."""
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False) if shutil.which(query[0]) else None
    return {
        "gpu": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "nvidia-smi": driver.stdout.strip() if driver is not None else "not found",
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
    }


def write(path: Path, check: Check) -> None:
    """All outcomes so far, so that an interrupted run leaves what it has."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    content = {
        "format": 1,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit.stdout.strip() or "unknown",
        "hardware": describe(),
        "steps": {name: asdict(outcome) for name, outcome in check.outcomes.items()},
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help="default: all")
    parser.add_argument("--models", nargs="+", metavar="CONFIG", help="detectors to measure (default: all published)")
    parser.add_argument("--minutes", type=float, default=120.0, help="no step begins after them (default 120)")
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/gpu_<name>.json)")
    parser.add_argument("--logs", type=Path, default=ROOT / "runs" / "gpu_check", help="default: runs/gpu_check")
    return parser


def main(given: Sequence[str] | None = None) -> int:
    options = arguments().parse_args(given)
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        print(
            f"gpu-check needs a CUDA device, and torch {torch.__version__}, which {built}, sees none.", file=sys.stderr
        )
        return 2
    name = re.sub(r"\W+", "_", torch.cuda.get_device_name().lower())
    out = (options.out or ROOT / "benchmarks" / f"gpu_{name}.json").resolve()
    logs = options.logs.resolve()
    logs.mkdir(parents=True, exist_ok=True)
    check = Check(logs, options.models or published_models(), time.monotonic() + 60 * options.minutes)
    for step in options.steps:
        check.run(step)
        write(out, check)
    print(f"Written to {out}; what the steps printed is in {logs}.")
    return int(any(outcome.status == "failed" for outcome in check.outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
