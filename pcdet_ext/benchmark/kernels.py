"""What each CUDA kernel takes: registers, spills and shared memory by nvcc, bytes moved by the emulator; no device.

Bytes moved are counted in the sources' emulator of CUDA, on inputs of some thousand rows: 32-byte sectors that blocks
read and write, each with a small cache of its own, beside the least, every sector once. What moves more than twice the
least needs a reason, which stands in `REASONS`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pcdet_ext.files import atomic_write

SOURCES = Path(__file__).resolve().parents[2] / "ops"
ARCHITECTURES = ("80", "90")
FLAGS = ("-O3", "-std=c++17", "--expt-relaxed-constexpr", "-cubin", "-Xptxas=-v")

# Of a multiprocessor of compute capability 8.0 and 9.0 (CUDA C++ Programming Guide, table of technical specifications).
REGISTERS, REGISTERS_AT_A_TIME, MOST_WARPS, WARPS_AT_A_TIME = 65536, 256, 64, 4
MOST_MOVED = 2.0  # times the least; more needs a reason
REASONS = {
    (
        "nms",
        "mark_pairs",
    ): "every block of 64 boxes reads those of the others, 28 bytes for 4096 pairs; bits of a box's "
    "row lie side by side for the walk, so that a block writes a quarter of each sector, which the second cache joins",
    (
        "octree_conv",
        "forward",
    ): "rows of neighbours are gathered, most of them by several blocks, from the second cache",
    ("octree_conv", "partial_grads"): "as forward; a table of readers would take as many bytes as are saved",
    ("rotated_sets", "fill"): "the voxels of a window are rows anywhere, of which 8 to 12 bytes of a sector are needed",
}


@dataclass(frozen=True)
class KernelResources:
    """What one kernel takes on one architecture.

    spills: bytes per thread that are stored to and loaded from memory for want of registers. stack: bytes per thread
    of arrays that registers cannot hold, spills included. shared: bytes per block, without what a launch adds. moved:
    bytes in relation to the least, the highest of the types that were counted; None where nothing was.
    """

    operation: str
    kernel: str
    architecture: str
    registers: int
    spills: int
    stack: int
    shared: int
    moved: float | None = None

    @property
    def place(self) -> tuple[str, str]:
        """The operation, and the kernel without its template arguments."""
        return self.operation, self.kernel.partition("<")[0]

    @property
    def reason(self) -> str:
        """Why it moves more than twice the least."""
        return REASONS.get(self.place, "") if self.moved is not None and self.moved > MOST_MOVED else ""

    @property
    def fault(self) -> str:
        """What should not be: spilled registers, or more bytes moved than there is a reason for; empty without one."""
        if self.spills:
            return f"{self.spills} bytes per thread are spilled"
        if self.moved is not None and self.moved > MOST_MOVED and not self.reason:
            return f"it moves {self.moved:.1f} times the least, without a reason in pcdet_ext.benchmark.kernels"
        return ""

    @property
    def resident_warps(self) -> int:
        """Warps of a multiprocessor, 64 at most, that its registers allow."""
        for_one = -(-self.registers * 32 // REGISTERS_AT_A_TIME) * REGISTERS_AT_A_TIME
        return min(MOST_WARPS, REGISTERS // for_one // WARPS_AT_A_TIME * WARPS_AT_A_TIME)

    def line(self) -> str:
        """What to print."""
        return (
            f"{self.operation:18} sm_{self.architecture} {self.registers:4} registers ({self.resident_warps:2} warps) "
            f"{self.spills:5} B spilled {self.stack:6} B stack {self.shared:6} B shared "
            + (" " * 15 if self.moved is None else f"moves {self.moved:4.2f}x the least ").ljust(24)
            + self.kernel
        )


def run_kernels(
    operations: Sequence[str] = (),
    architectures: Sequence[str] = ARCHITECTURES,
    json_path: Path | None = None,
    sources: Path = SOURCES,
) -> list[KernelResources]:
    """Compile the CUDA kernels, count what they move, and print what each takes.

    Args:
        operations: folders of `sources` (default: all that have a CUDA kernel).
        architectures: compute capabilities without the dot ("80", "90").
        json_path: where everything is written.
        sources: the folder `ops` of a checkout.

    Raises:
        ValueError: there is no nvcc, no such source, or a source does not compile.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise ValueError("the resources of CUDA kernels are told by nvcc, which is not found")
    paths = {path.parent.name: path for path in sorted(sources.glob("*/*_cuda.cu"))}
    if not paths:
        raise ValueError(f"{sources}: no CUDA kernels; this needs a checkout of the sources")
    for name in operations:
        if name not in paths:
            raise ValueError(f"no operation {name!r} has a CUDA kernel, only {', '.join(paths)}")
    found, moved = [], count_moved(operations or list(paths), sources)
    for name in operations or paths:
        for architecture in architectures:
            report = _compile(nvcc, paths[name], sources, architecture)
            for bare in read_resources(report, name, architecture):
                resources = replace(bare, moved=moved.get(bare.place))
                print(resources.line(), flush=True)
                found.append(resources)
    _print_remarks(found)
    if json_path is not None:
        content = [asdict(r) | {"resident_warps": r.resident_warps, "reason": r.reason} for r in found]
        with atomic_write(json_path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return found


def count_moved(operations: Sequence[str], sources: Path = SOURCES) -> Mapping[tuple[str, str], float]:
    """Bytes moved in relation to the least, by operation and kernel without template arguments.

    Empty, after a remark, where there is no emulator beside the sources, or no C++ compiler for it. Raises ValueError
    where the emulator fails.
    """
    script = sources.parent / "tests" / "cuda_emulator" / "traffic.py"
    if not script.exists() or shutil.which("g++") is None:
        print(f"bytes moved are not counted: that needs g++ and {script}")
        return {}
    command = [sys.executable, str(script), "--only", *operations]
    environment = os.environ | {"PYTHONPATH": str(sources.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise ValueError(f"{script} failed:\n{done.stderr}")
    moved: dict[tuple[str, str], float] = {}
    for operation, kernels in json.loads(done.stdout).items():
        for name, (bytes_moved, least) in kernels.items():
            place = operation, name.partition("<")[0]
            moved[place] = max(moved.get(place, 0.0), bytes_moved / max(least, 1))
    return moved


def _print_remarks(found: Sequence[KernelResources]) -> None:
    """Reasons and faults, each once."""
    for resources in {r.place: r for r in found if r.reason}.values():
        print(f"{' '.join(resources.place)}: {resources.reason}")
    for resources in found:
        if resources.fault:
            print(f"FAULT: {resources.operation} {resources.kernel} on sm_{resources.architecture}: {resources.fault}")


def read_resources(report: str, operation: str, architecture: str) -> Iterator[KernelResources]:
    """The kernels of what `ptxas -v` printed, sorted by name; functions that kernels call are left out.

    Args:
        report: what it printed.
        operation: folder of the source.
        architecture: compute capability without the dot, that the source was compiled for.

    Raises:
        ValueError: the report names a kernel without its registers.
    """
    kernels = re.split(r"Compiling entry function '", report)[1:]
    names = _demangled([text.partition("'")[0] for text in kernels])
    for name, text in sorted(zip(names, kernels, strict=True)):
        registers = re.search(r"Used (\d+) registers", text)
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        if registers is None or spills is None:
            raise ValueError(f"{operation}: ptxas does not tell what {name} takes:\n{text}")
        shared = re.search(r"(\d+) bytes smem", text)
        stack, stores, loads = map(int, spills.groups())
        yield KernelResources(
            operation, name, architecture, int(registers[1]), stores + loads, stack, int(shared[1]) if shared else 0
        )


def _compile(nvcc: str, source: Path, include: Path, architecture: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc,
            *FLAGS,
            f"-arch=sm_{architecture}",
            f"-I{include}",
            str(source),
            "-o",
            f"{folder}/kernels.cubin",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{source} does not compile for sm_{architecture}:\n{done.stderr}")
    return done.stderr + done.stdout


def _demangled(names: Sequence[str]) -> list[str]:
    """Names as the sources write them, without parameters, where c++filt is there."""
    filter_ = shutil.which("c++filt")
    if filter_ is None or not names:
        return list(names)
    given = "\n".join(names)
    lines = subprocess.run([filter_], input=given, capture_output=True, text=True, check=True).stdout.splitlines()
    plain = (re.sub(r"\(anonymous namespace\)::|^void ", "", line) for line in lines)
    return [re.sub(r"\(.*", "", line).strip() for line in plain]
