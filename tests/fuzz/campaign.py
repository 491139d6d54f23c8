"""Damaged files for every reader: each must end in a clear error or be read, without a crash, a hang or foreign code.

python tests/fuzz/campaign.py [--seconds 300] [--inputs N] [--only TEXT] [--seed 0] [--keep DIR]

Readers run in processes of their own, with a limit to their memory; what fails is written, with its reason, to DIR.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from random import Random

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fuzz.readers import READERS, Reader

from pcdet_ext.config import ConfigError
from pcdet_ext.files import DataError

PATIENCE = 20.0  # seconds that one file may take, on a busy machine
MEMORY = 512 << 20  # bytes that reading a file of some kilobytes may take on top of what the process has
CLEAR = (DataError, ConfigError)
GOOD = ("read", "refused")
FORK = get_context("fork")


@dataclass
class Report:
    """How the damaged files of one reader ended: `outcomes` counts "read" and "refused"; failures in words."""

    reader: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """Damaged files that were given to the reader."""
        return sum(self.outcomes.values()) + len(self.failures)

    def __str__(self) -> str:
        counts = f"{self.outcomes['refused']} refused, {self.outcomes['read']} read"
        return f"{self.reader}: {self.inputs} damaged files, {counts}" + "".join(f"\n  {f}" for f in self.failures)


def damage_one(reader: Reader, victims: Sequence[Path], original: Sequence[bytes], rng: Random) -> Path:
    """Damage one of the files; returns which."""
    place = rng.randrange(len(victims))
    data = original[place]
    for _ in range(rng.choice((1, 1, 1, 2))):
        try:
            data = rng.choice(reader.damages)(data, rng)
        except (
            ValueError,
            yaml.YAMLError,
        ):  # no JSON or YAML any more after the first damage, or a value that these cannot write
            continue
    victims[place].write_bytes(data)
    return victims[place]


def outcome_of(reader: Reader, folder: Path) -> str:
    """Read the folder: "read", "refused", or what is wrong about how it ended."""
    try:
        reader.read(folder)
    except CLEAR as error:
        return "refused" if str(folder) in str(error) or "cloud." in str(error) else f"no file is named: {error!r}"
    except MemoryError as error:
        return f"took too much memory: {error!r}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    return "read" if not (Path.cwd() / "intruder").exists() else "ran code of the file"


def forget() -> None:
    """Empty the caches of the library, which suppose that files do not change."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pcdet_ext."):
            for value in vars(module).values():
                getattr(value, "cache_clear", int)()


def work(reader: Reader, folder: Path, seed: int, numbers: range, pipe: Connection) -> None:
    """Send (number, "begun"), then (number, None) and (number, outcome) for each damaged file (in its own process)."""
    warnings.simplefilter("ignore")
    place = folder / "data"
    place.mkdir(parents=True)
    os.chdir(folder)
    reader.make(place)
    victims = sorted(path for pattern in reader.victims for path in place.glob(pattern) if path.is_file())
    original = [path.read_bytes() for path in victims]
    reader.read(place)  # undamaged, it is read
    forget()
    pipe.send((numbers[0], "begun"))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    for number in numbers:
        victim = damage_one(reader, victims, original, Random(f"{seed} {reader.name} {number}"))
        pipe.send((number, None))
        outcome = outcome_of(reader, place)
        pipe.send((number, outcome if outcome in GOOD else f"{victim.relative_to(place)}: {outcome}"))
        victim.write_bytes(original[victims.index(victim)])
        forget()


def fuzz(reader: Reader, count: int, seconds: float = 1e9, seed: int = 0, keep: Path | None = None) -> Report:
    """Read `count` damaged files, or as many as there is time for; those that failed are put into folders of `keep`."""
    report, number, end = Report(reader.name), 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        while number < count and time.monotonic() < end:
            folder = Path(scratch) / str(number)
            ours, theirs = FORK.Pipe(duplex=False)
            process = FORK.Process(target=work, args=(reader, folder, seed, range(number, count), theirs))
            process.start()
            theirs.close()
            number, failure = _follow(report, ours, process, number, end)
            process.kill()
            process.join()
            if failure:
                report.failures.append(f"input {number} of seed {seed}: {failure}")
                if keep is not None:
                    shutil.copytree(folder, keep / f"{reader.name} {number}".replace("/", "-"), dirs_exist_ok=True)
                number += 1
            shutil.rmtree(folder, ignore_errors=True)
    return report


def _follow(report: Report, pipe: Connection, process: ForkProcess, number: int, end: float) -> tuple[int, str]:
    """Take in outcomes until one is bad, the process ends or hangs, or time is over: the number, and what was bad."""
    begun = False
    while time.monotonic() < end:
        if not pipe.poll(PATIENCE):
            return number, f"not done after {PATIENCE:.0f} s"
        try:
            number, outcome = pipe.recv()
        except EOFError:
            process.join()
            if not begun:
                raise RuntimeError(f"{report.reader}: the undamaged files are not read, see above") from None
            return number, f"its process ended with code {process.exitcode}" if process.exitcode else ""
        begun |= outcome == "begun"
        if outcome in GOOD:
            report.outcomes[outcome] += 1
            number += 1
        elif outcome not in (None, "begun"):
            return number, outcome
    return number, ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="time for all readers (default: 300)")
    parser.add_argument("--inputs", type=int, default=1000, help="damaged files of each reader at most (default: 1000)")
    parser.add_argument("--only", default="", help="readers whose names hold this text")
    parser.add_argument("--seed", type=int, default=0, help="another seed damages in other ways (default: 0)")
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    options = parser.parse_args(arguments)
    readers = [reader for reader in READERS if options.only in reader.name]
    end, total, failures = time.monotonic() + options.seconds, 0, 0
    for i, reader in enumerate(readers):
        share = (end - time.monotonic()) / (len(readers) - i)
        report = fuzz(reader, options.inputs, share, options.seed, options.keep)
        total, failures = total + report.inputs, failures + len(report.failures)
        print(report, flush=True)
    print(f"{total} damaged files, {failures} of them wrongly treated")
    return int(failures > 0 or not total)


if __name__ == "__main__":
    sys.exit(main())
