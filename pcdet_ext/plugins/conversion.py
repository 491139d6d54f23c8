"""The command line of the converters between another code base's checkpoints and this library's."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pcdet_ext.files import DataError

Convert = Callable[[Path, Path, Path], int]  # configuration, checkpoint to read, checkpoint to write → entries


def run_conversion(
    module: str,
    description: str | None,
    config: str,
    directions: Mapping[str, Convert],
    arguments: Sequence[str] | None,
) -> None:
    """Convert a checkpoint as the command line says, and print what was written.

    Args:
        module: what is run with `python -m`.
        description: of the command, for its help.
        config: what the argument CONFIG is, for the help.
        directions: the conversions by name.
        arguments: of the command, None for those of this process.

    Raises:
        SystemExit: with one line, where the conversion is not possible or the command is used wrongly.
    """
    parser = argparse.ArgumentParser(f"python -m {module}", description=description)
    parser.add_argument("direction", choices=list(directions))
    parser.add_argument("config", type=Path, help=config)
    parser.add_argument("source", type=Path, help="the checkpoint to read")
    parser.add_argument("out", type=Path, help="the checkpoint to write")
    options = parser.parse_args(arguments)
    try:
        count = directions[options.direction](options.config, options.source, options.out)
    except (ValueError, DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{options.out}: {count} parameters and buffers")
