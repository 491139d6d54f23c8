"""Run a script or module of another code base in this process, after what the plugin does before it."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def launch(arguments: Sequence[str], usage: str) -> None:
    """Run `script.py arguments…` or `-m module arguments…` as Python would.

    Raises SystemExit with the usage where neither is named, and where the script does not exist.
    """
    if arguments[:1] == ["-m"] and len(arguments) > 1:
        sys.argv = [*arguments[1:]]
        sys.path[0] = str(Path.cwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    if not arguments or arguments[0].startswith("-"):
        raise SystemExit(usage)
    script = Path(arguments[0])
    if not script.is_file():
        raise SystemExit(f"{script}: no such script\n{usage}")
    sys.argv = [*arguments]
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
