"""What is here: versions, devices, native libraries, optional packages."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(options: argparse.Namespace) -> int:
    from pcdet_ext.engine.info import describe

    print(describe())
    return 0
