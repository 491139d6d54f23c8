"""Arguments that several subcommands take."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_ext.files import expand_path


def path(text: str) -> Path:
    """A path from the command line, with `~` and `$NAME` replaced (the shell does not do so inside `--out=~/x`)."""
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_overrides(parser: argparse.ArgumentParser, of: str = "the configuration") -> None:
    """Changes a.b=c, as many as wanted."""
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help=f"changes of {of}")


def add_device(parser: argparse.ArgumentParser) -> None:
    """The device to compute on."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default auto: CUDA if available)")


def add_imports(parser: argparse.ArgumentParser) -> None:
    """Permission to import what the configuration in a checkpoint names."""
    parser.add_argument(
        "--imports",
        action="store_true",
        help="import the modules that the checkpoint's configuration names, which runs their code",
    )
