"""The operations' tests with native CPU code that watches its own memory: address and undefined-behaviour sanitizer.

python tests/asan/run.py [TEST …] [-k NAME …]

A copy of the package gets a library that g++ has instrumented; every read or write beyond an array, use of freed
memory, signed overflow, bad shift or misaligned access ends the run with a report. Leaks are not looked for: Python
keeps memory on purpose.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "asan"
BASE = "-std=c++17 -fPIC -fopenmp -Wno-psabi -ffp-contract=off -fno-trapping-math"
FLAGS = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
OPTIONS = {
    # tests ask for more memory than there is
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def runtime(compiler: str) -> str:
    """The sanitizers' libraries, which must be loaded before everything else."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    paths = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    ]
    missing = [name for name, path in zip(names, paths, strict=True) if not Path(path).is_absolute()]
    if missing:
        raise SystemExit(f"{compiler} has no {', '.join(missing)}: install g++'s sanitizers")
    return ":".join(paths)


def build(compiler: str) -> None:
    """A copy of the package in build/asan with an instrumented library."""
    package = BUILD / "pcdet_ext"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "pcdet_ext", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "configs", package / "configs")
    sources = sorted((ROOT / "ops").glob("*/*_cpu.cpp"))
    command = [compiler, *BASE.split(), *FLAGS.split()]
    objects = [BUILD / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        steps = [
            [*command, f"-I{ROOT / 'ops'}", "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)
        ]
        list(pool.map(partial(subprocess.run, check=True), steps))
    target = package / "ops" / "libpcdet_ext_cpu.so"
    subprocess.run([*command, "-shared", *map(str, objects), "-o", str(target)], check=True)


def main(arguments: list[str]) -> int:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise SystemExit("no g++ found")
    preload = runtime(compiler)
    build(compiler)
    tests = arguments or [str(ROOT / "tests" / "ops")]
    settings = OPTIONS | {"LD_PRELOAD": preload, "PYTHONPATH": str(BUILD)}
    # Of what is written, pytest keeps Python's alone to itself: a report ends the process.
    files = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT))
    command = [sys.executable, "-m", "pytest", "--capture=sys", *files, *tests]
    return subprocess.run(command, cwd=BUILD, env=os.environ | settings, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
