"""The command `pcdet`: finds the subcommand, and turns expected errors into one line and an exit code.

0: done. 1: it failed (damaged data, a training that cannot go on, a numeric case that does not agree, a full disk).
2: wrong use (an unknown option, a wrong key, a missing file). 130: interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from pcdet_ext import __doc__ as about
from pcdet_ext import __version__
from pcdet_ext.cli.errors import FailureError, UsageError
from pcdet_ext.config import ConfigError, suggest
from pcdet_ext.files import DataError, MissingFileError, check_output_file, check_output_folder

COMMANDS = {
    "train": "train a detector",
    "test": "test a checkpoint on a data set",
    "evaluate": "official metrics for result files of any code base",
    "register": "lay one point cloud over another one of the same place",
    "track": "associate the detections of a result file over time",
    "visualize": "draw frames, labels and what a detector finds",
    "prepare": "index a data set and cut out its objects for training",
    "simulate": "make LiDAR frames of street scenes",
    "compare": "tell how close simulated frames are to real ones",
    "export": "write a detector as an ONNX model",
    "convert": "turn an official checkpoint into one of this library",
    "benchmark": "measure operations, models and training steps",
    "reproduce": "compare with numeric cases of published implementations",
    "info": "versions, devices, native libraries, optional packages",
}
WITH_SUBCOMMANDS = {"benchmark"}  # argparse cannot mix their options and arguments
FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

WRONG_USE_ERRORS = (
    UsageError,
    ConfigError,
    MissingFileError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)
FAILURES = (FailureError, DataError, OSError, ImportError)


def console(command: str | None = None) -> NoReturn:
    """Run the command line of this process, of one subcommand where it is named, and end the process."""
    arguments = sys.argv[1:]
    code = main(arguments if command is None else [command, *arguments])
    if "torch" in sys.modules:
        from pcdet_ext.engine.interrupts import end_process

        end_process(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (None: `sys.argv`) and return its exit code; SystemExit(2) for one that cannot be parsed."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in COMMANDS:
        return _run(arguments[0], arguments[1:])
    parser = _overview()
    parser.parse_known_args(arguments)  # --help and --version end here
    given = arguments[0] if arguments else ""
    wrong = f"no command is named {given!r}{suggest(given, COMMANDS)}" if given else "name a command; --help lists them"
    return parser.error(wrong)


def _overview() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="pcdet",
        usage="pcdet COMMAND …",
        description=f"{about}\n\ncommands:\n{commands}",
        epilog="`pcdet COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pcdet_ext {__version__}")
    return parser


def _run(command: str, arguments: Sequence[str]) -> int:
    module = import_module(f"pcdet_ext.cli.{command}")
    parser = argparse.ArgumentParser(
        prog=f"pcdet {command}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    parse = parser.parse_args if command in WITH_SUBCOMMANDS else parser.parse_intermixed_args
    options = parse(arguments)
    logging.basicConfig(format="%(message)s")

    def run() -> int:
        _check_outputs(options)
        return int(module.run(options))

    return _with_exit_code(parser.prog, run)


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse what cannot be written before anything is computed; --json and --plots are alike in all commands."""
    if getattr(options, "json", None) is not None:
        check_output_file(options.json)
    if getattr(options, "plots", None) is not None:
        check_output_folder(options.plots)


def _with_exit_code(program: str, run: Callable[[], int]) -> int:
    """The exit code of `run`; an expected error is one line on standard error, any other one is raised."""
    try:
        return run()
    except KeyboardInterrupt as stop:
        print(f"{program}: interrupted{'; ' if str(stop) else ''}{stop}", file=sys.stderr)
        return INTERRUPTED
    except WRONG_USE_ERRORS as error:
        print(f"{program}: {error}", file=sys.stderr)
        return WRONG_USE
    except MemoryError as error:
        print(f"{program}: out of memory{': ' if str(error) else ''}{error}", file=sys.stderr)
        return FAILED
    except FAILURES as error:
        print(f"{program}: {error}", file=sys.stderr)
        return FAILED
